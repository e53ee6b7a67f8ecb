// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/measure"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// testMachine has its files in a folder of its own and writes to no console.
func testMachine(t *testing.T, l spec.Lifecycle) *machine {
	t.Helper()
	dir := t.TempDir()
	cfg := Default()
	cfg.Report, cfg.Socket = filepath.Join(dir, "boot.json"), filepath.Join(dir, "init.sock")
	cfg.EventLog, cfg.StateDir = filepath.Join(dir, "eventlog"), filepath.Join(dir, "state")
	cfg.Watchdog, cfg.Shells = filepath.Join(dir, "watchdog"), nil
	now := time.Duration(0)
	m := newMachine(cfg, func() time.Duration { now += time.Millisecond; return now })
	m.report.Lifecycle = l
	return m
}

func results(m *machine) string {
	var out []string
	for _, s := range m.report.Steps {
		out = append(out, s.Name+":"+string(s.Result))
	}
	return strings.Join(out, " ")
}

func TestWorkTheTable(t *testing.T) {
	t.Parallel()
	ok := func(context.Context, *machine) (string, error) { return "done", nil }
	bad := func(context.Context, *machine) (string, error) { return "", errors.New("broken") }
	none := func(context.Context, *machine) (string, error) { return "", skip("nothing to do") }
	bang := func(context.Context, *machine) (string, error) { panic("bang") }
	tests := map[string]struct {
		lifecycle spec.Lifecycle
		table     []step
		want      string
		err       string
	}{
		"all is well":                    {spec.Production, []step{{"a", required, ok}, {"b", optional, ok}}, "a:ok b:ok", ""},
		"optional fails":                 {spec.Production, []step{{"a", optional, bad}, {"b", required, ok}}, "a:failed b:ok", ""},
		"optional skips":                 {spec.Production, []step{{"a", optional, none}, {"b", required, ok}}, "a:skipped b:ok", ""},
		"optional panics":                {spec.Production, []step{{"a", optional, bang}, {"b", required, ok}}, "a:failed b:ok", ""},
		"required fails":                 {spec.Production, []step{{"a", required, bad}, {"b", required, ok}}, "a:failed b:pending", "a: broken"},
		"required skips":                 {spec.Production, []step{{"a", required, none}, {"b", required, ok}}, "a:skipped b:pending", "a: nothing to do"},
		"required panics":                {spec.Production, []step{{"a", required, bang}, {"b", required, ok}}, "a:failed b:pending", "bang"},
		"required fails, rma":            {spec.RMA, []step{{"a", required, bad}, {"b", required, ok}}, "a:failed b:pending", "a: broken"},
		"required fails, development":    {spec.Development, []step{{"a", required, bad}, {"b", required, ok}}, "a:failed b:ok", ""},
		"required fails, unknown":        {"", []step{{"a", required, bad}, {"b", required, ok}}, "a:failed b:pending", "a: broken"},
		"required panics in development": {spec.Development, []step{{"a", required, bang}, {"b", required, ok}}, "a:failed b:ok", ""},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := testMachine(t, c.lifecycle)
			err := m.work(t.Context(), c.table)
			if got := results(m); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if (err != nil) != (c.err != "") || err != nil && (!errors.Is(err, errStopped) || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			for _, s := range m.report.Steps {
				if (s.Result == initctl.Pending) != (s.Finished == 0) || s.Finished < s.Started {
					t.Errorf("times of %+v", s)
				}
			}
		})
	}
}

// TestTheTable guards what the order of the real table promises.
func TestTheTable(t *testing.T) {
	t.Parallel()
	at := map[string]int{}
	for i, s := range steps {
		if _, twice := at[s.name]; twice || s.run == nil {
			t.Errorf("row %d: %q", i, s.name)
		}
		at[s.name] = i
	}
	for _, c := range [][2]string{
		{"mounts", "lifecycle"}, {"modules", "tpm"}, {"tpm", "measure lifecycle"}, {"measure davitd", "davitd"},
		{"measure vcard", "davitd"}, {"measure config", "davitd"}, {"measure modules", "davitd"}, {"measure init", "davitd"},
		{"log handed over", "davitd"}, {"data", "davitd"}, {"root read-only", "davitd"}, {"control", "davitd"},
	} {
		if at[c[0]] >= at[c[1]] {
			t.Errorf("%s is not before %s", c[0], c[1])
		}
	}
	for _, s := range steps {
		if (s.name == "tpm" || strings.HasPrefix(s.name, "measure") || s.name == "davitd") && s.need != required {
			t.Errorf("%s is not required", s.name)
		}
	}
}

