// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"io"
)

// magicBytes is frameMagic and frameVersion as they stand in the stream.
var magicBytes = []byte{0x44, 0x56, 0x42, 0x31, frameVersion}

// decoder cuts a byte stream into frames. It finds the next frame after any
// garbage, holds at most two frames of bytes, and never looks for a frame
// inside the payload of a frame whose header was intact: payloads carry bytes
// that guests write.
type decoder struct {
	r          io.Reader
	buf        []byte
	start, end int
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{r: r, buf: make([]byte, 2*MaxFrame)}
}

// next returns the next intact frame and how many bytes other than zeros were
// dropped before it. Zeros between frames are a preamble and count as nothing.
// The error is the reader's; the frame is then empty.
func (d *decoder) next() (frame, int, error) {
	dropped := 0
	for {
		n, found := d.hunt()
		dropped += n
		if !found {
			if err := d.fill(); err != nil {
				return frame{}, dropped, err
			}
			continue
		}
		f, rest, err := parseHeader(d.buf[d.start:d.end])
		if err != nil {
			dropped += d.drop(1) // the magic was a coincidence or the header is damaged
			continue
		}
		for d.end-d.start < HeaderSize+rest {
			if err := d.fill(); err != nil {
				return frame{}, dropped, err
			}
		}
		body := d.buf[d.start+HeaderSize : d.start+HeaderSize+rest]
		f.payload, err = checkPayload(body)
		d.start += HeaderSize + rest
		if err != nil {
			dropped += HeaderSize + rest
			continue
		}
		return f, dropped, nil
	}
}

// hunt moves start to the next possible header that is wholly buffered, and
// says how much it dropped. Not found means that more bytes are needed.
func (d *decoder) hunt() (dropped int, found bool) {
	b := d.buf[d.start:d.end]
	if i := bytes.Index(b, magicBytes); i >= 0 {
		dropped = d.drop(i)
		return dropped, d.end-d.start >= HeaderSize
	}
	keep := 0 // the longest tail that may begin a magic
	for k := min(len(b), len(magicBytes)-1); k > 0; k-- {
		if bytes.HasPrefix(magicBytes, b[len(b)-k:]) {
			keep = k
			break
		}
	}
	return d.drop(len(b) - keep), false
}

// drop discards n buffered bytes and returns how many of them were not zero.
func (d *decoder) drop(n int) int {
	b := d.buf[d.start : d.start+n]
	d.start += n
	return n - bytes.Count(b, []byte{0})
}

// fill reads at least one byte more. There is always room: a frame is at most
// MaxFrame long and begins at start.
func (d *decoder) fill() error {
	if d.start > 0 && d.end > MaxFrame {
		d.end = copy(d.buf, d.buf[d.start:d.end])
		d.start = 0
	}
	for tries := 0; ; tries++ {
		n, err := d.r.Read(d.buf[d.end:])
		d.end += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if tries == 100 {
			return io.ErrNoProgress
		}
	}
}
