// SPDX-License-Identifier: Apache-2.0

package initctl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"
)

// Server answers on the control socket.
type Server struct {
	// Act begins a reboot or power-off and says whether it will happen.
	Act func(Word) bool
	// State says what pid 1 does at present.
	State func() State
	Log   *slog.Logger
}

// Listen makes the control socket, for user 0 only. A socket that is there
// already is replaced: pid 1 is the only one to make it.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace control socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// acceptPause follows a failed accept, out of descriptors for example: the next
// one may work, and without this socket the card cannot be rebooted.
const acceptPause = 100 * time.Millisecond

// Serve answers until ctx ends or somebody closes l, one connection after the
// other: each lasts at most a few seconds, so nobody can make pid 1 keep many. It
// closes l.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("control socket: %w", err)
		}
		if err != nil {
			s.Log.Warn("control socket: accept", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(acceptPause):
			}
			continue
		}
		if err := s.answer(c); err != nil {
			s.Log.Warn("control request refused", "reason", err.Error())
		}
		c.Close()
	}
}

func (s *Server) answer(c *net.UnixConn) error {
	if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	root, err := peerIsRoot(c)
	if err != nil {
		return fmt.Errorf("ask who connected: %w", err)
	}
	if !root {
		return errors.New("peer is not user 0")
	}
	buf := make([]byte, wordSize+1)
	n, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	word, err := decodeWord(buf[:n])
	if err != nil {
		return err
	}
	answer := unknown
	switch w := Word(word); w {
	case Query:
		answer = string(s.State())
	case Reboot, PowerOff:
		s.Log.Info("control request", "word", word)
		answer = refused
		if s.Act(w) {
			answer = accepted
		}
	}
	if _, err := c.Write(encodeWord(answer)); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}
