// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"log/slog"
	"slices"
	"testing"
)

// A session that is told of its turn when it has lost it again, and waits for the next,
// goes on waiting.
func TestGrantedLate(t *testing.T) {
	v := NewServer(nil)
	log := slog.New(slog.DiscardHandler)
	holder, late := &session{server: v, log: log}, &session{server: v, log: log}
	if !v.acquire(holder) || v.acquire(late) {
		t.Fatal("the first has the turn")
	}
	late.granted()
	if !slices.Contains(v.waiting, late) || v.holder != holder {
		t.Error("a session that waits was forgotten")
	}
}
