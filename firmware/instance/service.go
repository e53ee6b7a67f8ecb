// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("no such instance")
	ErrExists   = errors.New("instance is there already")
	ErrBusy     = errors.New("instance is not stopped")
)

// Config is what a Service needs.
type Config struct {
	StateDir  string // holds instances/, volumes/ and boot/; made when missing
	MemoryDir string // on tmpfs: memory volumes
	// Durable: a write to a file volume is on the storage before the guest hears
	// that it is done, flush or no flush. For cards that can lose power while
	// their host goes on: the guest then never learns that a volatile cache was
	// lost, so there must not be one.
	Durable bool
	Pool    spec.Bytes // size of the host's memory pool, its reserved head included
	Host    Host
	Log     *slog.Logger
	Now     func() time.Time
}

// Service keeps the instances of one host.
type Service struct {
	cfg     Config
	store   store
	volumes volumes
	pool    *pool
	seen    state.Cell[Observation]

	mu      sync.Mutex
	runners map[string]*runner // guarded by mu
	broken  map[string]error   // guarded by mu; records that could not be read
	run     func(*runner)      // guarded by mu; nil until Run
}

// New reads the stored instances. It starts nothing; Run does.
func New(cfg Config) (*Service, error) {
	s := &Service{
		cfg:     cfg,
		store:   store{filepath.Join(cfg.StateDir, "instances")},
		volumes: volumes{files: filepath.Join(cfg.StateDir, "volumes"), memory: cfg.MemoryDir, durable: cfg.Durable, statfs: unix.Statfs},
		pool:    &pool{size: cfg.Pool},
		runners: map[string]*runner{},
	}
	for _, dir := range []string{s.store.dir, s.volumes.files, s.volumes.memory, s.bootDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("instances: %w", err)
		}
	}
	for _, dir := range []string{s.store.dir, s.volumes.files, s.volumes.memory} {
		if err := removeTemps(dir); err != nil {
			return nil, fmt.Errorf("instances: %w", err)
		}
	}
	records, broken, err := s.store.load()
	if err != nil {
		return nil, err
	}
	s.broken = broken
	for name, rec := range records {
		if rec.Generation != "" {
			if err := s.pool.claim(name, rec.PoolOffset, rec.Spec.Memory); err != nil {
				s.broken[name] = err
				continue
			}
		}
		s.runners[name] = newRunner(s, *rec)
	}
	s.seen.Set(Observation{Reason: "the card has not looked yet"})
	return s, nil
}

func (s *Service) bootDir() string { return filepath.Join(s.cfg.StateDir, "boot") }

// Run brings instances to what is wanted of them until ctx ends, and returns
// when all its goroutines have. VMMs run on.
func (s *Service) Run(ctx context.Context) {
	var wg sync.WaitGroup
	s.mu.Lock()
	s.run = func(r *runner) { wg.Go(func() { r.loop(ctx) }) }
	for _, r := range s.runners {
		s.run(r)
	}
	s.mu.Unlock()
	s.killStrays(ctx)
	s.mu.Lock()
	s.run = nil
	s.mu.Unlock()
	wg.Wait()
}

// Observe hands in what is seen of the host. An older observation than the
// newest is ignored.
func (s *Service) Observe(o Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, _ := s.seen.Get(); o.At.Before(last.At) {
		return
	}
	s.seen.Set(o)
}

