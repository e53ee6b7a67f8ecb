// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/audit"
)

// testLink is a requester that sends input and keeps what it gets.
type testLink struct {
	input    io.Reader
	output   bytes.Buffer
	receipts [][]byte
	broken   error

	authenticated int // how often it was said, before any receipt
}

func (l *testLink) Authenticated() {
	if len(l.receipts) == 0 {
		l.authenticated++
	}
}

func (l *testLink) Receipt(receipt []byte) error {
	l.receipts = append(l.receipts, receipt)
	return l.broken
}

func (l *testLink) Stream(ctx context.Context) (context.Context, Stream) {
	return ctx, struct {
		io.Reader
		io.Writer
	}{l.input, &l.output}
}

func TestStream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	command := f.signAs(f.viewer, "viewer", f.request(func(r *Request) { r.Op, r.Args = "log.tail", nil }))
	l := &testLink{input: strings.NewReader("hello")}
	code, err := f.box.Serve(t.Context(), Door{Name: "test"}, command, l)
	if err != nil || code != OK || l.output.String() != "hello" || len(l.receipts) != 2 {
		t.Fatalf("code %s, %v, %q, %d receipts", code, err, l.output.String(), len(l.receipts))
	}
	first, last := f.verify(l.receipts[0], command), f.verify(l.receipts[1], command)
	if first.Code != Accepted || last.Code != OK || first.AuditIndex != last.AuditIndex || first.AuditIndex == 0 {
		t.Errorf("receipts %+v and %+v", first, last)
	}
}

// Who is told to be authenticated keeps a place at the door, and is refused at a
// lower price: nobody who only replays, or signs nothing, may be.
func TestAuthenticated(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	used := f.sign(f.request(nil))
	if r := f.submit(used); r.Code != OK {
		t.Fatalf("code %s", r.Code)
	}
	for name, c := range map[string]struct {
		message []byte
		code    Code
		want    int
	}{
		"command":           {f.sign(f.request(nil)), OK, 1},
		"bad arguments":     {f.sign(f.request(func(r *Request) { r.Args = map[string]string{"no": "such"} })), BadArgs, 1},
		"not allowed":       {f.signAs(f.viewer, "viewer", f.request(nil)), NotAllowed, 1},
		"stream":            {f.signAs(f.viewer, "viewer", f.request(func(r *Request) { r.Op, r.Args = "log.tail", nil })), OK, 1},
		"public":            {f.public("status", nil), OK, 0},
		"public, bad args":  {f.public("status", map[string]string{"no": "such"}), BadArgs, 0},
		"unsigned":          {f.public("instance.stop", nil), Unsigned, 0},
		"replayed":          {used, Replayed, 0},
		"for another card":  {f.sign(f.request(func(r *Request) { r.Card = "another" })), WrongCard, 0},
		"by another's key":  {f.signAs(f.viewer, "operator", f.request(nil)), BadSignature, 0},
		"garbage":           {[]byte("garbage"), Malformed, 0},
		"more than allowed": {make([]byte, MaxCommand+1), TooLarge, 0},
	} {
		l := &testLink{input: strings.NewReader("")}
		code, err := f.box.Serve(t.Context(), Door{Name: "test"}, c.message, l)
		if err != nil || code != c.code || l.authenticated != c.want {
			t.Errorf("%s: %s, %v, said %d times to be authenticated; want %s, %d", name, code, err, l.authenticated, c.code, c.want)
		}
		if code.Refused() != (code != OK) {
			t.Errorf("%s: refused is %v", code, code.Refused())
		}
	}
}

func TestStreamToNobody(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	command := f.signAs(f.viewer, "viewer", f.request(func(r *Request) { r.Op, r.Args = "log.tail", nil }))
	gone := errors.New("gone")
	if _, err := f.box.Serve(t.Context(), Door{Name: "test"}, command, &testLink{broken: gone}); !errors.Is(err, gone) {
		t.Errorf("error %v, want %v", err, gone)
	}
	records := f.audit.all()
	if last := records[len(records)-1]; f.executed.Load() != 0 || last.Kind != audit.KindDone || last.Code != "failed" {
		t.Errorf("executed %d times, record %+v", f.executed.Load(), last)
	}
}

func TestAfterReceipt(t *testing.T) {
	t.Parallel()
	var l testLink
	sent := -1
	f := newFixture(t, func(c *Config) {
		c.Ops = append(c.Ops, Handle("instance.reboot", func(_ context.Context, c *Command, _ struct{}) (any, error) {
			c.AfterReceipt(func() { sent = len(l.receipts) })
			return nil, nil
		}))
	})
	command := f.sign(f.request(func(r *Request) { r.Op, r.Args = "instance.reboot", nil }))
	if _, err := f.box.Serve(t.Context(), Door{Name: "test"}, command, &l); err != nil || sent != 1 {
		t.Errorf("called with %d receipts sent (err %v), want 1", sent, err)
	}
}

func TestStreamsHaveTheirOwnRoom(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(c *Config) { c.Running, c.Streams = 1, 1 })
	tail := func() []byte {
		return f.signAs(f.viewer, "viewer", f.request(func(r *Request) { r.Op, r.Args = "log.tail", nil }))
	}
	open, end := io.Pipe()
	done := make(chan error)
	first := tail()
	go func() {
		_, err := f.box.Serve(t.Context(), Door{Name: "test"}, first, &testLink{input: open})
		done <- err
	}()
	if _, err := end.Write([]byte("x")); err != nil { // returns once the op reads
		t.Fatal(err)
	}
	second, l := tail(), &testLink{}
	if code, err := f.box.Serve(t.Context(), Door{Name: "test"}, second, l); err != nil || code != Busy {
		t.Errorf("a second stream: %s, %v; want %s", code, err, Busy)
	}
	if r := f.submit(f.sign(f.request(nil))); r.Code != OK {
		t.Errorf("a command beside an open stream: %s", r.Code)
	}
	if err := errors.Join(end.Close(), <-done); err != nil {
		t.Fatal(err)
	}
}
