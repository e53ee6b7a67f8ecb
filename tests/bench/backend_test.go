// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
)

// volumeSize is that of the block benchmark's volumes: more than caches hold.
const volumeSize = 256 << 20

// placement says on which processor each side runs, alone of the two.
type placement struct{ server, client int }

func (p placement) String() string {
	return fmt.Sprintf("back end on %d, client on %d", p.server, p.client)
}

// placements are the two ways to put the two sides on the first two processors
// that this process may use.
func placements(b *testing.B) []placement {
	b.Helper()
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		b.Fatal(err)
	}
	var cores []int
	for i := 0; len(cores) < min(2, allowed.Count()); i++ {
		if allowed.IsSet(i) {
			cores = append(cores, i)
		}
	}
	if len(cores) < 2 {
		b.Skip("one processor: a client that polls would take it from the back end")
	}
	return []placement{{cores[0], cores[1]}, {cores[1], cores[0]}}
}

// startOn starts a command that may use one processor only. It ends with this process.
func startOn(cmd *exec.Cmd, core int) error {
	runtime.LockOSThread() // a child inherits what its thread may use
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(core)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return errors.Join(cmd.Start(), unix.SchedSetaffinity(0, &before))
}

// backend is one of the two programs that are compared.
type backend struct {
	name string
	// command serves a volume, the file or, when that is empty, none that
	// stores anything, on a socket.
	command func(ctx context.Context, socket, file string) *exec.Cmd
}

// ours is vhostuser and vblk.
func ours(b *testing.B) backend {
	b.Helper()
	program := vm.Program(b, "./tests/bench/blkserver")
	return backend{"davit", func(ctx context.Context, socket, file string) *exec.Cmd {
		if file == "" {
			return exec.CommandContext(ctx, program, "--socket", socket, "null", strconv.Itoa(volumeSize))
		}
		return exec.CommandContext(ctx, program, "--socket", socket, "file", file)
	}}
}

// storageDaemon is QEMU's. Its export runs in the main loop, which is faster
// here than an I/O thread.
func storageDaemon(set *packages.Set, aio string) backend {
	return backend{"qemu-storage-daemon", func(ctx context.Context, socket, file string) *exec.Cmd {
		node := fmt.Sprintf("null-co,node-name=disk,size=%d,read-zeroes=off", volumeSize)
		if file != "" {
			node = "file,node-name=disk,cache.direct=off,aio=" + aio + ",filename=" + file
		}
		return set.CommandContext(ctx, "qemu-storage-daemon", "--blockdev", node,
			"--export", "vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,addr.type=unix,addr.path="+socket)
	}}
}

// workload is what a client does; see its flags.
type workload struct {
	op           string
	block, depth int
	sleep        bool
}

// figures are what one client saw of one back end.
type figures struct {
	Requests    uint64  `json:"requests"`
	IOPS        float64 `json:"iops"`
	MBPerSecond float64 `json:"mb_per_s"`
	Latency     struct {
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
	} `json:"latency_us"`

	server time.Duration // processor time of the back end meanwhile
	others float64       // share of the machine that others used meanwhile
}

// cpuPerRequest is the back end's processor time for a request, in microseconds.
func (f figures) cpuPerRequest() float64 {
	return float64(f.server) / float64(time.Microsecond) / float64(max(1, f.Requests))
}

// stand is what both back ends are measured with.
type stand struct {
	dir    string // for sockets, short
	client string // program
	time   time.Duration
}

// measure starts a back end for a volume, has a client do its work, and ends it.
func (s stand) measure(b *testing.B, e backend, file string, w workload, at placement) figures {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), s.time+time.Minute)
	defer cancel()
	socket := filepath.Join(s.dir, "socket")
	server := e.command(ctx, socket, file)
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	if err := startOn(server, at.server); err != nil {
		b.Fatalf("start %s: %v", e.name, err)
	}
	defer func() {
		cancel()
		_ = server.Wait() // killed: the only outcome
		_ = os.Remove(socket)
	}()
	f, err := s.drive(ctx, b, socket, server.Process.Pid, w, at.client)
	if err != nil {
		cancel()
		_ = server.Wait() // it says no more
		b.Fatalf("%s: %v\n%s", e.name, err, said.Bytes())
	}
	return f
}

// drive has a client do its work with the back end that is process pid.
func (s stand) drive(ctx context.Context, b *testing.B, socket string, pid int, w workload, core int) (figures, error) {
	b.Helper()
	client := exec.CommandContext(ctx, s.client, "--socket", socket, "--op", w.op, "--seconds", fmt.Sprint(s.time.Seconds()),
		"--block", strconv.Itoa(w.block), "--depth", strconv.Itoa(w.depth), "--sleep="+strconv.FormatBool(w.sleep))
	var out, said bytes.Buffer
	client.Stdout, client.Stderr = &out, &said
	machineBefore, before := usageNow(b), processorTime(pid)
	err := startOn(client, core)
	if err == nil {
		err = client.Wait()
	}
	if err != nil {
		return figures{}, fmt.Errorf("client: %w: %s", err, said.Bytes())
	}
	var f figures
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		return figures{}, fmt.Errorf("client's figures: %w", err)
	}
	f.server = processorTime(pid) - before
	used := client.ProcessState.UserTime() + client.ProcessState.SystemTime()
	f.others = others(machineBefore, usageNow(b), f.server+used)
	return f, nil
}
