// SPDX-License-Identifier: Apache-2.0

package state

import (
	"sync"
	"testing"
	"testing/synctest"
)

func TestCellWakesWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Cell[int]
		var wg sync.WaitGroup
		seen := make([]int, 8)
		for i := range seen {
			wg.Go(func() {
				for {
					v, changed := c.Get()
					if v == 3 {
						seen[i] = v
						return
					}
					<-changed
				}
			})
		}
		for v := 1; v <= 3; v++ {
			c.Set(v)
			synctest.Wait()
		}
		wg.Wait()
		for i, v := range seen {
			if v != 3 {
				t.Errorf("watcher %d saw %d, want 3", i, v)
			}
		}
	})
}

func TestCellChannelBelongsToTheValueRead(t *testing.T) {
	var c Cell[string]
	_, changed := c.Get()
	c.Set("a")
	select {
	case <-changed:
	default:
		t.Fatal("Set did not close the channel of the value it replaced")
	}
	v, changed := c.Get()
	if v != "a" {
		t.Fatalf("got %q, want a", v)
	}
	select {
	case <-changed:
		t.Fatal("channel of the newest value is closed")
	default:
	}
}
