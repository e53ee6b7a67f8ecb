// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/disk/disktest"
)

// frozen makes a volume read-only.
type frozen struct{ disk.Volume }

func (f frozen) Info() disk.Info { return disk.Info{Size: f.Volume.Info().Size, ReadOnly: true} }

// A first write that fails leaves the cluster to the base, whatever failed;
// the next one succeeds.
func TestOverlayFaults(t *testing.T) {
	t.Parallel()
	const size, cluster = 1 << 20, disk.MinClusterSize
	bad := errors.New("bad")
	for name, fault := range map[string]disktest.Fault{
		"data":        {Op: disktest.Write, Err: bad},
		"flush":       {Op: disktest.Flush, Err: bad},
		"bitmap":      {Op: disktest.Write, Off: 4096, Len: 4096, Err: bad},
		"write-zeros": {Op: disktest.WriteZeroes, Err: bad},
	} {
		base, err := disk.NewMemory(size)
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Repeat([]byte{5}, size)
		if err := base.WriteAt([][]byte{before}, 0); err != nil {
			t.Fatal(err)
		}
		h := disk.OverlayHeader{Size: size, BaseSize: size, ClusterSize: cluster}
		memory, err := disk.NewMemory(h.StoreSize())
		if err != nil {
			t.Fatal(err)
		}
		store := disktest.New(memory)
		if err := disk.FormatOverlay(store, h); err != nil {
			t.Fatal(err)
		}
		o, err := disk.OpenOverlay(frozen{base}, store, disk.BaseID{})
		if err != nil {
			t.Fatal(err)
		}
		store.Add(fault)
		change := func() error { return o.WriteAt([][]byte{{1, 2, 3}}, 2*cluster-1) }
		if fault.Op == disktest.WriteZeroes {
			change = func() error { return o.WriteZeroes(2*cluster-1, 3, false) }
		}
		got := make([]byte, 3*cluster)
		if err := change(); !errors.Is(err, bad) {
			t.Errorf("%s: got %v", name, err)
		}
		if err := o.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, before[:len(got)]) {
			t.Errorf("%s: a failed first write shows, %v", name, err)
		}
		store.Repair()
		if err := change(); err != nil {
			t.Errorf("%s: again: %v", name, err)
		}
		want := bytes.Clone(before[:len(got)])
		if fault.Op == disktest.WriteZeroes {
			clear(want[2*cluster-1:][:3])
		} else {
			copy(want[2*cluster-1:], []byte{1, 2, 3})
		}
		if err := o.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: differs afterwards, %v", name, err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}
