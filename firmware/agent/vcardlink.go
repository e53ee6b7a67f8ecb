// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/instance"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
	"github.com/davit-dpu/davit/firmware/supervise"
)

// errNoVcard is the answer while the vcard is down.
var errNoVcard = errors.New("the vcard is not running; see its condition in status")

// vcardPolicy restarts a vcard for ever: giving up on it would give up on its
// host's disks.
var vcardPolicy = supervise.Policy{
	MinBackoff: 50 * time.Millisecond, MaxBackoff: 10 * time.Second, Stable: time.Minute,
	Burst: 20, Window: 5 * time.Minute, CoolDown: 30 * time.Second,
}

const (
	dialTimeout   = 15 * time.Second // a vcard that does not answer by then is replaced
	statusTimeout = 10 * time.Second
	lookPause     = 20 * time.Millisecond
	refresh       = 2 * time.Second // counters are no events: they are asked for
	shutdownGrace = 10 * time.Second
)

// vcardLink keeps one vcard running and connected, and is the instances' Host.
type vcardLink struct {
	program string
	args    []string
	dir     string // socket, identity and log of the vcard
	build   string
	host    hostPort
	local   localDisks
	log     *slog.Logger
	opened  <-chan struct{} // closed once observe and onDoor may be called
	observe func(instance.Observation)
	onDoor  func(ctx context.Context, c *control.Client, door uint64)

	condition state.Cell[spec.Condition]
	status    state.Cell[*control.Status]

	doors sync.WaitGroup // bus doors being served

	mu     sync.Mutex
	client *control.Client // guarded by mu; nil while there is none
}

func (l *vcardLink) path(name string) string { return filepath.Join(l.dir, name) }

// run keeps the vcard up until ctx ends; the vcard itself goes on after that.
func (l *vcardLink) run(ctx context.Context) {
	defer l.doors.Wait()
	var history supervise.History
	for ctx.Err() == nil {
		started := time.Now()
		err := l.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		next := history.Next(vcardPolicy, started, time.Now())
		reason := fmt.Sprintf("the vcard is down: %v", err)
		l.log.Warn("vcard", "err", err, "restart in", next.After)
		l.publish(spec.PhaseFailed, reason)
		select {
		case <-l.opened:
			l.observe(instance.Observation{At: time.Now(), Reason: reason})
		default: // nobody is told yet; the condition says it
		}
		pause(ctx, next.After)
	}
}

func (l *vcardLink) publish(p spec.Phase, reason string) {
	if c, _ := l.condition.Get(); c.Phase != p || c.Reason != reason {
		l.condition.Set(spec.Condition{Phase: p, Reason: reason, Since: time.Now()})
	}
}

