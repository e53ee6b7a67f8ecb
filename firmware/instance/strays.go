// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// A host may name as many VMMs as it likes, and report as often: what it makes
// the card do about them is bounded.
const (
	strayRound = time.Second // between two rounds of kills, so between two of one stray
	strayKills = 8           // in one round
)

// killStrays has VMMs killed that no record knows: memory that the card thinks
// free must not be in use.
func (s *Service) killStrays(ctx context.Context) {
	for {
		obs, changed := s.seen.Get()
		tried, again := s.killSome(ctx, &obs)
		if tried {
			wait := time.NewTimer(strayRound)
			select {
			case <-ctx.Done():
				wait.Stop()
				return
			case <-wait.C:
			}
		}
		if again {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// killSome makes one round of kills. Again says that some are left, or that a
// kill did not succeed.
func (s *Service) killSome(ctx context.Context, obs *Observation) (tried, again bool) {
	n := 0
	for _, v := range obs.VMMs {
		if !obs.Host || v.State != spec.VMMRunning || s.knows(v) {
			continue
		}
		if n == strayKills {
			return true, true
		}
		n++
		s.cfg.Log.Warn("killing a vmm that the card did not order", "instance", v.Instance, "generation", v.Generation)
		call, cancel := context.WithTimeout(ctx, stopTimeout)
		if err := s.cfg.Host.StopVMM(call, v.Instance, v.Generation, true); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("kill stray vmm", "instance", v.Instance, "err", err)
			again = true
		}
		cancel()
	}
	return n > 0, again
}

// stray finds a VMM at the host whose memory the pool does not know of: one that
// no record orders, or one whose record cannot be read.
func (s *Service) stray(obs *Observation) (spec.VMMStatus, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range obs.VMMs {
		if r := s.runners[v.Instance]; v.State == spec.VMMRunning && (r == nil || r.generation() != v.Generation) {
			return v, true
		}
	}
	return spec.VMMStatus{}, false
}

func (s *Service) knows(v spec.VMMStatus) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runners[v.Instance]
	return s.broken[v.Instance] != nil || r != nil && r.generation() == v.Generation
}