// TestNoTPM walks the measuring rows on a machine that has no TPM.
func TestNoTPM(t *testing.T) {
	t.Parallel()
	table := []step{{"tpm", required, stepTPM}, {"measure lifecycle", required, stepMeasureLifecycle}, {"measure davitd", required, stepMeasureAgent}, {"log handed over", required, stepCloseLog}}
	for l, want := range map[spec.Lifecycle]string{
		spec.Production:  "tpm:failed measure lifecycle:pending measure davitd:pending log handed over:pending",
		spec.Development: "tpm:failed measure lifecycle:skipped measure davitd:skipped log handed over:ok",
	} {
		t.Run(string(l), func(t *testing.T) {
			t.Parallel()
			m := testMachine(t, l)
			m.board.TPM = filepath.Join(t.TempDir(), "tpmrm0")
			m.cfg.TPMWait = 10 * time.Millisecond
			m.cfg.Agent = filepath.Join(t.TempDir(), "davitd")
			check(t, os.WriteFile(m.cfg.Agent, []byte("program"), 0o700))
			err := m.work(t.Context(), table)
			if got := results(m); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
			if (err != nil) != (l == spec.Production) {
				t.Errorf("error %v", err)
			}
			if len(m.report.Measurements) != 0 {
				t.Errorf("claims measurements without a TPM: %+v", m.report.Measurements)
			}
			if l == spec.Development {
				if m.agent == nil {
					t.Error("davitd is not run from what was read")
				}
				for _, s := range m.report.Steps[1:3] {
					if !strings.Contains(s.Detail, "no TPM vouches") {
						t.Errorf("%s says %q", s.Name, s.Detail)
					}
				}
			}
		})
	}
}

func TestProductionNeverStartsWhatWasNotMeasured(t *testing.T) {
	t.Parallel()
	m := testMachine(t, spec.Production)
	m.cfg.Agent = "/bin/true"
	if p, err := m.startAgent(t.Context()); err == nil || p != nil || !strings.Contains(err.Error(), "not measured") {
		t.Errorf("started %v, %v", p, err)
	}
	for _, s := range []func(context.Context, *machine) (string, error){stepMeasureLifecycle, stepMeasureVcard, stepMeasureConfig, stepCloseLog} {
		if _, err := s(t.Context(), m); !errors.Is(err, measure.ErrNoTPM) {
			t.Errorf("measuring without a TPM: %v", err)
		}
	}
	if err := m.rescue(); err == nil {
		t.Error("a rescue shell in production")
	}
}

func TestMeasureInitRefusesAnotherProgram(t *testing.T) {
	t.Parallel()
	m := testMachine(t, spec.Production)
	if _, err := stepMeasureInit(t.Context(), m); err == nil || !strings.HasSuffix(err.Error(), ", not /init") {
		t.Errorf("error %v", err)
	}
}

func TestWaitFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "tpmrm0")
	err := waitFor(t.Context(), dir, 20*time.Millisecond, exists(path))
	if err == nil || !strings.Contains(err.Error(), "not there within 20ms") {
		t.Errorf("absent: %v", err)
	}
	asked := make(chan struct{}, 10)
	done := make(chan error, 1)
	go func() {
		done <- waitFor(t.Context(), dir, time.Minute, func() (bool, error) {
			ok, err := exists(path)()
			asked <- struct{}{}
			return ok, err
		})
	}()
	<-asked
	check(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
	check(t, os.WriteFile(path, nil, 0o600))
	check(t, <-done)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := waitFor(ctx, dir, time.Minute, func() (bool, error) { return false, nil }); err == nil {
		t.Error("a cancelled wait succeeded")
	}
	if err := waitFor(t.Context(), filepath.Join(dir, "none"), time.Minute, exists(path)); err == nil {
		t.Error("watched a folder that is not there")
	}
}