// serve is one life of the vcard, from adopting or starting it to its end.
func (l *vcardLink) serve(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	opts := control.Options{Build: l.build, Log: l.log, OnEvent: func(control.Event) {
		select {
		case changed <- struct{}{}:
		default: // a look is due already
		}
	}}
	proc, client, err := l.connect(ctx, opts)
	if err != nil {
		return err
	}
	defer l.disconnect(ctx, proc, client)
	if err := l.awaitOpen(ctx, proc, client); err != nil {
		return err
	}
	if err := l.attach(ctx, client); err != nil {
		return err
	}
	l.offerLocal(ctx, client)
	l.mu.Lock()
	l.client = client
	l.mu.Unlock()
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	doors := map[uint64]bool{}
	for {
		if err := l.look(ctx, client, doors); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-client.Done():
			return fmt.Errorf("connection ended: %w", client.Err())
		case <-proc.Done():
			return fmt.Errorf("process ended: %s", proc.Exit())
		case <-changed:
			pause(ctx, lookPause) // a host can make events faster than anyone needs to look
		case <-tick.C:
		}
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// offerLocal offers the local disks. One that cannot be offered is no reason to
// disturb what the vcard serves to others: it is logged, and shown in status.
func (l *vcardLink) offerLocal(ctx context.Context, client *control.Client) {
	call, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err := l.local.offer(call, client)
	if err != nil {
		l.log.Error("local disks", "err", err)
	}
	l.local.result.Set(err)
}

// disconnect leaves a vcard running when only the agent ends, and makes sure
// that it is gone otherwise: two vcards must never serve the same volumes.
func (l *vcardLink) disconnect(ctx context.Context, proc supervise.Process, client *control.Client) {
	l.mu.Lock()
	l.client = nil
	l.mu.Unlock()
	_ = client.Close()
	if ctx.Err() != nil {
		return
	}
	_ = proc.Signal(syscall.SIGKILL)
	select {
	case <-proc.Done():
	case <-ctx.Done(): // it hangs in the kernel; the next agent finds it by its identity
	}
}

// look publishes what the vcard says now.
func (l *vcardLink) look(ctx context.Context, client *control.Client, doors map[uint64]bool) error {
	at := time.Now()
	call, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := client.Status(call)
	if err != nil {
		return fmt.Errorf("ask for its status: %w", err)
	}
	l.status.Set(st)
	l.publish(spec.PhaseReady, fmt.Sprintf("pid %d answers, version %s", client.PID(), client.Peer().Build))
	o := instance.Observation{At: at, Serving: true, Host: st.Host.Phase == spec.PhaseReady, Reason: "the host: " + st.Host.Reason, VMMs: st.VMMs}
	for _, d := range st.Devices {
		o.Devices = append(o.Devices, instance.DeviceState{Instance: d.Instance, DeviceStatus: d.DeviceStatus})
	}
	l.observe(o)
	open := map[uint64]bool{}
	for _, d := range st.Doors {
		open[d] = true
		if !doors[d] {
			doors[d] = true
			l.doors.Go(func() { l.onDoor(ctx, client, d) })
		}
	}
	for d := range doors {
		if !open[d] {
			delete(doors, d)
		}
	}
	return nil
}

// connect adopts the vcard of an earlier agent, or starts a new one.
func (l *vcardLink) connect(ctx context.Context, opts control.Options) (supervise.Process, *control.Client, error) {
	if proc, client, err := l.adopt(ctx, opts); err == nil {
		l.log.Info("vcard adopted", "pid", proc.Identity().PID, "started", client.Peer().Started)
		return proc, client, nil
	} else if !errors.Is(err, supervise.ErrGone) {
		l.log.Warn("vcard of an earlier agent cannot be adopted; starting another", "err", err)
	}
	proc, err := l.start()
	if err != nil {
		return nil, nil, fmt.Errorf("start it: %w", err)
	}
	client, err := l.dial(ctx, proc, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("first contact: %w", err)
	}
	l.log.Info("vcard started", "pid", proc.Identity().PID)
	return proc, client, nil
}

// dial connects, and kills the process when it does not answer.
func (l *vcardLink) dial(ctx context.Context, proc supervise.Process, opts control.Options) (*control.Client, error) {
	call, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	go func() {
		select {
		case <-proc.Done():
			cancel()
		case <-call.Done():
		}
	}()
	client, err := control.Dial(call, l.path("control.sock"), opts)
	if err == nil {
		return client, nil
	}
	if ctx.Err() != nil {
		return nil, err // the agent ends: the vcard may go on
	}
	select {
	case <-proc.Done():
		return nil, fmt.Errorf("it ended before it answered (%s); its log is %s", proc.Exit(), l.path("log"))
	default:
	}
	_ = proc.Signal(syscall.SIGKILL)
	<-proc.Done()
	return nil, err
}

func (l *vcardLink) adopt(ctx context.Context, opts control.Options) (supervise.Process, *control.Client, error) {
	text, err := os.ReadFile(l.path("identity.json"))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: no record of one", supervise.ErrGone)
	}
	var id supervise.Identity
	if err := json.Unmarshal(text, &id); err != nil {
		return nil, nil, fmt.Errorf("identity of the vcard: %w", err)
	}
	proc, err := supervise.Adopt(id)
	if err != nil {
		return nil, nil, err
	}
	client, err := l.dial(ctx, proc, opts)
	if err != nil {
		return nil, nil, err
	}
	return proc, client, nil
}

