// SPDX-License-Identifier: Apache-2.0

package initctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// maxReport bounds the boot report, in bytes.
const maxReport = 1 << 20

// Result is how a step of the boot ended.
type Result string

// Results of a step. Only OK means that it was done.
const (
	OK      Result = "ok"
	Skipped Result = "skipped" // there was nothing to do; Detail says why
	Failed  Result = "failed"  // Detail says why
	Pending Result = "pending" // under way, or not begun
)

// Step is one row of the boot table, as it went.
type Step struct {
	Name     string        `json:"name"`
	Required bool          `json:"required"` // its failure stops the boot, unless the lifecycle is development
	Result   Result        `json:"result"`
	Detail   string        `json:"detail,omitempty"`
	Started  time.Duration `json:"started"`  // since the kernel's start, nanoseconds
	Finished time.Duration `json:"finished"` // the same; 0 while pending
}

// Measurement is one file that was measured before it was used.
type Measurement struct {
	Path   string `json:"path"`
	PCR    int    `json:"pcr"`
	Digest string `json:"digest"` // "sha256:" and hexadecimal
}

// Report is what pid 1 knows of this boot.
type Report struct {
	Version      int            `json:"version"` // 1
	Lifecycle    spec.Lifecycle `json:"lifecycle"`
	Kernel       string         `json:"kernel"` // release
	Steps        []Step         `json:"steps"`
	Measurements []Measurement  `json:"measurements"`
	// Persistent says that the state directory is on the card's data
	// partition; otherwise it is memory and is lost with power.
	Persistent bool `json:"persistent"`
	// ClockSet says that the clock was behind the release's own date and was set
	// to that: it is not to be trusted until something sets it.
	ClockSet bool `json:"clockSet"`
	// Dropped counts console lines lost because a console did not take them.
	Dropped uint64 `json:"dropped"`
}

// Validate says what a report lacks.
func (r *Report) Validate() error {
	if r.Version != 1 {
		return fmt.Errorf("version: %d is not 1", r.Version)
	}
	if r.Lifecycle != spec.Development && r.Lifecycle != spec.Production && r.Lifecycle != spec.RMA {
		return fmt.Errorf("lifecycle: %q is not known", r.Lifecycle)
	}
	for i, s := range r.Steps {
		switch s.Result {
		case OK, Skipped, Failed, Pending:
		default:
			return fmt.Errorf("steps[%d]: result %q is not known", i, s.Result)
		}
		if s.Name == "" {
			return fmt.Errorf("steps[%d]: no name", i)
		}
	}
	return nil
}

// Step gives the step with this name; nil when the report has none.
func (r *Report) Step(name string) *Step {
	for i := range r.Steps {
		if r.Steps[i].Name == name {
			return &r.Steps[i]
		}
	}
	return nil
}

// ParseReport decodes a report strictly.
func ParseReport(text []byte) (*Report, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var r Report
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("boot report: something follows it")
	}
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	return &r, nil
}

// ReadReport reads the report at path.
func ReadReport(path string) (*Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxReport+1))
	if err != nil {
		return nil, fmt.Errorf("boot report: %w", err)
	}
	if len(text) > maxReport {
		return nil, fmt.Errorf("boot report: more than %d bytes", maxReport)
	}
	return ParseReport(text)
}

// WriteReport replaces the report at path as a whole, readable by all.
func WriteReport(path string, r *Report) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("boot report: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".boot-*")
	if err != nil {
		return fmt.Errorf("boot report: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		// What failed is reported; a left-over file does not add to it.
		_ = os.Remove(f.Name())
		return fmt.Errorf("boot report: %w", err)
	}
	return nil
}
