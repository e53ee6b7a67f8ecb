// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// ErrProtocol says that the other end does not speak QMP.
var ErrProtocol = errors.New("not the QEMU Machine Protocol")

// Version is QEMU's version from the greeting.
type Version struct{ Major, Minor, Micro int }

// Event is something that happened to the VM.
type Event struct {
	Name string
	Data json.RawMessage // object; nil when the event carries none
	Time time.Time       // the VMM's clock, unverified
}

// CommandError is QEMU's refusal of a command.
type CommandError struct {
	Class       string
	Description string // printable, bounded
}

// Error implements error.
func (e *CommandError) Error() string { return e.Class + ": " + e.Description }

// message is one line from the server; exactly one pointer is set.
type message struct {
	greeting *Version
	event    *Event
	answer   *answer
}

type answer struct {
	id     uint64
	result json.RawMessage
	err    *CommandError
}

// wire is every member that a server's line may have.
type wire struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro *int }
		}
		Capabilities []string
	}
	Event     *string
	Data      json.RawMessage
	Timestamp *struct{ Seconds, Microseconds int64 }
	Return    json.RawMessage
	Error     *struct{ Class, Desc string }
	ID        *uint64
}

// Bounds of texts taken from the server.
const (
	maxName        = 64
	maxDescription = 512
)

// parseMessage reads one line. The error wraps ErrProtocol.
func parseMessage(line []byte) (*message, error) {
	var w wire
	dec := json.NewDecoder(bytes.NewReader(line))
	if err := dec.Decode(&w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more than one object in a line", ErrProtocol)
	}
	kinds := 0
	for _, is := range []bool{w.QMP != nil, w.Event != nil, w.Return != nil, w.Error != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, fmt.Errorf("%w: a line of %d kinds", ErrProtocol, kinds)
	}
	switch {
	case w.QMP != nil:
		return w.greeting()
	case w.Event != nil:
		return w.event()
	case w.ID == nil:
		return nil, fmt.Errorf("%w: an answer without an id", ErrProtocol)
	case w.Error != nil:
		return &message{answer: &answer{id: *w.ID, err: &CommandError{clean(w.Error.Class, maxName), clean(w.Error.Desc, maxDescription)}}}, nil
	}
	return &message{answer: &answer{id: *w.ID, result: w.Return}}, nil
}

func (w *wire) greeting() (*message, error) {
	q := w.QMP.Version.QEMU
	if q.Major == nil || q.Minor == nil || q.Micro == nil {
		return nil, fmt.Errorf("%w: greeting without a version", ErrProtocol)
	}
	return &message{greeting: &Version{*q.Major, *q.Minor, *q.Micro}}, nil
}

func (w *wire) event() (*message, error) {
	if w.Timestamp == nil || *w.Event == "" || len(*w.Event) > maxName || clean(*w.Event, maxName) != *w.Event {
		return nil, fmt.Errorf("%w: event %q", ErrProtocol, clean(*w.Event, maxName))
	}
	return &message{event: &Event{
		Name: *w.Event, Data: w.Data,
		Time: time.Unix(w.Timestamp.Seconds, w.Timestamp.Microseconds*1000).UTC(),
	}}, nil
}

// clean makes a text fit for a log line.
func clean(s string, limit int) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s[:min(len(s), limit)])
}

// request is one line to the server.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}