// start starts a vcard and records who it is before anything is handed to it.
func (l *vcardLink) start() (supervise.Process, error) {
	socket, err := control.Bind(l.path("control.sock"))
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	out, err := os.OpenFile(l.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	proc, err := supervise.Start(supervise.Command{
		Path: l.program, Args: l.args, ExtraFiles: []*os.File{socket},
		SysProcAttr: control.ProcAttr(), OutputFile: out,
	}, nil)
	if err != nil {
		return nil, err
	}
	if err := l.record(proc.Identity()); err != nil {
		_ = proc.Signal(syscall.SIGKILL)
		<-proc.Done()
		return nil, err
	}
	return proc, nil
}

// record writes down who the vcard is, whole or not at all: the next agent must
// find it, or it would serve beside its successor.
func (l *vcardLink) record(id supervise.Identity) error {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path("identity.new"), text, 0o600); err != nil {
		return err
	}
	return os.Rename(l.path("identity.new"), l.path("identity.json"))
}

// attach hands a vcard its host's bus and window, once in its life.
func (l *vcardLink) attach(ctx context.Context, client *control.Client) error {
	call, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := client.Status(call)
	if err != nil {
		return fmt.Errorf("ask for its status: %w", err)
	}
	if st.Host.Attached || !l.host.present() {
		return nil
	}
	req, stream, window, err := l.host.open(call)
	if err != nil {
		return fmt.Errorf("open the bus: %w", err)
	}
	defer stream.Close()
	defer window.Close()
	if err := client.AttachBus(call, req, stream, window); err != nil {
		return fmt.Errorf("hand over the bus: %w", err)
	}
	return nil
}

// current returns the connected client.
func (l *vcardLink) current() (*control.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client == nil {
		return nil, errNoVcard
	}
	return l.client, nil
}

// AddDevice implements instance.Host.
func (l *vcardLink) AddDevice(ctx context.Context, d instance.Device, files instance.VolumeFiles) error {
	c, err := l.current()
	if err != nil {
		return err
	}
	var base []byte
	if files.Base != nil {
		base = files.BaseID[:]
	}
	err = c.AddDevice(ctx, control.AddDevice{
		Instance: d.Instance, Generation: d.Generation, Name: d.Volume.Name, Serial: d.Volume.SerialOrName(),
		Queues: d.Volume.QueueCount(), ReadOnly: d.Volume.ReadOnly, Base: base, MemoryOffset: d.MemoryOffset, MemorySize: d.MemorySize,
		Limits: d.Volume.Limits,
	}, control.DeviceFiles{Volume: files.File, Base: files.Base})
	if errors.Is(err, control.ErrExists) {
		return nil
	}
	return err
}

// LimitDevice implements instance.Host.
func (l *vcardLink) LimitDevice(ctx context.Context, inst, name string, limits *spec.Limits) error {
	c, err := l.current()
	if err != nil {
		return err
	}
	if err := c.LimitDevice(ctx, inst, name, limits); !errors.Is(err, control.ErrNotFound) {
		return err
	}
	return nil
}

// RemoveDevice implements instance.Host.
func (l *vcardLink) RemoveDevice(ctx context.Context, inst, name string) error {
	c, err := l.current()
	if err != nil {
		return err
	}
	if err := c.RemoveDevice(ctx, inst, name); !errors.Is(err, control.ErrNotFound) {
		return err
	}
	return nil
}

// StartVMM implements instance.Host.
func (l *vcardLink) StartVMM(ctx context.Context, order spec.VMMOrder, kernel, initrd *os.File) error {
	c, err := l.current()
	if err != nil {
		return err
	}
	_, err = c.StartVMM(ctx, order, kernel, initrd)
	return startError(err)
}

// startError tells a start that did not take place from one whose end nobody
// saw: the host's session or the vcard may have ended behind the order.
func startError(err error) error {
	if errors.Is(err, control.ErrNoHost) || errors.Is(err, control.ErrClosed) {
		return fmt.Errorf("%w: %w", instance.ErrHostLost, err)
	}
	return err
}

// StopVMM implements instance.Host. A VMM that the host does not have is
// stopped already.
func (l *vcardLink) StopVMM(ctx context.Context, inst, generation string, force bool) error {
	c, err := l.current()
	if err != nil {
		return err
	}
	if err := c.StopVMM(ctx, inst, generation, force); !errors.Is(err, control.ErrNotFound) {
		return err
	}
	return nil
}
