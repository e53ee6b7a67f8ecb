// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Names within a store (see doc.go).
const (
	lockName     = "lock"
	tmpName      = "tmp"
	currentName  = "current"
	rootName     = "root"
	completeName = "complete"
	genPrefix    = "gen-"
)

// Intervals: how often a taken lock is tried again, and how often a download
// reports its progress.
const (
	lockInterval     = 200 * time.Millisecond
	progressInterval = 2 * time.Second
)

// fetcher is one fetch under the lock.
type fetcher struct {
	cache    *Cache
	store    string
	apt      *aptTree
	progress func(Step)
	start    time.Time
}

// fetchAll fetches the needs, one after the other, under the store's lock.
// Without again, what another process fetched meanwhile is taken as it is.
func (c *Cache) fetchAll(ctx context.Context, progress func(Step), specs []spec, again bool) error {
	if progress == nil {
		progress = func(Step) {}
	}
	f := &fetcher{cache: c, store: c.store(), progress: progress, start: c.now()}
	if err := os.MkdirAll(f.store, 0o755); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	unlock, err := f.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// Only the holder of the lock writes here: what is left is of the dead.
	if err := os.RemoveAll(filepath.Join(f.store, tmpName)); err != nil {
		return fmt.Errorf("clean the cache: %w", err)
	}
	if !again {
		specs = c.stillMissing(ctx, specs)
	}
	if len(specs) == 0 {
		return nil
	}
	f.step(Step{Phase: PhaseIndex})
	if f.apt, err = openApt(ctx, filepath.Join(f.store, "apt"), c.distro, c.apt); err != nil {
		return f.explain(specs, err)
	}
	for _, s := range specs {
		if err := f.fetch(ctx, s); err != nil {
			return fmt.Errorf("fetch %s (%s): %w", s.need, s.purpose, err)
		}
	}
	return f.apt.close()
}

// stillMissing looks again, now that the lock is held.
func (c *Cache) stillMissing(ctx context.Context, specs []spec) []spec {
	var out []spec
	for _, s := range specs {
		if _, err := c.find(ctx, s); err != nil {
			out = append(out, s)
		}
	}
	return out
}

// explain adds to an archive that is not known or not to be reached what
// would help.
func (f *fetcher) explain(specs []spec, err error) error {
	names := make([]string, len(specs))
	remedies := make([]string, len(specs))
	for i, s := range specs {
		names[i], remedies[i] = string(s.need), f.cache.remedy(s, nil)
	}
	advice := `check that "apt-get update" works on this machine`
	if errors.Is(err, ErrNoArchive) {
		advice = strings.Join(remedies, "; ")
	}
	return fmt.Errorf("fetch %s: %w; %s", strings.Join(names, ", "), err, advice)
}

func (f *fetcher) step(s Step) {
	s.Elapsed = f.cache.now().Sub(f.start)
	f.progress(s)
}

