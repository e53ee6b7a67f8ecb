// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tools/rig"
)

// glance is how often the console's log is read: the precision of all that is
// told by it.
const glance = 2 * time.Millisecond

// mark is a moment of a boot: the first appearance of a text on the console.
type mark struct{ name, text string }

// moment is when something was seen.
type moment struct {
	name string
	at   time.Duration // since QEMU's start
	cpu  time.Duration // processor time that QEMU had used by then, all threads
}

// watch reads a card's console from its log file and notes when each mark was
// first seen.
type watch struct {
	begin time.Time
	card  *rig.Process
	marks []mark
	stop  chan struct{}
	done  chan error // how reading ended; nil: all marks were seen

	mu   sync.Mutex
	seen map[string]moment // guarded by mu; by name
	next chan struct{}     // guarded by mu; closed when a mark is seen
}

// watchConsole begins to read what path holds after offset bytes. begin is the
// moment from which times count.
func watchConsole(card *rig.Process, path string, offset int64, begin time.Time, marks []mark) *watch {
	w := &watch{
		begin: begin, card: card, marks: marks, stop: make(chan struct{}), done: make(chan error, 1),
		seen: map[string]moment{}, next: make(chan struct{}),
	}
	go func() { w.done <- w.run(path, offset) }()
	return w
}

func (w *watch) run(path string, offset int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	tick := time.NewTicker(glance)
	defer tick.Stop()
	var text []byte
	buf := make([]byte, 64<<10)
	for left := w.marks; ; {
		n, err := f.ReadAt(buf, offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		offset += int64(n)
		text = append(text, buf[:n]...)
		if left = w.look(text, left); len(left) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-w.stop:
			return fmt.Errorf("the console did not say %q", left[0].text)
		}
	}
}

// look notes which of the marks are in the text, and gives the others.
func (w *watch) look(text []byte, marks []mark) (left []mark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range marks {
		if !bytes.Contains(text, []byte(m.text)) {
			left = append(left, m)
			continue
		}
		w.seen[m.name] = w.now(m.name)
		close(w.next)
		w.next = make(chan struct{})
	}
	return left
}

// now is this moment.
func (w *watch) now(name string) moment {
	return moment{name, time.Since(w.begin), processorTime(w.card.PID())}
}

// at tells whether a mark was seen, and gives what is closed when another one is.
func (w *watch) at(name string) (ok bool, next <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok = w.seen[name]
	return ok, w.next
}

// all are the moments of all marks, in time.
func (w *watch) all() []moment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.SortedFunc(maps.Values(w.seen), func(x, y moment) int { return cmp.Compare(x.at, y.at) })
}

// await waits until a mark is seen; it fails when the card ends before, or limit
// is over.
func (w *watch) await(b *testing.B, name string, limit time.Duration) {
	b.Helper()
	over := time.NewTimer(limit)
	defer over.Stop()
	for {
		ok, next := w.at(name)
		if ok {
			return
		}
		select {
		case <-next:
		case err := <-w.done:
			b.Fatalf("wait for %s: %v", name, err)
		case <-w.card.Done():
			b.Fatal(w.card.Failure())
		case <-over.C:
			b.Fatalf("%s: not within %v", name, limit)
		}
	}
}

// finish ends reading, in its own time when marks are still to come.
func (w *watch) finish(b *testing.B, grace time.Duration) {
	b.Helper()
	t := time.AfterFunc(grace, func() { close(w.stop) })
	defer t.Stop()
	if err := <-w.done; err != nil {
		b.Fatal(err)
	}
}

// series are the same moments of several boots.
type series struct {
	names   []string
	moments map[string][]moment
}

// add takes the moments of one boot.
func (s *series) add(boot []moment) {
	if s.moments == nil {
		s.moments = map[string][]moment{}
	}
	for _, m := range boot {
		if !slices.Contains(s.names, m.name) {
			s.names = append(s.names, m.name)
		}
		s.moments[m.name] = append(s.moments[m.name], m)
	}
}

// times are those of one moment in all boots.
func (s *series) times(name string) []time.Duration {
	var out []time.Duration
	for _, m := range s.moments[name] {
		out = append(out, m.at)
	}
	return out
}

func (s *series) median(name string) moment {
	var cpu []time.Duration
	for _, m := range s.moments[name] {
		cpu = append(cpu, m.cpu)
	}
	return moment{name, median(s.times(name)), median(cpu)}
}

// table prints medians, what each is after the one before, and the spread.
func (s *series) table() string {
	var out strings.Builder
	var before moment
	// What runs beside something else may come before it or after.
	for _, name := range slices.SortedStableFunc(slices.Values(s.names), func(x, y string) int {
		return cmp.Compare(s.median(x).at, s.median(y).at)
	}) {
		m, t := s.median(name), s.times(name)
		fmt.Fprintf(&out, "  %-28s %7.3fs %+7.3fs  (%.3f … %.3f)", name, m.at.Seconds(), (m.at - before.at).Seconds(),
			slices.Min(t).Seconds(), slices.Max(t).Seconds())
		if m.cpu > 0 {
			fmt.Fprintf(&out, "  processor %7.2fs %+6.2fs", m.cpu.Seconds(), (m.cpu - before.cpu).Seconds())
		}
		out.WriteByte('\n')
		before = m
	}
	return out.String()
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	if len(d)%2 == 1 {
		return d[len(d)/2]
	}
	return (d[len(d)/2-1] + d[len(d)/2]) / 2
}
