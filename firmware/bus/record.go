// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// MaxRecord bounds one record, in bytes: with its length it fits the window.
const MaxRecord = CreditBytes - 4

// WriteRecord writes p as one record: a little-endian u32 length and the bytes.
// A record that could not be written whole closes the channel, because the
// peer could no longer tell where the next one begins.
func (c *Channel) WriteRecord(ctx context.Context, p []byte) error {
	if len(p) > MaxRecord {
		return fmt.Errorf("write record: %d bytes are more than %d", len(p), MaxRecord)
	}
	select {
	case c.writing <- struct{}{}:
		defer release(c.writing)
	case <-ctx.Done():
		return fmt.Errorf("write record: %w", ctx.Err())
	}
	defer c.until(ctx, &c.wdl)()
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(p)), uint32(len(p)))
	n, err := c.writeAll(append(b, p...))
	if err == nil {
		return nil
	}
	if n > 0 {
		c.closeWith("record cut short")
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("write record: %w", err)
}

// ReadRecord reads one record written by WriteRecord. A record announced as
// longer than limit (at most MaxRecord) closes the channel. io.EOF means that
// the peer closed the channel between two records.
func (c *Channel) ReadRecord(ctx context.Context, limit int) ([]byte, error) {
	select {
	case c.reading <- struct{}{}:
		defer release(c.reading)
	case <-ctx.Done():
		return nil, fmt.Errorf("read record: %w", ctx.Err())
	}
	defer c.until(ctx, &c.rdl)()
	for {
		p, err := c.takeRecord(min(limit, MaxRecord))
		if p != nil || err != nil {
			return p, err
		}
		if err := c.rdl.wait(c.readable); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, fmt.Errorf("read record: %w", err)
		}
	}
}

// takeRecord returns the next record if it is here as a whole, and nil and nil
// if more bytes are needed.
func (c *Channel) takeRecord(limit int) ([]byte, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if len(c.rx) >= 4 {
		n := binary.LittleEndian.Uint32(c.rx)
		if uint64(n) > uint64(limit) {
			c.closeLocked("record too long")
			return nil, fmt.Errorf("read record: %w: %d bytes are more than %d", ErrProtocol, n, limit)
		}
		if len(c.rx) >= 4+int(n) {
			p := append([]byte{}, c.rx[4:4+n]...)
			c.consume(4 + int(n))
			return p, nil
		}
	}
	if err := c.readErr(); err != nil {
		if err == io.EOF && len(c.rx) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if c.rxOwed > 0 { // about to wait for a record that may need the whole window
		c.s.signal(c)
	}
	return nil, nil
}

// until makes ctx's end the deadline and returns what undoes it. Channels used
// by record take their deadlines from contexts only.
func (c *Channel) until(ctx context.Context, d *deadline) func() {
	if ctx.Done() == nil {
		return func() {}
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		d.set(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired
			d.set(time.Time{})
		}
	}
}