// lock takes the store's lock, or waits for it until ctx ends. The lock goes
// with the process, however that ends.
func (f *fetcher) lock(ctx context.Context) (func(), error) {
	file, err := os.OpenFile(filepath.Join(f.store, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for told := false; ; {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = file.Close()
			return nil, fmt.Errorf("lock the cache: %w", err)
		}
		if !told {
			told = true
			f.step(Step{Phase: PhaseWait})
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("wait for the cache's lock: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// fetch brings one need to its newest generation.
func (f *fetcher) fetch(ctx context.Context, s spec) error {
	f.step(Step{Need: s.need, Phase: PhasePlan})
	p, err := f.apt.plan(ctx, s, cmp.Or(s.arch, runtime.GOARCH))
	if err != nil {
		return err
	}
	home := filepath.Join(f.store, string(s.need))
	gen := filepath.Join(home, genPrefix+p.digest())
	if _, err := openGeneration(gen, s); err != nil {
		if err := f.make(ctx, s, p, gen); err != nil {
			return err
		}
	}
	if err := publish(home, filepath.Base(gen)); err != nil {
		return err
	}
	f.step(Step{Need: s.need, Phase: PhaseReady, Packages: len(p)})
	f.cache.cfg.Log.Info("packages fetched", "need", string(s.need), "packages", len(p), "dir", gen)
	return nil
}

// make downloads and unpacks a plan aside, and moves it to gen when whole.
func (f *fetcher) make(ctx context.Context, s spec, p plan, gen string) error {
	stage := filepath.Join(f.store, tmpName, string(s.need))
	debs, root := filepath.Join(stage, "debs"), filepath.Join(stage, "gen", rootName)
	for _, d := range []string{debs, root, filepath.Dir(gen)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make the cache: %w", err)
		}
	}
	files, err := f.download(ctx, s, p, debs)
	if err != nil {
		return err
	}
	f.step(Step{Need: s.need, Phase: PhaseUnpack, Packages: len(p)})
	for i, file := range files {
		if _, err := run(child(ctx, f.cache.apt.program("dpkg-deb"), "-x", file, root)); err != nil {
			return fmt.Errorf("unpack package %s: %w", p[i].name, err)
		}
	}
	if err := tidyTree(root); err != nil {
		return err
	}
	if err := f.cache.sync(root); err != nil {
		return err
	}
	staged := filepath.Dir(root)
	if err := writeSynced(filepath.Join(staged, completeName), p.marker()); err != nil {
		return err
	}
	if _, err := openGeneration(staged, s); err != nil {
		return err
	}
	return moveIn(stage, staged, gen)
}

// moveIn makes a staged generation one of the cache's, and removes the stage.
func moveIn(stage, staged, gen string) error {
	// A generation of that name is here only when it was damaged.
	if err := os.RemoveAll(gen); err != nil {
		return fmt.Errorf("replace a damaged generation: %w", err)
	}
	if err := os.Rename(staged, gen); err != nil {
		return fmt.Errorf("move into the cache: %w", err)
	}
	if err := os.RemoveAll(stage); err != nil {
		return fmt.Errorf("clean the cache: %w", err)
	}
	return nil
}

// download fetches the archives into dir and compares each with its checksum.
// It gives their paths, in the plan's order.
func (f *fetcher) download(ctx context.Context, s spec, p plan, dir string) ([]string, error) {
	args := append([]string{"download", "-qq"}, forArch(cmp.Or(s.arch, runtime.GOARCH))...)
	for _, a := range p {
		name := a.name
		if a.arch != "all" {
			name += ":" + a.arch
		}
		args = append(args, name+"="+a.version)
	}
	stop := f.watch(s.need, p, dir)
	cmd := f.apt.command(ctx, "apt-get", args...)
	cmd.Dir = dir
	_, err := run(cmd)
	stop()
	if err != nil {
		return nil, fmt.Errorf("download: %w", err)
	}
	var files []string
	for _, a := range p {
		file := filepath.Join(dir, a.name+"_"+strings.ReplaceAll(a.version, ":", "%3a")+"_"+a.arch+".deb")
		if err := checkSum(file, a.sha256); err != nil {
			return nil, fmt.Errorf("package %s: %w", a.name, err)
		}
		files = append(files, file)
	}
	return files, nil
}

// watch reports the download's progress until the returned function is called.
func (f *fetcher) watch(n Need, p plan, dir string) (stop func()) {
	step := Step{Need: n, Phase: PhaseDownload, Packages: len(p), Total: p.size()}
	f.step(step)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				step.Bytes = dirSize(dir)
				f.step(step)
			}
		}
	}()
	return func() { close(quit); <-done }
}

// dirSize adds up the files in dir; files that go away meanwhile count nothing.
func dirSize(dir string) int64 {
	var n int64
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}

func checkSum(file, want string) error {
	r, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("not downloaded: %w", err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return fmt.Errorf("read the download: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("sha256 is %s, the signed metadata says %s", got, want)
	}
	return nil
}

// writeSynced writes a file that is on the disk when it returns.
func writeSynced(path, content string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	_, err = io.WriteString(f, content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	return nil
}

// publish points current at a generation, and removes all but it and its
// predecessor, which running processes may still use.
func publish(home, gen string) error {
	link := filepath.Join(home, currentName)
	previous, err := os.Readlink(link)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the current generation: %w", err)
	}
	if previous == gen {
		return nil
	}
	next := filepath.Join(home, currentName+".new")
	if err := errors.Join(removeIfThere(next), os.Symlink(gen, next)); err != nil {
		return fmt.Errorf("publish generation: %w", err)
	}
	if err := os.Rename(next, link); err != nil {
		return fmt.Errorf("publish generation: %w", err)
	}
	old, _ := filepath.Glob(filepath.Join(home, genPrefix+"*"))
	for _, g := range old {
		if b := filepath.Base(g); b != gen && b != previous {
			if err := os.RemoveAll(g); err != nil {
				return fmt.Errorf("remove an old generation: %w", err)
			}
		}
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
