// SPDX-License-Identifier: Apache-2.0

package initctl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Where pid 1 listens and what it writes.
const (
	SocketPath = "/run/davit/init.sock"
	ReportPath = "/run/davit/boot.json"
)

// wordSize is the size of each message, in bytes.
const wordSize = 16

// answerWithin bounds each connection, both ways.
const answerWithin = 2 * time.Second

// Word is a request to pid 1.
type Word string

// Requests.
const (
	Reboot   Word = "reboot"   // stop everything cleanly, then restart the card
	PowerOff Word = "poweroff" // stop everything cleanly, then switch off
	Query    Word = "status"   // what does pid 1 do at present
)

// State is what pid 1 does.
type State string

// States.
const (
	Booting  State = "booting"  // the boot table is being worked through
	Running  State = "running"  // davitd runs, or its restart is pending
	Cooling  State = "cooling"  // davitd has used up its restarts; a new try comes later
	Stopping State = "stopping" // on the way to reboot or power-off
)

const (
	accepted = "accepted"
	refused  = "refused"
	unknown  = "unknown"
)

// ErrRefused says that pid 1 will not do it now: it is stopping already.
var ErrRefused = errors.New("init refused the request")

// Ask sends a reboot or power-off request to pid 1 at the socket and returns
// once it was accepted. It happens soon after: the caller gets a SIGTERM then.
func Ask(ctx context.Context, socket string, w Word) error {
	if w != Reboot && w != PowerOff {
		return fmt.Errorf("ask init: %q is not a request for action", w)
	}
	answer, err := exchange(ctx, socket, w)
	if err != nil {
		return fmt.Errorf("ask init to %s: %w", w, err)
	}
	if answer != accepted {
		return fmt.Errorf("ask init to %s: %w (%q)", w, ErrRefused, answer)
	}
	return nil
}

// AskState asks pid 1 what it does.
func AskState(ctx context.Context, socket string) (State, error) {
	answer, err := exchange(ctx, socket, Query)
	if err != nil {
		return "", fmt.Errorf("ask init for its state: %w", err)
	}
	switch s := State(answer); s {
	case Booting, Running, Cooling, Stopping:
		return s, nil
	}
	return "", fmt.Errorf("ask init for its state: answer %q is not a state", answer)
}

func exchange(ctx context.Context, socket string, w Word) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return "", err
	}
	defer c.Close()
	// A deadline always exists: it was set above.
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := c.Write(encodeWord(string(w))); err != nil {
		return "", err
	}
	buf := make([]byte, wordSize+1)
	n, err := c.Read(buf)
	if err != nil {
		return "", err
	}
	return decodeWord(buf[:n])
}

func encodeWord(w string) []byte {
	b := make([]byte, wordSize)
	copy(b, w)
	return b
}

// decodeWord takes lower-case letters padded with NUL to wordSize, nothing else.
func decodeWord(b []byte) (string, error) {
	if len(b) != wordSize {
		return "", fmt.Errorf("message of %d bytes, want %d", len(b), wordSize)
	}
	n := 0
	for n < len(b) && b[n] >= 'a' && b[n] <= 'z' {
		n++
	}
	for _, c := range b[n:] {
		if c != 0 {
			return "", errors.New("message is not a word padded with NUL")
		}
	}
	if n == 0 {
		return "", errors.New("message is empty")
	}
	return string(b[:n]), nil
}

// peerIsRoot asks the kernel who connected.
func peerIsRoot(c *net.UnixConn) (bool, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return false, err
	}
	return cred.Uid == 0, nil
}
