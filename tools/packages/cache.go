// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Decisions that callers may want to tell apart.
var (
	ErrUnknownNeed = errors.New("not in the table of needs")
	ErrNoCache     = errors.New("the user's cache folder is not known")
	ErrNoArchive   = errors.New("no archive of the distribution itself to fetch from")
	ErrMissing     = errors.New("missing")
)

// Config says where the cache is and what the system looks like. The zero
// value is what a program wants.
type Config struct {
	// Dir is the cache; empty: davit below $XDG_CACHE_HOME, or below ~/.cache.
	Dir string
	// FetchCommand is what remedies tell the user to type in order to fetch;
	// empty: "make run".
	FetchCommand string
	// Offline forbids fetching: what is not there already is missing.
	Offline bool
	// NoSystem ignores programs and files that are installed on the system.
	NoSystem bool
	// Root is where the system's files are looked for; empty: "/".
	Root string
	// Log receives one line per change of the cache; nil: none.
	Log *slog.Logger
}

// Cache meets needs, from the system and from the user's cache. It holds no
// open files; any number may work on one folder, in any number of processes.
type Cache struct {
	cfg    Config
	dir    string
	distro distribution
	apt    aptSystem
	now    func() time.Time
	// sync brings an unpacked tree to the disk.
	sync func(root string) error
}

// Open finds the cache and identifies the system. It creates nothing, and
// fails with ErrNoCache when no folder is known for the cache.
func Open(cfg Config) (*Cache, error) {
	if cfg.Dir == "" {
		home, err := homeCache(os.Getenv)
		if err != nil {
			return nil, fmt.Errorf("find the cache: %w", err)
		}
		cfg.Dir = filepath.Join(home, "davit")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the cache: %w", err)
	}
	// apt.conf, LD_LIBRARY_PATH and PATH cannot quote these.
	if i := strings.IndexFunc(dir, func(r rune) bool { return r < ' ' || strings.ContainsRune(`":;\`, r) }); i >= 0 {
		return nil, fmt.Errorf("cache folder %q: character %q cannot be used there: %w", dir, dir[i], ErrNoCache)
	}
	cfg.Root = cmp.Or(cfg.Root, "/")
	cfg.FetchCommand = cmp.Or(cfg.FetchCommand, "make run")
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	distro, err := readOSRelease(cfg.Root)
	if err != nil {
		return nil, err
	}
	archs := []string{runtime.GOARCH}
	for _, a := range []string{ArchAMD64, ArchARM64} {
		if a != runtime.GOARCH {
			archs = append(archs, a)
		}
	}
	sys := aptSystem{etc: filepath.Join(cfg.Root, "etc/apt"), archs: archs}
	return &Cache{cfg: cfg, dir: dir, distro: distro, apt: sys, now: time.Now, sync: syncTree}, nil
}

// Dir is the cache's folder; other build products may live beside packages/.
func (c *Cache) Dir() string { return c.dir }

// store is where this release's packages are.
func (c *Cache) store() string {
	return filepath.Join(c.dir, "packages", cmp.Or(c.distro.codename, "unknown")+"-"+runtime.GOARCH)
}

// Phase says what Ensure is busy with.
type Phase string

// The phases of a fetch, in order.
const (
	PhaseWait     Phase = "waiting for another process that fetches"
	PhaseIndex    Phase = "updating the package lists"
	PhasePlan     Phase = "resolving"
	PhaseDownload Phase = "downloading"
	PhaseUnpack   Phase = "unpacking"
	PhaseReady    Phase = "ready"
)

// Step is one line of progress.
type Step struct {
	Need     Need // empty when the phase concerns all of them
	Phase    Phase
	Packages int   // number of packages, from PhaseDownload on
	Bytes    int64 // downloaded so far
	Total    int64 // to download
	Elapsed  time.Duration
}

// String is the step as one readable line, without its time.
func (s Step) String() string {
	line := string(s.Phase)
	if s.Need != "" {
		line = string(s.Need) + ": " + line
	}
	if s.Packages > 0 {
		line += fmt.Sprintf(" (%d packages)", s.Packages)
	}
	if s.Total > 0 {
		line += fmt.Sprintf(" %.1f of %.1f MB", float64(s.Bytes)/1e6, float64(s.Total)/1e6)
	}
	return line
}

// Ensure meets all needs and gives their set. What the system has is used,
// what the cache has is used; the rest is fetched, with a call of progress
// (which may be nil) for each step. With nothing to fetch it asks nothing of
// the network. A need that cannot be met gives an error with ErrMissing that
// names the remedy; the set is then nil.
func (c *Cache) Ensure(ctx context.Context, progress func(Step), needs ...Need) (*Set, error) {
	set := &Set{places: map[Need]place{}}
	var missing []spec
	var barred []error
	for _, n := range needs {
		s, err := specOf(n)
		if err != nil {
			return nil, err
		}
		p, why := c.find(ctx, s)
		if why == nil {
			set.places[n] = p
			continue
		}
		missing = append(missing, s)
		barred = append(barred, c.mayFetch(s, why))
	}
	if err := errors.Join(barred...); err != nil {
		return nil, err
	}
	if len(missing) == 0 {
		return set, nil
	}
	if err := c.fetchAll(ctx, progress, missing, false); err != nil {
		return nil, err
	}
	for _, s := range missing {
		p, err := c.find(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("%s (%s): fetched, but not whole: %w", s.need, s.purpose, ErrMissing)
		}
		set.places[s.need] = p
	}
	return set, nil
}

// Update fetches the newest versions of the needs that the cache provides
// already or that nothing provides. The generation in use until now is kept,
// for the processes that use it; older ones are removed.
func (c *Cache) Update(ctx context.Context, progress func(Step), needs ...Need) error {
	var fetched []spec
	var barred []error
	for _, n := range needs {
		s, err := specOf(n)
		if err != nil {
			return err
		}
		if p, why := c.find(ctx, s); why != nil || p.kind == kindFetched {
			fetched = append(fetched, s)
			barred = append(barred, c.mayFetch(s, why))
		}
	}
	if err := errors.Join(barred...); err != nil || len(fetched) == 0 {
		return err
	}
	return c.fetchAll(ctx, progress, fetched, true)
}

// mayFetch says why the need, which find found no place for, cannot be fetched,
// with what mends it; nil when it can.
func (c *Cache) mayFetch(s spec, found error) error {
	why := ""
	switch {
	case c.cfg.Offline:
		why = "fetching is off"
	case c.distro.id != "debian" || c.distro.codename == "":
		why = c.distro.name + " has no packages that can be fetched without root"
	default:
		if _, err := exec.LookPath(c.apt.program("apt-get")); err == nil {
			return nil
		}
		why = "apt-get is not on PATH"
	}
	if found != nil && !errors.Is(found, errNotFound) {
		why = found.Error() + ", and " + why
	}
	return fmt.Errorf("%s (%s): %w: %s; %s", s.need, s.purpose, ErrMissing, why, c.remedy(s, found))
}