// Create stores a new instance, stopped. Volumes shared with another instance
// are refused unless both only read them, and so is writing what lies below an overlay.
func (s *Service) Create(in spec.Instance) error {
	if err := in.Validate(); err != nil {
		return err
	}
	if in.Memory > s.cfg.Pool-min(s.cfg.Pool, spec.PoolReserved) {
		return fmt.Errorf("instance %s: memory: %s is more than the host's pool holds", in.Name, in.Memory)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runners[in.Name] != nil || s.broken[in.Name] != nil {
		return fmt.Errorf("instance %s: %w", in.Name, ErrExists)
	}
	if err := s.checkVolumes(&in); err != nil {
		return err
	}
	rec := record{Spec: in, Desired: spec.PhaseStopped}
	if err := s.store.save(&rec); err != nil {
		return err
	}
	r := newRunner(s, rec)
	s.runners[in.Name] = r
	if s.run != nil {
		s.run(r)
	}
	return nil
}

// checkVolumes is called with mu held.
func (s *Service) checkVolumes(in *spec.Instance) error {
	for _, v := range in.Volumes {
		for name, r := range s.runners {
			for _, other := range r.spec.Volumes {
				if v.Name == other.Name && v.Kind == other.Kind && !(v.ReadOnly && other.ReadOnly) {
					return fmt.Errorf("instance %s: volume %s belongs to instance %s", in.Name, v.Name, name)
				}
				if other.WritesBaseOf(&v) {
					return fmt.Errorf("instance %s: volume %s: its base %s is written by instance %s", in.Name, v.Name, v.Base, name)
				}
			}
		}
		if v.Kind == spec.VolumeFile && !v.ReadOnly {
			if err := s.checkBase(v.Name, false); err != nil {
				return fmt.Errorf("instance %s: %w", in.Name, err)
			}
		}
	}
	return nil
}

func (s *Service) runner(name string) (*runner, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.broken[name]; err != nil {
		return nil, fmt.Errorf("instance %s cannot be used: %w", name, err)
	}
	r := s.runners[name]
	if r == nil {
		return nil, fmt.Errorf("instance %s: %w", name, ErrNotFound)
	}
	return r, nil
}

// Start stores that the instance is wanted running and returns; Show tells how
// it goes.
func (s *Service) Start(ctx context.Context, name string) error {
	r, err := s.runner(name)
	if err != nil {
		return err
	}
	return r.want(ctx, wish{phase: spec.PhaseRunning})
}

// Stop stores that the instance is wanted stopped and returns. The guest is
// asked to power down; after grace its VMM is killed. Grace 0 kills at once.
func (s *Service) Stop(ctx context.Context, name string, grace time.Duration) error {
	if grace < 0 || grace > MaxGrace {
		return fmt.Errorf("instance %s: grace of %v is not between 0 and %v", name, grace, MaxGrace)
	}
	r, err := s.runner(name)
	if err != nil {
		return err
	}
	return r.want(ctx, wish{phase: spec.PhaseStopped, grace: grace})
}

// Delete forgets a stopped instance. Its volumes stay.
func (s *Service) Delete(ctx context.Context, name string) error {
	s.mu.Lock()
	broken := s.broken[name] != nil
	s.mu.Unlock()
	if broken {
		return s.deleteBroken(ctx, name)
	}
	r, err := s.runner(name)
	if err != nil {
		return err
	}
	if err := r.want(ctx, wish{remove: true}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runners, name)
	return nil
}

// deleteBroken takes down all disks that the vcard serves under the name, as no
// record says which they are, before it forgets the instance: its VMM, if there is
// one, is a stray from then on.
func (s *Service) deleteBroken(ctx context.Context, name string) error {
	obs, _ := s.seen.Get()
	if !obs.Serving {
		return fmt.Errorf("instance %s: its disks cannot be looked for: %s", name, obs.Reason)
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for _, d := range obs.devices(name) {
		if err := s.cfg.Host.RemoveDevice(ctx, name, d.Name); err != nil {
			return fmt.Errorf("instance %s: remove disk %s: %w", name, d.Name, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken[name] == nil {
		return nil // deleted meanwhile
	}
	if err := s.store.remove(name); err != nil {
		return err
	}
	delete(s.broken, name)
	return nil
}

// Show returns one instance's status.
func (s *Service) Show(name string) (spec.InstanceStatus, error) {
	r, err := s.runner(name)
	if err != nil {
		return spec.InstanceStatus{}, err
	}
	return r.show(), nil
}

// List returns all instances by name, those with an unreadable record too.
func (s *Service) List() []spec.InstanceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]spec.InstanceStatus, 0, len(s.runners)+len(s.broken))
	for _, r := range s.runners {
		out = append(out, r.show())
	}
	for name, err := range s.broken {
		out = append(out, spec.InstanceStatus{
			Spec:      spec.Instance{Name: name},
			Condition: spec.Condition{Phase: spec.PhaseFailed, Reason: err.Error()},
		})
	}
	slices.SortFunc(out, func(a, b spec.InstanceStatus) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	return out
}
