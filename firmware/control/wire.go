// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a SOCK_SEQPACKET connection that carries frames. Writes may come
// from many goroutines, reads from one.
type wire struct {
	conn  *net.UnixConn
	codec *codec
	token chan struct{} // holds one element while nobody writes
	buf   []byte        // of the reader
	oob   []byte        // of the reader; nil accepts no file descriptors
}

func newWire(conn *net.UnixConn, acceptFiles bool) (*wire, error) {
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn, codec: c, token: make(chan struct{}, 1), buf: make([]byte, MaxPacket+1)}
	if acceptFiles {
		w.oob = make([]byte, unix.CmsgSpace(4*MaxFiles))
	}
	w.token <- struct{}{}
	return w, nil
}

// read returns the next frame and the file descriptors that came with it,
// which the caller owns. io.EOF or net.ErrClosed end the stream. Without an
// oob buffer the kernel drops descriptors itself and says so in the flags.
func (w *wire) read() (*frame, []*os.File, error) {
	n, oobn, flags, _, err := w.conn.ReadMsgUnix(w.buf, w.oob)
	if err != nil {
		return nil, nil, err
	}
	files, err := parseFiles(w.oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > MaxPacket {
		closeFiles(files)
		return nil, nil, fmt.Errorf("packet too large, or with too many file descriptors: %w", ErrProtocol)
	}
	if n == 0 {
		// A zero-length packet and the end of the stream look the same to recvmsg(2).
		closeFiles(files)
		return nil, nil, net.ErrClosed
	}
	f, err := w.codec.decodeFrame(w.buf[:n])
	if err != nil {
		closeFiles(files)
		return nil, nil, err
	}
	return f, files, nil
}

// write sends one frame, waiting for room until ctx ends. A packet goes out
// whole or not at all, so that a failed write leaves the connection usable.
func (w *wire) write(ctx context.Context, f frame, m message, files []*os.File) error {
	packet, err := w.codec.encodeFrame(f, m)
	if err != nil {
		return err
	}
	select {
	case <-w.token:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { w.token <- struct{}{} }()
	oob, err := fileRights(files)
	if err != nil {
		return err
	}
	release, err := w.deadline(ctx)
	if err != nil {
		return err
	}
	_, _, err = w.conn.WriteMsgUnix(packet, oob, nil)
	release()
	runtime.KeepAlive(files) // until the kernel has taken its own references
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// deadline makes the end of ctx interrupt a write. The returned function waits
// until that can no longer happen, so that the next write is not hit.
func (w *wire) deadline(ctx context.Context) (release func(), err error) {
	if err := w.conn.SetWriteDeadline(time.Time{}); err != nil {
		return nil, err
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = w.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-fired
		}
	}, nil
}

func (w *wire) close() { _ = w.conn.Close() }
