// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// record is what the card keeps of an instance over its own restarts.
type record struct {
	Spec       spec.Instance `json:"spec"`
	Desired    spec.Phase    `json:"desired"`              // running or stopped
	Generation string        `json:"generation,omitempty"` // of the VMM that was ordered; empty: none can be there
	PoolOffset spec.Bytes    `json:"poolOffset,omitempty"` // its memory, while Generation is set
	Ran        bool          `json:"ran,omitempty"`        // the host said that it runs: an order that was carried out
	Restarts   int           `json:"restarts,omitempty"`
	Failure    string        `json:"failure,omitempty"` // why it is down although nobody asked for that
	// Grace is what the stop that is under way gives the guest. Nil, as in records
	// of agents that did not keep it, is not zero: zero kills at once.
	Grace *time.Duration `json:"grace,omitempty"`
}

// defaultGrace is given by a stop of which no record says how much.
const defaultGrace = 30 * time.Second

func (r *record) grace() time.Duration {
	if r.Grace == nil {
		return defaultGrace
	}
	return *r.Grace
}

// store keeps records as DIR/NAME.yaml.
type store struct{ dir string }

const recordSuffix = ".yaml"

// load reads all records. A record that cannot be read is reported under its
// name, so that one torn file hides neither itself nor the others.
func (s store) load() (map[string]*record, map[string]error, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read instances: %w", err)
	}
	good, bad := map[string]*record{}, map[string]error{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || spec.CheckName("instance", name) != nil {
			continue
		}
		if r, err := s.read(name); err != nil {
			bad[name] = err
		} else {
			good[name] = r
		}
	}
	return good, bad, nil
}

func (s store) read(name string) (*record, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, name+recordSuffix))
	if err != nil {
		return nil, err
	}
	var r record
	if err := spec.DecodeYAML(text, &r); err != nil {
		return nil, fmt.Errorf("record %s: %w", name, err)
	}
	if err := r.Spec.Validate(); err != nil {
		return nil, fmt.Errorf("record %s: %w", name, err)
	}
	if r.Spec.Name != name || (r.Desired != spec.PhaseRunning && r.Desired != spec.PhaseStopped) {
		return nil, fmt.Errorf("record %s: of instance %q, desired %q", name, r.Spec.Name, r.Desired)
	}
	if r.Grace != nil && (*r.Grace < 0 || *r.Grace > MaxGrace) {
		return nil, fmt.Errorf("record %s: grace of %v is not between 0 and %v", name, *r.Grace, MaxGrace)
	}
	return &r, nil
}

// save replaces a record so that after a power cut either the old or the new
// one is there, whole.
func (s store) save(r *record) error {
	text, err := spec.EncodeYAML(r)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", r.Spec.Name, err)
	}
	path := filepath.Join(s.dir, r.Spec.Name+recordSuffix)
	f, err := os.CreateTemp(s.dir, "."+r.Spec.Name+"-*")
	if err != nil {
		return fmt.Errorf("save record %s: %w", r.Spec.Name, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("save record %s: %w", r.Spec.Name, err)
	}
	return nil
}

func (s store) remove(name string) error {
	err := os.Remove(filepath.Join(s.dir, name+recordSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record %s: %w", name, err)
	}
	return syncDir(s.dir)
}

// removeTemps removes what an agent that died while it wrote left behind: files
// that have not got their names yet.
func removeTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove left-over files: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") || !strings.Contains(e.Name(), "-") || !e.Type().IsRegular() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove left-over file: %w", err)
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
