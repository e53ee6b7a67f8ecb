// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/instance"
	"github.com/davit-dpu/davit/firmware/spec"
)

func TestLogRingKeepsTheNewest(t *testing.T) {
	var out bytes.Buffer
	l := newLogRing(&out)
	for i := range logLines + 10 {
		fmt.Fprintf(l, "line %d\n", i)
	}
	lines, next, _ := l.since(0)
	if len(lines) != logLines || lines[0] != "line 10" || next != logLines+10 {
		t.Errorf("got %d lines from %q, next %d", len(lines), lines[0], next)
	}
	lines, _, _ = l.since(l.last(2))
	if want := fmt.Sprintf("line %d", logLines+8); len(lines) != 2 || lines[0] != want {
		t.Errorf("last 2 are %q, want from %q", lines, want)
	}
	if lines, _, _ := l.since(1 << 40); len(lines) != 0 {
		t.Errorf("lines from the future: %q", lines)
	}
	if got := strings.Count(out.String(), "\n"); got != logLines+10 {
		t.Errorf("passed %d lines on", got)
	}
	fmt.Fprintln(l, strings.Repeat("x", 5000))
	if lines, _, _ = l.since(l.last(1)); len(lines[0]) > maxLogLine+4 {
		t.Errorf("kept a line of %d bytes", len(lines[0]))
	}
}

func TestLogRingFollowsAFileThatIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	synctest.Test(t, func(t *testing.T) {
		l := newLogRing(new(bytes.Buffer))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.follow(ctx, path, "vcard: ") }()
		fmt.Fprint(f, "one\nha")
		time.Sleep(time.Second)
		fmt.Fprint(f, "lf\n\x1b[31mred\n")
		time.Sleep(time.Second)
		lines, _, _ := l.since(0)
		if got, want := strings.Join(lines, "|"), "vcard: one|vcard: half|vcard: [31mred"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		for range 2 * maxVcardLog / 1000 {
			fmt.Fprintln(f, strings.Repeat("y", 999))
		}
		time.Sleep(2 * time.Second)
		fmt.Fprintln(f, "last")
		time.Sleep(2 * time.Second)
		lines, _, _ = l.since(l.last(1))
		if lines[0] != "vcard: last" {
			t.Errorf("after the cut: %q", lines[0])
		}
		if st, err := f.Stat(); err != nil || st.Size() > maxVcardLog {
			t.Errorf("the file has %d bytes, %v", st.Size(), err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSummaryIsTheWorst(t *testing.T) {
	at := time.Unix(1000, 0)
	part := func(name string, p spec.Phase) spec.Component {
		return spec.Component{Name: name, Condition: spec.Condition{Phase: p, Reason: "because", Since: at.Add(time.Minute)}}
	}
	tests := []struct {
		name   string
		parts  []spec.Component
		checks []spec.Check
		want   spec.Phase
		alerts int
	}{
		{"all ready", []spec.Component{part("agent", spec.PhaseReady), part("vcard", spec.PhaseReady)}, nil, spec.PhaseReady, 0},
		{"no host", []spec.Component{part("agent", spec.PhaseReady), part("host", spec.PhasePending)}, nil, spec.PhaseReady, 1},
		{"no lease yet", []spec.Component{part("network", spec.PhasePending), part("vcard", spec.PhaseReady)}, nil, spec.PhasePending, 1},
		{"failed beats pending", []spec.Component{part("network", spec.PhasePending), part("vcard", spec.PhaseFailed)}, nil, spec.PhaseFailed, 2},
		{"failed check", []spec.Component{part("agent", spec.PhaseReady)}, []spec.Check{{Name: "x", Result: "failed"}}, spec.PhaseReady, 1},
		{"not checked is no failure", nil, []spec.Check{{Name: "x", Result: "not-checked"}}, spec.PhaseReady, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, alerts := summary(tt.parts, tt.checks, at)
			if got.Phase != tt.want || len(alerts) != tt.alerts || got.Reason == "" || got.Since.IsZero() {
				t.Errorf("got %+v with alerts %q, want %s with %d", got, alerts, tt.want, tt.alerts)
			}
		})
	}
}

func TestOpArguments(t *testing.T) {
	for _, bad := range []interface{ Validate() error }{
		Named{"../x"}, Named{""}, StopArgs{Name: "a", GraceSeconds: 3601}, StopArgs{Name: "A"},
		VolumeArgs{Name: "v"}, VolumeArgs{Kind: "tape", Name: "v"}, VolumeArgs{Kind: spec.VolumeFile, Name: "../v"},
		VolumeCreateArgs{Name: "v"}, VolumeCreateArgs{Name: "v", Size: 511}, VolumeCreateArgs{Name: "../v", Size: 512},
		VolumeCreateArgs{Name: "v", Size: spec.MaxVolumeBytes + 512},
		VolumeLimitArgs{Instance: "a", Volume: ""}, VolumeLimitArgs{Instance: "../a", Volume: "v"},
		VolumeLimitArgs{Instance: "a", Volume: "v", Limits: &spec.Limits{Burst: spec.MinBurst}},
		VolumeLimitArgs{Instance: "a", Volume: "v", Limits: &spec.Limits{IOPS: 1, Burst: -1}},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	for _, good := range []interface{ Validate() error }{
		StopArgs{Name: "demo", GraceSeconds: 3600}, VolumeCreateArgs{Name: "v", Size: 512}, VolumeLimitArgs{Instance: "a", Volume: "v"},
	} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

// A start without an answer is no start that failed: its VMM may run.
func TestStartErrorTellsWhatMayHaveHappened(t *testing.T) {
	for _, tt := range []struct {
		err  error
		lost bool
	}{
		{nil, false},
		{&control.Error{Code: "no-host", Text: "the session ended"}, true},
		{fmt.Errorf("vcard closed the connection: %w", control.ErrClosed), true},
		{&control.Error{Code: "host", Text: "no room"}, false},
		{context.DeadlineExceeded, false},
	} {
		err := startError(tt.err)
		if !errors.Is(err, tt.err) || errors.Is(err, instance.ErrHostLost) != tt.lost {
			t.Errorf("%v became %v, want it lost: %v", tt.err, err, tt.lost)
		}
	}
}
