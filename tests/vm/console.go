// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tools/rig"
)

// Progress is how far the load of the demonstration's guest has come.
type Progress struct{ Boot, Round int }

func (p Progress) before(q Progress) bool {
	return p.Boot < q.Boot || p.Boot == q.Boot && p.Round < q.Round
}

// Console follows an instance's console to the end of the test, through every
// agent, vcard and hostd that there is meanwhile. Output may be lost while one
// of them is away, and is seen again when one returns.
type Console struct {
	name string

	mu      sync.Mutex
	contact rig.Contact   // guarded by mu
	changed chan struct{} // guarded by mu; closed at the next line
	lines   []string      // guarded by mu; the newest
	far     Progress      // guarded by mu; the farthest that two lines in a row confirm
	last    Progress      // guarded by mu; of the last line of this connection
	bad     []string      // guarded by mu; lines that no run may have
	ended   error         // guarded by mu; why the last connection ended
	typing  io.Writer     // guarded by mu; nil while not connected
}

const keptLines = 2000

// badLine is what a guest says when a disk fails it.
var badLine = regexp.MustCompile(`I/O error|EXT4-fs (error|warning)|Aborting journal|DAVIT-LOAD error|DAVIT-PROOF .* error|Kernel panic|blocked for more than|DAVIT-GUEST (root|initramfs): `)

var loadLine = regexp.MustCompile(`DAVIT-LOAD boot=(\d+) round=(\d+) ok\s*$`)

// Follow begins to follow a console. A line that tells of an I/O error fails
// the test when it ends, at the latest.
func (e *Env) Follow(t testing.TB, instance string) *Console {
	t.Helper()
	c := &Console{name: instance, contact: *e.Operator.Contact, changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		c.Check(t)
		if t.Failed() {
			t.Logf("==== console of %s (far: %+v, last connection: %v)\n  %s", instance, c.far, c.ended, strings.Join(c.lines[max(0, len(c.lines)-60):], "\n  "))
		}
	})
	return c
}

// Move tells that the card answers elsewhere now.
func (c *Console) Move(to *rig.Contact) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.contact = *to
}

func (c *Console) run(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := c.join(ctx)
		c.mu.Lock()
		c.ended, c.typing, c.last = err, nil, Progress{}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// join follows the console through one connection.
func (c *Console) join(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	contact := c.contact
	c.mu.Unlock()
	client, err := contact.Dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	stream, err := client.Stream(ctx, "instance.console", map[string]string{"name": c.name}, "")
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.typing = stream
	c.mu.Unlock()
	lines := bufio.NewScanner(stream)
	for lines.Scan() {
		c.add(strings.TrimRight(lines.Text(), "\r"))
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

func (c *Console) add(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lines = append(c.lines, line); len(c.lines) > keptLines {
		c.lines = c.lines[1:]
	}
	if badLine.MatchString(line) {
		c.bad = append(c.bad, line)
	}
	if m := loadLine.FindStringSubmatch(line); m != nil {
		boot, err1 := strconv.Atoi(m[1])
		round, err2 := strconv.Atoi(m[2])
		now := Progress{boot, round}
		// One line alone may be two halves with a gap between them.
		if err1 == nil && err2 == nil && now == (Progress{c.last.Boot, c.last.Round + 1}) && c.far.before(now) {
			c.far = now
		}
		c.last = now
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// Check fails the test if the guest told of an error.
func (c *Console) Check(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.bad {
		t.Errorf("console of %s: %s", c.name, line)
	}
	c.bad = nil
}

// Far is how far the load is known to have come.
func (c *Console) Far() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.far
}

// Advance waits for n more rounds of the load in the boot that is under way or
// a later one, and for no error.
func (c *Console) Advance(t testing.TB, n int, limit time.Duration) Progress {
	t.Helper()
	from := c.Far()
	return c.await(t, limit, fmt.Sprintf("%d rounds after %+v", n, from), func() bool {
		return c.far.Boot > from.Boot && c.far.Round > n || c.far.Boot == from.Boot && c.far.Round >= from.Round+n
	})
}

// AwaitBoot waits until the load of a later boot goes on.
func (c *Console) AwaitBoot(t testing.TB, after int, limit time.Duration) Progress {
	t.Helper()
	return c.await(t, limit, fmt.Sprintf("a boot after %d", after), func() bool { return c.far.Boot > after })
}

// AwaitLine waits for a line that holds a text, also one that was there before.
func (c *Console) AwaitLine(t testing.TB, text string, limit time.Duration) string {
	t.Helper()
	found := ""
	c.await(t, limit, "a line with "+strconv.Quote(text), func() bool {
		for _, line := range c.lines {
			if strings.Contains(line, text) {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

// await waits for enough, which is called with mu held.
func (c *Console) await(t testing.TB, limit time.Duration, what string, enough func() bool) Progress {
	t.Helper()
	deadline := time.After(limit)
	for {
		c.mu.Lock()
		ok, far, changed, bad := enough(), c.far, c.changed, len(c.bad)
		c.mu.Unlock()
		if bad > 0 {
			c.Check(t)
			t.FailNow()
		}
		if ok {
			return far
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("console of %s: not within %v: %s; it is at %+v", c.name, limit, what, far)
		}
	}
}

// Shell types a command at the guest's shell, waits for its end, and returns
// what it printed; its exit code must be the one wanted.
func (c *Console) Shell(t testing.TB, command string, code int, limit time.Duration) string {
	t.Helper()
	c.mu.Lock()
	c.lines = append(c.lines, "") // what follows is the answer
	from, typing := len(c.lines), c.typing
	c.mu.Unlock()
	if typing == nil {
		t.Fatalf("console of %s is not connected: %v", c.name, c.ended)
	}
	// The echo of what is typed holds "$((", the output holds the number.
	mark := strconv.FormatInt(time.Now().UnixNano()%1e9, 10)
	if _, err := fmt.Fprintf(typing, "%s; echo END-$((%s+1))-RC$?\n", command, mark); err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(mark)
	if err != nil {
		t.Fatal(err)
	}
	end := fmt.Sprintf("END-%d-RC", n+1)
	var out []string
	c.await(t, limit, "the end of "+command, func() bool {
		for i, line := range c.lines[min(from, len(c.lines)):] {
			if strings.Contains(line, end) {
				out = append([]string(nil), c.lines[from:from+i+1]...)
				return true
			}
		}
		return false
	})
	last := out[len(out)-1]
	if got := last[strings.Index(last, end)+len(end):]; got != strconv.Itoa(code) {
		t.Fatalf("%s at the shell of %s: exit code %s, want %d\n%s", command, c.name, got, code, strings.Join(out, "\n"))
	}
	return strings.Join(out[:len(out)-1], "\n")
}

// Connected is nil while the console can be typed on.
func (c *Console) Connected() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.typing == nil {
		return fmt.Errorf("console of %s is not connected: %v", c.name, c.ended)
	}
	return nil
}
