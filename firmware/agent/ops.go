// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/instance"
	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// initTimeout bounds a question to pid 1, which answers at once.
const initTimeout = 5 * time.Second

// ops is every operation of the card: the one list that a new op is added to.
// Public ops reveal nothing secret and change nothing.
func (a *agent) ops() []mailbox.Op {
	return []mailbox.Op{
		mailbox.Handle("status", a.opStatus).AsPublic(),
		mailbox.Handle("attest", a.opAttest).AsPublic(),
		mailbox.Handle("instance.create", a.opCreate),
		mailbox.Handle("instance.list", a.opList),
		mailbox.Handle("instance.show", a.opShow),
		mailbox.Handle("instance.start", a.opStart),
		mailbox.Handle("instance.stop", a.opStop),
		mailbox.Handle("instance.delete", a.opDelete),
		mailbox.HandleStream("instance.console", a.opConsole),
		mailbox.Handle("volume.list", a.opVolumes),
		mailbox.Handle("volume.show", a.opVolumeShow),
		mailbox.Handle("volume.create", a.opVolumeCreate),
		mailbox.Handle("volume.delete", a.opVolumeDelete),
		mailbox.Handle("volume.limit", a.opVolumeLimit),
		mailbox.Handle("volume.digest", a.opVolumeDigest),
		mailbox.HandleStream("log.tail", a.opLogTail),
		mailbox.Handle("reboot", a.opReboot),
	}
}

// None is the arguments of ops that take none.
type None struct{}

// AttestArgs ask for evidence.
type AttestArgs struct {
	Nonce []byte `json:"nonce"` // the verifier's, evidence.MinNonce to evidence.MaxNonce bytes
}

// Named names an instance.
type Named struct {
	Name string `json:"name"`
}

// Validate implements mailbox.Validator.
func (n Named) Validate() error { return spec.CheckName("instance", n.Name) }

// StopArgs say how an instance is stopped.
type StopArgs struct {
	Name         string `json:"name"`
	GraceSeconds uint32 `json:"graceSeconds"` // for the guest's own power-off; 0 kills at once
}

// Validate implements mailbox.Validator.
func (s StopArgs) Validate() error {
	if limit := uint32(instance.MaxGrace / time.Second); s.GraceSeconds > limit {
		return fmt.Errorf("graceSeconds: %d is more than %d", s.GraceSeconds, limit)
	}
	return spec.CheckName("instance", s.Name)
}

// CreateArgs carry an instance's spec as YAML, so that the card, not the tool
// that sends it, is the judge of it.
type CreateArgs struct {
	YAML string `json:"yaml"`
}

// TailArgs say where a log begins and whether it goes on.
type TailArgs struct {
	Lines  uint32 `json:"lines"`
	Follow bool   `json:"follow,omitempty"`
}

func (a *agent) opStatus(context.Context, *mailbox.Command, None) (any, error) {
	return a.status(), nil
}

func (a *agent) opAttest(ctx context.Context, _ *mailbox.Command, args AttestArgs) (any, error) {
	return a.attest.Evidence(ctx, args.Nonce)
}

func (a *agent) opCreate(_ context.Context, _ *mailbox.Command, args CreateArgs) (any, error) {
	in, err := spec.ParseInstance([]byte(args.YAML))
	if err != nil {
		return nil, err
	}
	if in.Name == localInstance {
		return nil, fmt.Errorf("instance name %q: reserved", in.Name)
	}
	if err := a.instances.Create(*in); err != nil {
		return nil, err
	}
	return a.instances.Show(in.Name)
}

func (a *agent) opList(context.Context, *mailbox.Command, None) (any, error) {
	return a.instances.List(), nil
}

func (a *agent) opShow(_ context.Context, _ *mailbox.Command, args Named) (any, error) {
	return a.instances.Show(args.Name)
}

func (a *agent) opStart(ctx context.Context, _ *mailbox.Command, args Named) (any, error) {
	if err := a.instances.Start(ctx, args.Name); err != nil {
		return nil, err
	}
	return a.instances.Show(args.Name)
}

func (a *agent) opStop(ctx context.Context, _ *mailbox.Command, args StopArgs) (any, error) {
	if err := a.instances.Stop(ctx, args.Name, time.Duration(args.GraceSeconds)*time.Second); err != nil {
		return nil, err
	}
	return a.instances.Show(args.Name)
}

func (a *agent) opDelete(ctx context.Context, _ *mailbox.Command, args Named) (any, error) {
	return nil, a.instances.Delete(ctx, args.Name)
}

// opReboot has init reboot the card once the receipt has left. That init is
// there, and not already going down, is known before the receipt says so.
func (a *agent) opReboot(ctx context.Context, c *mailbox.Command, _ None) (any, error) {
	if a.cfg.InitSocket == "" {
		return nil, errors.New("this board cannot be rebooted by its agent: it is not run by Davit's init")
	}
	state, err := initctl.AskState(ctx, a.cfg.InitSocket)
	if err != nil {
		return nil, err
	}
	if state != initctl.Running {
		return nil, fmt.Errorf("init is %s", state)
	}
	c.AfterReceipt(func() {
		ask, cancel := context.WithTimeout(context.Background(), initTimeout)
		defer cancel()
		if err := initctl.Ask(ask, a.cfg.InitSocket, initctl.Reboot); err != nil {
			a.log.Error("reboot", "err", err)
		}
	})
	return nil, nil
}

// opLogTail sends the agent's and the vcard's newest log lines.
func (a *agent) opLogTail(ctx context.Context, _ *mailbox.Command, args TailArgs, s mailbox.Stream) error {
	next := a.logs.last(int(args.Lines))
	for {
		lines, after, changed := a.logs.since(next)
		for _, line := range lines {
			if _, err := io.WriteString(s, line+"\n"); err != nil {
				return err
			}
		}
		next = after
		if !args.Follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// opConsole joins the requester with an instance's serial console: what the
// console printed lately first, then both ways until either side ends.
func (a *agent) opConsole(ctx context.Context, _ *mailbox.Command, args Named, s mailbox.Stream) error {
	if _, err := a.instances.Show(args.Name); err != nil {
		return err
	}
	client, err := a.vcard.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	typing := make(chan error, 1)
	go func() {
		typing <- typeOn(ctx, client, args.Name, s)
		cancel()
	}()
	var from uint64
	for {
		out, err := client.ConsoleRead(ctx, args.Name, from)
		if err != nil {
			if ctx.Err() != nil {
				return <-typing
			}
			return err
		}
		if _, err := s.Write(out.Data); err != nil {
			return err
		}
		from = out.Offset + uint64(len(out.Data))
	}
}

// typeOn hands the requester's keys to the console until its side ends.
func typeOn(ctx context.Context, client *control.Client, name string, s mailbox.Stream) error {
	buf := make([]byte, 4096)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if err := client.ConsoleWrite(ctx, name, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
