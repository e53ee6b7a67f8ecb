// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/instance"
	"github.com/davit-dpu/davit/firmware/spec"
)

// A local disk is nobody's by the records, and while the vcard is away nothing has it
// open: it is not deleted all the same.
func TestVolumeDeleteSparesLocalDisks(t *testing.T) {
	t.Parallel()
	s, err := instance.New(instance.Config{StateDir: t.TempDir(), MemoryDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"local", "other"} {
		if err := s.CreateVolume(name, spec.MiB); err != nil {
			t.Fatal(err)
		}
	}
	a := &agent{cfg: Config{Disks: []string{"local"}}, instances: s}
	if _, err := a.opVolumeDelete(t.Context(), nil, VolumeArgs{spec.VolumeFile, "local"}); err == nil || !strings.Contains(err.Error(), "local disk") {
		t.Errorf("delete a local disk: %v", err)
	}
	if _, err := a.opVolumeDelete(t.Context(), nil, VolumeArgs{spec.VolumeFile, "other"}); err != nil {
		t.Error(err)
	}
	if all, err := s.Volumes(); err != nil || len(all) != 1 || all[0].Name != "local" {
		t.Errorf("volumes %+v, %v", all, err)
	}
}
