// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tty is a console that does what a test wants.
type tty struct {
	mu    sync.Mutex
	got   strings.Builder // guarded by mu
	fail  error           // guarded by mu
	stuck chan struct{}   // when not nil, writes wait for it
}

func (t *tty) Write(p []byte) (int, error) {
	if t.stuck != nil {
		<-t.stuck
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return 0, t.fail
	}
	return t.got.Write(p)
}

func (t *tty) Close() error { return nil }

func (t *tty) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.got.String()
}

func TestConsolesGetEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c Consoles
		defer stopConsoles(&c)
		fmt.Fprintln(&c, "before any console")
		a, b := &tty{}, &tty{}
		c.attach(a, nil)
		c.attach(b, nil)
		fmt.Fprintln(&c, "after")
		c.drain(time.Second)
		for name, console := range map[string]*tty{"first": a, "second": b} {
			if got, want := console.text(), "before any console\nafter\n"; got != want {
				t.Errorf("%s console got %q, want %q", name, got, want)
			}
		}
		if n := c.dropped(); n != 0 {
			t.Errorf("%d lines lost", n)
		}
	})
}

// stopConsoles ends the goroutines, as nothing does in pid 1.
func stopConsoles(c *Consoles) {
	for _, s := range c.sinks {
		close(s.queue)
	}
}

func TestStuckConsoleBlocksNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c Consoles
		defer stopConsoles(&c)
		stuck, good := &tty{stuck: make(chan struct{})}, &tty{}
		c.attach(stuck, nil)
		c.attach(good, nil)
		const n = 3 * consoleQueue
		for i := range n {
			fmt.Fprintln(&c, "line", i)
			synctest.Wait() // so that the good one is never too slow
		}
		began := time.Now()
		c.drain(3 * time.Second)
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("drained in %v, want to wait 3s for the stuck one", took)
		}
		if got := strings.Count(good.text(), "\n"); got != n {
			t.Errorf("the other console got %d lines, want %d", got, n)
		}
		lost := c.dropped()
		if lost < n-consoleQueue-1 || lost >= n {
			t.Errorf("%d lines lost of %d, with room for %d", lost, n, consoleQueue)
		}
		close(stuck.stuck)
		synctest.Wait()
		fmt.Fprintln(&c, "it goes on")
		synctest.Wait()
		if text := stuck.text(); !strings.Contains(text, fmt.Sprintf("… %d lines lost", lost)) || !strings.HasSuffix(text, "it goes on\n") {
			t.Errorf("the stuck console ends with %q", text[len(text)-200:])
		}
	})
}

func TestConsoleIsOpenedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c Consoles
		defer stopConsoles(&c)
		first, second := &tty{}, &tty{}
		broken := true
		c.attach(first, func() (io.WriteCloser, error) {
			if broken {
				return nil, errors.New("still hung up")
			}
			return second, nil
		})
		fmt.Fprintln(&c, "one")
		synctest.Wait()
		first.mu.Lock()
		first.fail = errors.New("input/output error")
		first.mu.Unlock()
		fmt.Fprintln(&c, "two")
		synctest.Wait()
		broken = false
		fmt.Fprintln(&c, "three")
		c.drain(time.Second)
		if got, want := first.text()+second.text(), "one\nthree\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if n := c.dropped(); n != 1 {
			t.Errorf("%d lines lost, want 1", n)
		}
	})
}

func TestOpenConsoles(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		active   string // content of the kernel's list; "-": no such file
		present  []string
		fallback []string
		want     string
	}{
		"none active":         {"", []string{"ttyAMA0", "ttyS0"}, fallbackTTYs, "ttyAMA0 ttyS0"},
		"no list":             {"-", []string{"hvc0"}, fallbackTTYs, "hvc0"},
		"one":                 {"ttyAMA0\n", []string{"ttyAMA0", "hvc0"}, fallbackTTYs, "ttyAMA0"},
		"two":                 {"hvc0 ttyAMA0\n", []string{"ttyAMA0", "hvc0"}, fallbackTTYs, "hvc0 ttyAMA0"},
		"one of two missing":  {"ttyS9 hvc0\n", []string{"hvc0"}, fallbackTTYs, "hvc0"},
		"active missing":      {"ttyS9\n", []string{"hvc0"}, []string{"hvc0"}, "hvc0"},
		"nothing there":       {"ttyS9\n", nil, fallbackTTYs, ""},
		"names are no paths":  {"../secret .hidden hvc0\n", []string{"hvc0"}, fallbackTTYs, "hvc0"},
		"not more than eight": {"a b c d e f g h i j\n", []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}, nil, "a b c d e f g h"},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			dev := filepath.Join(dir, "dev")
			check(t, os.Mkdir(dev, 0o700))
			check(t, os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600))
			for _, p := range c.present {
				check(t, os.WriteFile(filepath.Join(dev, p), nil, 0o600))
			}
			active := filepath.Join(dir, "active")
			if c.active != "-" {
				check(t, os.WriteFile(active, []byte(c.active), 0o600))
			}
			var consoles Consoles
			defer stopConsoles(&consoles)
			opened, err := openConsoles(&consoles, active, dev, c.fallback)
			if got := strings.Join(opened, " "); got != c.want || (err == nil) != (c.want != "") {
				t.Fatalf("opened %q, %v; want %q", got, err, c.want)
			}
			fmt.Fprintln(&consoles, "line")
			consoles.drain(time.Minute)
			for _, tty := range opened {
				text, err := os.ReadFile(filepath.Join(dev, tty))
				if err != nil || string(text) != "line\n" {
					t.Errorf("%s got %q, %v", tty, text, err)
				}
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTerminalWithoutConsole(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	term := &terminal{sinceUp: func() time.Duration { return 2104 * time.Millisecond }, kmsg: kmsg{w: &log}}
	term.line("early")
	term.withoutConsole()
	term.line("later")
	term.critical("the end")
	want := "<7>davit-init: [  2.104s] early\n<5>davit-init: [  2.104s] early\n<5>davit-init: [  2.104s] later\n<2>davit-init: [  2.104s] the end\n"
	if got := log.String(); got != want {
		t.Errorf("kernel log %q, want %q", got, want)
	}
}

func TestKmsgRecordsAreBounded(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	k := kmsg{w: &log}
	k.put(levelDebug, strings.Repeat("x", 5000)+"\n")
	if n := log.Len(); n > 1000 || !strings.HasSuffix(log.String(), "x\n") {
		t.Errorf("record of %d bytes", n)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain\r\n":             "plain\n",
		"\x1b[2J\x07clear":      "?[2J?clear\n",
		"two\nlines\n":          "two?lines\n",
		"tab\there":             "tab here\n",
		"bad \xff utf":          "bad ? utf\n",
		"→ PCR 8 \ufffd":        "→ PCR 8 \ufffd\n",
		"c1 \u009b sep \u2028 ": "c1 ? sep ? \n",
		"":                      "\n",
	} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzPrintable states: one line comes out, and nothing that steers a terminal.
func FuzzPrintable(f *testing.F) {
	f.Add([]byte("\x1b]0;title\x07\x9b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := printable(b)
		if strings.Index(s, "\n") != len(s)-1 {
			t.Fatalf("%q is not one line", s)
		}
		for _, r := range s[:len(s)-1] {
			if r < 0x20 || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q holds %U", s, r)
			}
		}
	})
}
