// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-dpu/davit/firmware/spec"
)

func TestResidentSet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, status string
		want         spec.Bytes
		fails        bool
	}{
		{"as the kernel writes it", "Name:\tdavitd\nVmHWM:\t   99 kB\nVmRSS:\t   21504 kB\nRssAnon:\t 9 kB\n", 21 * spec.MiB, false},
		{"zombie", "Name:\tvcard\nState:\tZ (zombie)\n", 0, true},
		{"no number", "VmRSS:\t many kB\n", 0, true},
		{"no unit", "VmRSS:\t 12\n", 0, true},
		{"larger than memory", "VmRSS:\t 18446744073709551615 kB\n", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			proc := t.TempDir()
			if err := os.Mkdir(filepath.Join(proc, "7"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(proc, "7", "status"), []byte(c.status), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := residentSet(proc, 7)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("got %d, %v; want %d, error %v", got, err, c.want, c.fails)
			}
		})
	}
}

func TestResidentSetOfThisProcess(t *testing.T) {
	t.Parallel()
	got, err := residentSet("/proc", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if got < spec.MiB || got > 4*spec.GiB {
		t.Errorf("this test occupies %s: not plausible", got)
	}
	if _, err := residentSet(t.TempDir(), os.Getpid()); err == nil {
		t.Error("a process that is not there has a size")
	}
}
