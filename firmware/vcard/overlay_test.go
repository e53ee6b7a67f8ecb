// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
)

// layers are a base of 1 MiB that begins with block(7), and the store of an overlay
// of 2 MiB over it.
func layers(t *testing.T, r *vcardtest.Rig, id disk.BaseID) (base, store *os.File) {
	t.Helper()
	base = r.Volume(1 << 20)
	if _, err := base.WriteAt(block(7), 0); err != nil {
		t.Fatal(err)
	}
	h := disk.OverlayHeader{Size: 2 << 20, BaseSize: 1 << 20, ClusterSize: disk.DefaultClusterSize, Base: id}
	store = r.Volume(h.StoreSize())
	v, err := disk.OpenFile(r.Reopen(store), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(disk.FormatOverlay(v, h), v.Close()); err != nil {
		t.Fatal(err)
	}
	return base, store
}

// TestOverlay serves an overlay, drops it and serves it again: what was written is
// there, and the base is what it was.
func TestOverlay(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	id := disk.BaseID{1, 2, 3}
	base, store := layers(t, r, id)
	add := func(id disk.BaseID, base, store *os.File) error {
		files := control.DeviceFiles{Volume: r.Reopen(store), Base: r.Reopen(base)}
		defer files.Close() // the lock goes with the last descriptor
		return c.AddDevice(r.Context(), control.AddDevice{
			Instance: "web", Name: "root", Queues: 2, Base: id[:], MemoryOffset: memOffset, MemorySize: memSize,
		}, files)
	}
	if err := add(disk.BaseID{4}, base, store); !errors.Is(err, control.ErrConflict) {
		t.Errorf("over another base: %v", err)
	}
	writer, err := disk.OpenFile(r.Reopen(base), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := add(id, base, store); !errors.Is(err, control.ErrConflict) {
		t.Errorf("over a base that is being written: %v", err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}

	d := newDisk(r)
	for life, want := range [][]byte{block(7), block(8)} {
		if err := add(id, base, store); err != nil {
			t.Fatal(err)
		}
		if _, err := disk.OpenFile(r.Reopen(base), false); !errors.Is(err, disk.ErrInUse) {
			t.Errorf("a base below a device can be written: %v", err)
		}
		if err := add(id, base, store); !errors.Is(err, control.ErrExists) {
			t.Errorf("a device that is there: %v", err)
		}
		f := boot(t, r, d)
		got, err := d.Read(0)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("life %d: read %.8x, %v, want %.8x", life, got, err, want)
		}
		if err := errors.Join(d.Write(0, block(8)), d.Flush()); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.RemoveDevice(r.Context(), "web", "root"), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 4096)
	if _, err := base.ReadAt(got, 0); err != nil || !bytes.Equal(got, block(7)) {
		t.Errorf("the base begins with %x…, %v", got[:8], err)
	}
	again, err := disk.OpenFile(r.Reopen(base), false)
	if err != nil {
		t.Fatalf("a removed device keeps its base: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
