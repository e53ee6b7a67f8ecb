// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"sync"
	"testing"
	"time"
)

// Of many copies sent at the same time one is executed.
func TestOneOfManyCopiesIsExecuted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(c *Config) { c.Running = 100 })
	command := f.sign(f.request(nil))
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[Code]int{}
	for range 50 {
		wg.Go(func() {
			r := f.submit(command)
			mu.Lock()
			defer mu.Unlock()
			codes[r.Code]++
		})
	}
	wg.Wait()
	if codes[OK] != 1 || codes[Replayed] != 49 || f.executed.Load() != 1 {
		t.Errorf("codes %v, executed %d times", codes, f.executed.Load())
	}
}

// A power cut or restart between verification and execution: the next life of
// the agent has the same configuration and knows no nonce.
func TestNoCommandSurvivesARestart(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	executed, waiting := f.sign(f.request(nil)), f.sign(f.request(nil))
	if r := f.submit(executed); r.Code != OK {
		t.Fatal(r.Code)
	}
	if _, _, err := f.box.check(&attempt{}, waiting); err != nil {
		t.Fatalf("the second command does not pass its checks: %v", err)
	}
	next, err := New(f.box.cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.box = next
	for _, command := range [][]byte{executed, waiting} {
		if r := f.submit(command); r.Code != NoSuchNonce {
			t.Errorf("after a restart: %s, want %s", r.Code, NoSuchNonce)
		}
	}
	if f.executed.Load() != 1 {
		t.Errorf("executed %d times", f.executed.Load())
	}
}

func TestNoncesAreBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(c *Config) { c.Used = 3 })
	for range 3 {
		if r := f.submit(f.sign(f.request(nil))); r.Code != OK {
			t.Fatal(r.Code)
		}
	}
	command := f.sign(f.request(nil))
	if r := f.submit(command); r.Code != Busy {
		t.Errorf("the fourth: %s, want %s", r.Code, Busy)
	}
	// Asking for nonces takes no room from those who have one.
	for range 1000 {
		f.box.nonces.issue()
	}
	f.clock.advance(DefaultNonceTTL + time.Millisecond)
	if r := f.submit(f.sign(f.request(nil))); r.Code != OK {
		t.Errorf("when the others are forgotten: %s", r.Code)
	}
	if r := f.submit(command); r.Code != NoSuchNonce && r.Code != Expired {
		t.Errorf("the refused one then: %s", r.Code)
	}
}

// Setting the clock back opens nothing again: not a window whose nonce was
// used, and not a used nonce that was forgotten.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	old := f.sign(f.request(nil))
	if r := f.submit(old); r.Code != OK {
		t.Fatal(r.Code)
	}
	f.clock.advance(DefaultNonceTTL + time.Minute)
	if r := f.submit(f.sign(f.request(nil))); r.Code != OK { // forgets the first nonce
		t.Fatal(r.Code)
	}
	f.clock.set(noon)
	if r := f.submit(old); r.Code != NoSuchNonce || f.executed.Load() != 2 {
		t.Errorf("after setting the clock back: %s, executed %d times", r.Code, f.executed.Load())
	}
}