func TestWatchdog(t *testing.T) {
	t.Parallel()
	m := testMachine(t, spec.Production)
	var why skipped
	if _, err := stepWatchdog(t.Context(), m); !errors.As(err, &why) || m.watchdog != nil {
		t.Fatalf("without a watchdog: %v", err)
	}
	check(t, errors.Join(m.watchdog.ping(), m.watchdog.disarm()))
	check(t, os.WriteFile(m.cfg.Watchdog, nil, 0o600))
	if _, err := stepWatchdog(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got, want := m.watchdog.every, 10*time.Second; got != want {
		t.Errorf("pings every %v, want %v for %d s", got, want, m.cfg.WatchdogSeconds)
	}
	check(t, errors.Join(m.watchdog.ping(), m.watchdog.ping(), m.watchdog.disarm()))
	if got, err := os.ReadFile(m.cfg.Watchdog); err != nil || string(got) != "\x00\x00V" {
		t.Errorf("wrote %q, %v", got, err)
	}
	if err := m.watchdog.ping(); err == nil {
		t.Error("pinged a closed watchdog")
	}
}

// stall is a stage that takes d while time is the bubble's.
func stall(d time.Duration) func() { return func() { time.Sleep(d) } }

// A stage of the end that is slow keeps its watchdog fed, and one that hangs is
// reset.
func TestWatchdogDuringShutdown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		takes time.Duration
		pings int
	}{
		"at once": {0, 1},
		"slow":    {25 * time.Second, 3}, // before it, and after 10 and 20 s
		"hangs":   {time.Hour, 6},        // the last one before a minute was over
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := testMachine(t, spec.Production)
			f, err := os.Create(m.cfg.Watchdog)
			check(t, err)
			defer f.Close()
			synctest.Test(t, func(t *testing.T) {
				m.watchdog = &watchdog{f: f, every: 10 * time.Second}
				m.during(time.Minute-time.Second, stall(c.takes))
			})
			if got, err := os.ReadFile(m.cfg.Watchdog); err != nil || len(got) != c.pings {
				t.Errorf("%d pings in %v, want %d (%v)", len(got), c.takes, c.pings, err)
			}
		})
	}
	m := testMachine(t, spec.Production)
	ran := false
	m.during(time.Minute, func() { ran = true }) // without a watchdog
	if !ran {
		t.Error("the stage was left out")
	}
}

// What guests can fill has a place of its own with a bound, made after the
// file system that it lies in.
func TestMemoryVolumesAreMountedApart(t *testing.T) {
	t.Parallel()
	at := func(target string) int {
		return slices.IndexFunc(mounts, func(m mount) bool { return m.target == target })
	}
	i := at("/run/davit/volumes")
	if i < 0 || i < at("/run") {
		t.Fatalf("row %d, and /run is row %d", i, at("/run"))
	}
	if m := mounts[i]; m.fstype != "tmpfs" || m.flags&quiet != quiet || !strings.Contains(m.data, "size=") || !strings.Contains(m.data, "mode=0700") {
		t.Errorf("mounted as %+v", m)
	}
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "kernel"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "kernel/sysrq"), []byte("438"), 0o600))
	detail, err := setSysctls(dir, []sysctl{{"kernel/sysrq", "0", false}, {"kernel/none", "1", false}})
	if err != nil || detail != "kernel lacks kernel/none" {
		t.Errorf("got %q, %v", detail, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "kernel/sysrq")); err != nil || string(got) != "0" {
		t.Errorf("sysrq %q, %v", got, err)
	}
	// A folder in its place cannot be written.
	check(t, os.Mkdir(filepath.Join(dir, "kernel/fixed"), 0o700))
	if _, err := setSysctls(dir, []sysctl{{"kernel/fixed", "1", false}}); err == nil || !strings.Contains(err.Error(), "kernel/fixed") {
		t.Errorf("a setting that fails: %v", err)
	}
	if _, err := setSysctls(dir, []sysctl{{"kernel/fixed", "1", true}}); err != nil {
		t.Errorf("a setting that is only tried: %v", err)
	}
}

func TestFirmwareLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if b, err := readFirmwareLog(filepath.Join(dir, "none")); b != nil || err != nil {
		t.Errorf("absent: %v, %v", b, err)
	}
	if b, err := readFirmwareLog(dir); b != nil || err == nil {
		t.Errorf("unreadable: %v, %v", b, err)
	}
}
