// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/davit-dpu/davit/firmware/virtio"
)

// MaxSessions is the largest number of front ends that are attached to a device at
// a time: one that uses it, and its successor.
const MaxSessions = 2

// ErrBusy says that a device has MaxSessions front ends.
var ErrBusy = errors.New("device has as many front ends as it can have")

// Server is a device that one front end after the other uses. A successor may come
// while its predecessor is still there, as that of a guest which migrates to another
// process on the same host does: it sets everything up, and its rings begin to run when
// the predecessor has stopped its own or has gone.
//
//	predecessor   ── rings run ───────────── GET_VRING_BASE ┐
//	successor        attach, negotiate, start: rings wait   └► rings run
//
// Of all sessions, only the one that has the turn runs rings. It keeps the turn until
// none of its rings is started; those of the others wait, and Status says so.
type Server struct {
	device virtio.Device

	mu       sync.Mutex
	sessions int        // guarded by mu: attached
	holder   *session   // guarded by mu: has the turn, or nil
	waiting  []*session // guarded by mu: want it, first come first
}

// NewServer makes a server of a device that nobody else serves.
func NewServer(device virtio.Device) *Server { return &Server{device: device} }

// Serve lets the front end at the other end of conn use the device. It returns
// when everything that was taken from its rings is completed and all its memory is
// unmapped: nil when the front end closed the connection, ctx's error after ctx is done, a
// *MessageError when the front end broke the protocol, ErrBusy when there are too many.
// conn is closed then.
func (v *Server) Serve(ctx context.Context, conn Conn, opts Options) error {
	if !v.attach() {
		return errors.Join(ErrBusy, conn.Close())
	}
	defer v.detach()
	return v.serve(ctx, conn, opts)
}

func (v *Server) attach() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sessions >= MaxSessions {
		return false
	}
	v.sessions++
	return true
}

func (v *Server) detach() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sessions--
}

// acquire reports whether s has the turn, or gets it. If not, s is told by granted
// when it does.
func (v *Server) acquire(s *session) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.holder == nil {
		v.holder = s
	}
	if v.holder != s && !slices.Contains(v.waiting, s) {
		v.waiting = append(v.waiting, s)
	}
	return v.holder == s
}

// release gives up the turn, or the wish for it: s runs no rings.
func (v *Server) release(s *session) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting = slices.DeleteFunc(v.waiting, func(w *session) bool { return w == s })
	if v.holder != s {
		return
	}
	v.holder = nil
	if len(v.waiting) > 0 {
		v.holder, v.waiting = v.waiting[0], v.waiting[1:]
		go v.holder.granted()
	}
}

// holds reports whether s has the turn.
func (v *Server) holds(s *session) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.holder == s
}

// granted is called when the turn comes that s waited for. Meanwhile s may have
// changed its mind, or have ended.
func (s *session) granted() {
	s.state.Lock()
	defer s.state.Unlock()
	if s.over || !s.server.holds(s) {
		return // it has released the turn; it may be waiting for the next
	}
	s.log.Info("rings of the front end before are stopped")
	for i := range s.rings {
		if err := s.update(&s.rings[i]); err != nil {
			s.stopDevice(i, err)
		}
	}
	if !s.runs() {
		s.server.release(s)
	}
	s.publish()
}

// runs reports whether any ring runs.
func (s *session) runs() bool {
	for i := range s.rings {
		if s.rings[i].run != nil {
			return true
		}
	}
	return false
}
