// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/qmp"
)

// monitor is a socket that a QEMU will connect its QMP to.
type monitor struct{ *net.UnixListener }

func newMonitor(t *testing.T, path string) monitor {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return monitor{l}
}

func (m monitor) args() []string { return []string{"-qmp", "unix:" + m.Addr().String()} }

// client is there once QEMU has set everything up.
func (m monitor) client(ctx context.Context, v *vm) *qmp.Client {
	v.t.Helper()
	stop := context.AfterFunc(ctx, func() { _ = m.Close() })
	defer stop()
	conn, err := m.Accept()
	if err != nil {
		v.fail("QEMU does not connect: " + err.Error())
	}
	c, err := qmp.Open(ctx, conn)
	if err != nil {
		v.fail(err.Error())
	}
	v.t.Cleanup(func() { _ = c.Close() })
	return c
}

// awaitMigration waits for the end of a migration.
func awaitMigration(ctx context.Context, v *vm, c *qmp.Client) {
	v.t.Helper()
	for {
		select {
		case e := <-c.Events():
			var state struct{ Status string }
			if e.Name != "MIGRATION" || json.Unmarshal(e.Data, &state) != nil {
				continue
			}
			switch state.Status {
			case "completed":
				return
			case "failed", "cancelled":
				v.fail("migration " + state.Status)
			}
		case <-c.Done():
			v.fail("QEMU ended while it migrated")
		case <-ctx.Done():
			v.fail("migration takes too long")
		}
	}
}

// A guest moves to another QEMU under load: both have the disk open for a while, one
// after the other uses it, and the memory that the disk wrote to comes along.
func TestMigrate(t *testing.T) {
	for _, mode := range []string{"churn", "hold"} {
		t.Run(mode, func(t *testing.T) { migrate(t, mode+" davit.ops=0") })
	}
}

func migrate(t *testing.T, mode string) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	l := newLinux(t, dir)
	volume := randomVolume(t, dir)
	startBackEnd(t, dir, volume)
	here, there := newMonitor(t, filepath.Join(dir, "old")), newMonitor(t, filepath.Join(dir, "next"))
	stream := "unix:" + filepath.Join(dir, "stream")
	old := l.start(t, dir, mode, "", here.args()...)
	c := here.client(ctx, old)
	old.until("ready")
	old.progress()
	next := l.start(t, dir, mode, "", append(there.args(), "-incoming", stream)...)
	there.client(ctx, next) // it has opened the disk, and waits for the stream
	old.progress()
	type args map[string]any
	for _, step := range []struct {
		command string
		args    args
	}{
		{"migrate-set-capabilities", args{"capabilities": []args{{"capability": "events", "state": true}}}},
		{"migrate-set-parameters", args{"max-bandwidth": 64 << 20, "downtime-limit": 500}},
		{"migrate", args{"uri": stream}},
	} {
		if err := c.Execute(ctx, step.command, step.args, nil); err != nil {
			old.fail(step.command + ": " + err.Error())
		}
	}
	awaitMigration(ctx, old, c)
	next.progress()
	if err := c.Execute(ctx, "quit", nil, nil); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("quit: %v", err) // it may be gone before it answers
	}
	old.end()
	next.progress()
	if _, err := io.WriteString(next.in, "stop\n"); err != nil {
		next.fail(err.Error())
	}
	digest := next.until("digest ")
	next.until("done")
	next.end()
	checkDigest(t, next, volume, digest)
	checkBackEnd(t, next, dir)
}
