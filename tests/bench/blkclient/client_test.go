// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio/vblk"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

const volumeSize = 1 << 20

// serve serves a volume to one front end in this process, and returns the
// connection to it.
func serve(t *testing.T, volume disk.Volume) *net.UnixConn {
	t.Helper()
	device, err := vblk.New(volume, vblk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	listener, err := net.ListenUnix("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.DialUnix("unix", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	served, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- vhostuser.Serve(context.Background(), vhostuser.NewSocketConn(served), device, vhostuser.Options{})
	}()
	t.Cleanup(func() {
		_ = conn.Close() // closed already, unless the client failed early
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return conn
}

func memory(t *testing.T) *disk.Memory {
	t.Helper()
	v, err := disk.NewMemory(volumeSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

// Every operation moves blocks, with and without sleep; only writes change the
// volume, all of the span and nothing behind it.
func TestDrive(t *testing.T) {
	const span, block = 64 << 10, 8 << 10
	for _, op := range []string{randRead, randWrite, seqRead, seqWrite} {
		for _, depth := range []int{1, 5} {
			for _, sleep := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/sleep=%v", op, depth, sleep), func(t *testing.T) {
					v := memory(t)
					j := job{op: op, block: block, depth: depth, duration: 30 * time.Millisecond, span: span, sleep: sleep}
					r, err := drive(serve(t, v), j)
					if err != nil {
						t.Fatal(err)
					}
					if r.Requests < uint64(depth) || r.IOPS <= 0 || r.Latency.P50 <= 0 || r.Latency.P999 < r.Latency.P50 {
						t.Errorf("got %+v", r)
					}
					checkWritten(t, v, block, op == seqWrite && r.Requests >= span/block, strings.HasSuffix(op, "read"))
					checkZero(t, v, span)
				})
			}
		}
	}
}

// checkWritten looks for the client's pattern in the first blocks of a volume:
// in all, in none, or in some.
func checkWritten(t *testing.T, v disk.Volume, block int, all, none bool) {
	t.Helper()
	pattern, got := make([]byte, block), make([]byte, block)
	for i := range pattern {
		pattern[i] = byte(i) ^ byte(i>>8)
	}
	n := 0
	for i := range 8 {
		if err := v.ReadAt([][]byte{got}, int64(i*block)); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(got, pattern) {
			n++
		}
	}
	if all && n != 8 || none && n != 0 || !none && n == 0 {
		t.Errorf("%d of 8 blocks were written", n)
	}
}

func checkZero(t *testing.T, v disk.Volume, from int64) {
	t.Helper()
	rest := make([]byte, volumeSize-from)
	if err := v.ReadAt([][]byte{rest}, from); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(rest, make([]byte, len(rest))) {
		t.Error("what is behind the span was written")
	}
}

// An idle front end moves one block.
func TestIdle(t *testing.T) {
	r, err := drive(serve(t, memory(t)), job{op: idle, block: 512, depth: 1, duration: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 1 || r.Seconds < 0.01 {
		t.Errorf("got %+v", r)
	}
}

// A request that fails ends the job.
func TestStatus(t *testing.T) {
	v := memory(t)
	conn := serve(t, v)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := drive(conn, job{op: randRead, block: 4096, depth: 2, duration: time.Minute})
	if r != nil || err == nil || !strings.Contains(err.Error(), "status 0x1") {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		job  job
		want string
	}{
		{"operation", job{op: "trim", block: 512, depth: 1}, `operation "trim"`},
		{"half a sector", job{op: randRead, block: 256, depth: 1}, "blocks of 256 bytes"},
		{"no depth", job{op: randRead, block: 512}, "depth 0"},
		{"more than the ring", job{op: randRead, block: 512, depth: 86}, "depth 86"},
		{"no room", job{op: randRead, block: 4096, depth: 1, span: 2048}, "hold no block"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := drive(serve(t, memory(t)), tt.job)
			if r != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %+v, %v, want %q", r, err, tt.want)
			}
		})
	}
}

// A turn of the client allocates nothing.
func TestNoAllocation(t *testing.T) {
	j := job{op: randRead, block: 4096, depth: 4}
	c, err := connect(serve(t, memory(t)), j)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}()
	l := newLoad(c, j, volumeSize)
	for _, head := range l.heads {
		l.offer(head)
	}
	if err := l.publish(); err != nil {
		t.Fatal(err)
	}
	w := &watch{load: l}
	got := testing.AllocsPerRun(200, func() {
		for before := l.done; l.done == before; {
			if _, err := w.more(); err != nil {
				t.Fatal(err)
			}
			if err := l.turn(true); err != nil {
				t.Fatal(err)
			}
		}
	})
	if got != 0 {
		t.Errorf("%v allocations for each turn", got)
	}
	if err := l.drain(w); err != nil {
		t.Error(err)
	}
}

func TestPercentile(t *testing.T) {
	sorted := make([]time.Duration, 1000)
	for i := range sorted {
		sorted[i] = time.Duration(i+1) * time.Microsecond
	}
	for thousandths, want := range map[int]float64{0: 1, 500: 500, 990: 990, 999: 999, 1000: 1000} {
		if got := percentile(sorted, thousandths); got != want {
			t.Errorf("%d thousandths: got %v, want %v", thousandths, got, want)
		}
	}
	if got := percentile(nil, 500); got != 0 {
		t.Errorf("no samples: got %v", got)
	}
}
