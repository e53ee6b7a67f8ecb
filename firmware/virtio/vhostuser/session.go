// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
)

// ringFeatures are the feature bits that virtq and this package implement.
const ringFeatures = virtio.FeatureVersion1 | virtio.FeatureIndirectDesc |
	virtio.FeatureEventIdx | FeatureProtocolFeatures

const protocolFeatures = ProtocolMQ | ProtocolReplyAck | ProtocolConfig |
	ProtocolStatus | ProtocolReset | fdFeatures

// fdFeatures are the protocol features that mean nothing without file descriptors.
const fdFeatures = ProtocolMemSlots | ProtocolBackend | ProtocolLog | ProtocolInflight

// localFeatures are offered where file descriptors pass: the log is one. Packed
// rings, which virtq knows, are not offered yet: with some versions of QEMU (10.0.13)
// a guest that uses one does not go on after its back end was killed.
const localFeatures = FeatureLogAll

// DefaultPoll is about twice what it takes to wake a core that sleeps deeply.
const DefaultPoll = 50 * time.Microsecond

// MaxQueues is the largest number of virtqueues: an index has 8 bits.
const MaxQueues = 256

// Status is what a session looks like from outside.
type Status struct {
	// Features are those the driver accepted, 0 before it did.
	Features virtio.Features
	// Running is the number of rings that are being served.
	Running int
	// Waiting is the number of rings that will be when another front end of the
	// device has stopped its own.
	Waiting int
	// Stopped is the reason for which the device is stopped, or nil. It is a
	// *virtq.ProtocolError when the driver broke the virtio protocol.
	Stopped error
}

// Options are the surroundings of a session.
type Options struct {
	// Mapper makes guest memory accessible. Default: FDMapper.
	Mapper Mapper
	// Notifiers opens kicks and calls. Default: EventFDs.
	Notifiers Notifiers
	// Poll is the longest time that a queue is looked at without a kick, see
	// virtq.Config. Default: DefaultPoll; negative: queues wait for kicks.
	Poll time.Duration
	// Log gets one line for each change of state. Default: no log.
	Log *slog.Logger
	// Changed, if not nil, is told of each new status, one at a time. It must
	// not block.
	Changed func(Status)
}

// session is the state of one front end's connection.
type session struct {
	ctx    context.Context
	conn   Conn
	server *Server
	device virtio.Device
	info   virtio.Info
	opts   Options
	log    *slog.Logger

	// state is held while a message is handled, and when the turn to run rings
	// comes. It guards all but what mu guards.
	state sync.Mutex
	over  bool // nothing may be started any more

	features     virtio.Features
	protocol     uint64
	driverStatus uint64           // device status as far as the driver writes it
	mem          *guestmem.Memory // nil before the first table
	inflight     *inflight        // nil without one
	rings        []ring
	backend      backend
	dirty        *guestmem.Log // nil before the first base
	logCall      Call          // or nil

	mu      sync.Mutex
	stopped error  // guarded by mu: why the device is stopped, or nil
	status  Status // guarded by mu
}

// Serve is Server.Serve for a device that has one front end at a time.
func Serve(ctx context.Context, conn Conn, device virtio.Device, opts Options) error {
	return NewServer(device).Serve(ctx, conn, opts)
}

func (v *Server) serve(ctx context.Context, conn Conn, opts Options) error {
	s, err := newSession(ctx, conn, v, opts)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	if w, ok := v.device.(virtio.ConfigWatcher); ok {
		defer w.WatchConfig(s.configChanged)()
	}
	closed := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = conn.Close()
	})
	err = s.loop()
	if unhook() {
		_ = conn.Close()
	} else {
		<-closed
		err = ctx.Err()
	}
	s.teardown()
	return err
}

func newSession(ctx context.Context, conn Conn, server *Server, opts Options) (*session, error) {
	info := server.device.Info()
	if info.Queues < 1 || info.Queues > MaxQueues {
		return nil, fmt.Errorf("device with %d queues, 1 to %d are possible", info.Queues, MaxQueues)
	}
	if bad := info.Features & (ringFeatures | localFeatures); bad != 0 {
		return nil, fmt.Errorf("device offers ring features %#x", uint64(bad))
	}
	if opts.Mapper == nil {
		opts.Mapper = FDMapper{}
	}
	if opts.Notifiers == nil {
		opts.Notifiers = EventFDs{}
	}
	if opts.Poll == 0 {
		opts.Poll = DefaultPoll
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &session{ctx: ctx, conn: conn, server: server, device: server.device, info: info, opts: opts, log: opts.Log}
	s.rings = make([]ring, info.Queues)
	for i := range s.rings {
		s.rings[i].index = i
	}
	return s, nil
}

// loop handles messages until the front end goes or errs.
func (s *session) loop() error {
	for {
		m, err := s.conn.ReadMessage()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.state.Lock()
		err = s.handle(&m)
		s.state.Unlock()
		closeAll(m.FDs)
		if err != nil {
			return err
		}
	}
}

// teardown stops all rings and gives back what the session holds.
func (s *session) teardown() {
	s.state.Lock()
	defer s.state.Unlock()
	s.over = true
	s.haltAll()
	s.server.release(s)
	for i := range s.rings {
		s.rings[i].closeNotifiers()
	}
	s.backend.close()
	s.closeLog()
	if s.logCall != nil {
		_ = s.logCall.Close()
	}
	if s.mem != nil {
		if err := s.mem.Close(); err != nil {
			s.log.Warn("guest memory not released", "err", err)
		}
		s.mem = nil
	}
	if err := s.inflight.close(); err != nil {
		s.log.Warn("in-flight region not released", "err", err)
	}
	s.inflight = nil
	s.features = 0
	s.publish()
}

// stopDevice stops all rings because of err. It is called by the goroutine of
// the ring that failed, and waits for nobody.
func (s *session) stopDevice(queue int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped != nil {
		return
	}
	s.stopped = err
	s.log.Error("device stopped", "queue", queue, "reason", err)
	for i := range s.rings {
		s.rings[i].fail()
	}
	s.status.Stopped, s.status.Running, s.status.Waiting = err, 0, 0
	s.tell()
}

// stoppedFor returns the reason for which the device is stopped.
func (s *session) stoppedFor() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// publish tells the observer if something changed.
func (s *session) publish() {
	running, waiting := 0, 0
	for i := range s.rings {
		switch r := &s.rings[i]; {
		case r.run != nil:
			running++
		case r.waiting:
			waiting++
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := Status{Features: s.features, Running: running, Waiting: waiting, Stopped: s.stopped}
	if was := s.status; now.Features == was.Features && now.Running == was.Running && now.Waiting == was.Waiting && (now.Stopped == nil) == (was.Stopped == nil) {
		return
	}
	s.status = now
	s.tell()
}

// tell calls the observer. The caller holds mu, which keeps the order.
func (s *session) tell() {
	if s.opts.Changed != nil {
		s.opts.Changed(s.status)
	}
}
