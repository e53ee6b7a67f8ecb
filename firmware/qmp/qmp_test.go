// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// replay plays the server of a recorded transcript: it sends the S lines, and
// at each C line expects that request.
func replay(t *testing.T, conn net.Conn, transcript string) {
	t.Helper()
	defer conn.Close()
	in := bufio.NewScanner(conn)
	for _, line := range strings.Split(strings.TrimSpace(transcript), "\n") {
		text := line[2:]
		if line[0] == 'S' {
			if _, err := io.WriteString(conn, text+"\r\n"); err != nil {
				return
			}
			continue
		}
		if !in.Scan() {
			t.Errorf("client ended before %s", text)
			return
		}
		var got, want any
		if err := errors.Join(json.Unmarshal(in.Bytes(), &got), json.Unmarshal([]byte(text), &want)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("request %s, want %s (%v)", in.Bytes(), text, err)
		}
	}
}

func TestTranscript(t *testing.T) {
	b, err := os.ReadFile("testdata/qemu-10.0.txt")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		a, s := net.Pipe()
		go replay(t, s, string(b))
		c, err := Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if v := c.Version(); v != (Version{10, 0, 2}) {
			t.Errorf("version %+v", v)
		}
		var st struct{ Status string }
		if err := c.Execute(t.Context(), "query-status", nil, &st); err != nil || st.Status != "running" {
			t.Errorf("status %+v, %v", st, err)
		}
		for _, cmd := range []string{"stop", "cont"} {
			if err := c.Execute(t.Context(), cmd, nil, nil); err != nil {
				t.Error(err)
			}
		}
		var refused *CommandError
		if err := c.Execute(t.Context(), "no-such-command", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
			t.Errorf("unknown command: %v", err)
		}
		for _, cmd := range []string{"system_powerdown", "quit"} {
			if err := c.Execute(t.Context(), cmd, nil, nil); err != nil {
				t.Error(err)
			}
		}
		var names []string
		var last Event
		for last = range c.Events() {
			names = append(names, last.Name)
		}
		if got := strings.Join(names, " "); got != "STOP RESUME POWERDOWN SHUTDOWN" {
			t.Errorf("events %s", got)
		}
		if !strings.Contains(string(last.Data), "host-qmp-quit") || last.Time.Unix() != 1795458203 {
			t.Errorf("last event %+v", last)
		}
		if c.Err() != io.EOF {
			t.Errorf("ended with %v", c.Err())
		}
	})
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}`

// open returns a client and the server's end of its stream, after negotiation.
func open(t *testing.T) (*Client, net.Conn, *bufio.Scanner) {
	t.Helper()
	a, s := net.Pipe()
	in := bufio.NewScanner(s)
	go func() {
		_, _ = io.WriteString(s, greeting+"\n")
		in.Scan()
		_, _ = io.WriteString(s, `{"return": {}, "id": 1}`+"\n")
	}()
	c, err := Open(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c, s, in
}

// hasty is a VMM that has answered and is gone before the writer of the request
// gets to run again.
type hasty struct {
	io.Reader
	out    *io.PipeWriter
	client *Client // nil while the client opens
}

func (h *hasty) Write(line []byte) (int, error) {
	var r struct{ ID uint64 }
	if err := json.Unmarshal(line, &r); err != nil {
		return 0, err
	}
	_, err := fmt.Fprintf(h.out, `{"return": {}, "id": %d}`+"\n", r.ID)
	if h.client != nil {
		err = errors.Join(err, h.out.Close())
		<-h.client.Done()
	}
	return len(line), err
}

func (h *hasty) Close() error { return h.out.Close() }

func TestAnswerBeforeTheEnd(t *testing.T) {
	for range 64 { // of which each would fail half of the time
		in, out := io.Pipe()
		h := &hasty{Reader: in, out: out}
		go io.WriteString(out, greeting+"\n")
		c, err := Open(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		h.client = c
		if err := c.Execute(t.Context(), "quit", nil, nil); err != nil {
			t.Fatalf("quit, which was answered: %v", err)
		}
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a, s := net.Pipe()
		defer s.Close()
		if c, err := Open(ctx, a); c != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open without a greeting: %v", err)
		}
		c, srv, in := open(t)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go in.Scan()
		if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("slow command: %v", err)
		}
		// Its late answer is still an answer.
		if _, err := io.WriteString(srv, `{"return": {}, "id": 2}`+"\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c.Err() != nil {
			t.Errorf("a late answer ended the client: %v", c.Err())
		}
		// A server that takes nothing ends it: half a line may be out.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Execute(ctx, "stuck", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stuck command: %v", err)
		}
		<-c.Done()
		if err := c.Execute(t.Context(), "later", nil, nil); err == nil {
			t.Error("a command after the end")
		}
	})
}

func TestBadServers(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":             `hello`,
		"not an object":       `[1]`,
		"two objects":         `{"return":{},"id":1} {"return":{},"id":2}`,
		"nothing known":       `{"id":1}`,
		"two kinds":           `{"return":{},"event":"X","timestamp":{"seconds":1,"microseconds":1}}`,
		"second greeting":     greeting,
		"answer without id":   `{"return":{}}`,
		"answer to nothing":   `{"return":{},"id":99}`,
		"id of another type":  `{"return":{},"id":"x"}`,
		"event without time":  `{"event":"X"}`,
		"event without name":  `{"event":"","timestamp":{"seconds":1,"microseconds":1}}`,
		"event name with ESC": `{"event":"A\u001b","timestamp":{"seconds":1,"microseconds":1}}`,
		"line without end":    strings.Repeat("x", MaxLine+10),
		"deep nesting":        `{"return":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `,"id":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _ := open(t)
				_, _ = io.WriteString(s, line+"\n")
				synctest.Wait()
				if !errors.Is(c.Err(), ErrProtocol) {
					t.Errorf("client: %v", c.Err())
				}
			})
		})
	}
	for _, first := range []string{`{"return":{},"id":1}`, `{"QMP":{"version":{"qemu":{"major":1}}}}`, `{"QMP":{}}`} {
		synctest.Test(t, func(t *testing.T) {
			a, s := net.Pipe()
			defer s.Close()
			go func() { _, _ = io.WriteString(s, first+"\n") }()
			if c, err := Open(t.Context(), a); c != nil || !errors.Is(err, ErrProtocol) {
				t.Errorf("greeted with %s: %v", first, err)
			}
		})
	}
}

func TestEventFloodKeepsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _ := open(t)
		const n = MaxEvents + 100
		for i := range n {
			if _, err := fmt.Fprintf(s, `{"event":"E%d","timestamp":{"seconds":1,"microseconds":1}}`+"\n", i); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if c.Dropped() != 100 || len(c.Events()) != MaxEvents {
			t.Errorf("dropped %d, kept %d", c.Dropped(), len(c.Events()))
		}
		s.Close()
		var last Event
		for last = range c.Events() {
		}
		if last.Name != fmt.Sprintf("E%d", n-1) {
			t.Errorf("the last event is %s", last.Name)
		}
	})
}

func TestPendingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, in := open(t)
		go func() {
			for in.Scan() {
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		results := make(chan error, MaxPending+5)
		for range cap(results) {
			go func() { results <- c.Execute(ctx, "x", nil, nil) }()
		}
		synctest.Wait()
		if len(results) != 5 {
			t.Errorf("%d commands were turned away, want 5", len(results))
		}
		<-ctx.Done()
		synctest.Wait()
	})
}

func FuzzMessage(f *testing.F) {
	for _, s := range []string{greeting, `{"return":{},"id":1}`, `{"error":{"class":"a","desc":"b"},"id":2}`, `{"event":"X","data":{},"timestamp":{"seconds":1,"microseconds":2}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if (err == nil) == (m == nil) || err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("message %+v with error %v", m, err)
		}
		if m == nil {
			return
		}
		kinds := 0
		for _, is := range []bool{m.greeting != nil, m.event != nil, m.answer != nil} {
			if is {
				kinds++
			}
		}
		if kinds != 1 {
			t.Fatalf("a message of %d kinds", kinds)
		}
	})
}

// FuzzServer feeds a client whole streams.
func FuzzServer(f *testing.F) {
	b, err := os.ReadFile("testdata/qemu-10.0.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(strings.ReplaceAll(string(b), "S ", ""))
	f.Add(greeting + "\n" + `{"return": {}, "id": 1}` + "\n" + strings.Repeat(`{"event":"E","timestamp":{"seconds":1,"microseconds":1}}`+"\n", 100))
	f.Fuzz(func(t *testing.T, stream string) {
		rw := struct {
			io.Reader
			io.Writer
			io.Closer
		}{strings.NewReader(stream), io.Discard, io.NopCloser(nil)}
		c, err := Open(t.Context(), rw)
		if (err == nil) == (c == nil) {
			t.Fatalf("client %v with error %v", c, err)
		}
		if c == nil {
			return
		}
		<-c.Done()
		if c.Err() == nil || len(c.Events()) > MaxEvents {
			t.Fatalf("ended with %v and %d events", c.Err(), len(c.Events()))
		}
	})
}
