// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// generation is part of every key; a change of how things are made that keys do
// not show must change it.
const generation = "2"

// keep is how many entries of each kind stay in the cache.
const keep = 8

// cache is a folder of results, each named by a hash of all that made it. One
// build uses it at a time. Entries begin with a SHA-256 of what follows, so a
// damaged one is as good as none.
type cache struct {
	root string
	temp bool // to be removed at the end
	lock *os.File
}

// openCache locks the cache in dir, and waits for a build that holds it. With
// an empty dir it is a temporary one.
func openCache(ctx context.Context, dir string) (*cache, error) {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "davit-image-*")
		if err != nil {
			return nil, fmt.Errorf("make temporary folder: %w", err)
		}
		return &cache{root: tmp, temp: true}, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	if err := flock(ctx, lock); err != nil {
		return nil, fmt.Errorf("lock image cache %s: %w", dir, err)
	}
	return &cache{root: dir, lock: lock}, nil
}

// flock takes an exclusive lock, which the kernel drops with the file or the
// process. It owns the file when it fails.
func flock(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		// The call cannot be taken back: when it returns, the lock goes with the file.
		go func() { <-done; f.Close() }()
		return ctx.Err()
	}
}

// Close lets go of the cache.
func (c *cache) Close() error {
	if c.temp {
		return os.RemoveAll(c.root)
	}
	return c.lock.Close()
}

// dir makes and gives a folder that belongs to the named things.
func (c *cache) dir(kind string, parts ...string) (string, error) {
	var all [][]byte
	for _, p := range parts {
		all = append(all, []byte(p))
	}
	dir := filepath.Join(c.root, c.key(kind, all...))
	return dir, os.MkdirAll(dir, 0o755)
}

// scratch gives an empty folder; what a killed build left in it is gone.
func (c *cache) scratch() (string, error) {
	dir := filepath.Join(c.root, "scratch")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.Mkdir(dir, 0o700)
}

// key names the result that the parts make.
func (c *cache) key(kind string, parts ...[]byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s", generation, kind)
	for _, p := range parts {
		fmt.Fprintf(h, " %d:", len(p))
		h.Write(p)
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// get gives an entry, if it is there and whole.
func (c *cache) get(key string) ([]byte, bool) {
	b, err := os.ReadFile(filepath.Join(c.root, key))
	if err != nil || len(b) < sha256.Size {
		return nil, false
	}
	data := b[sha256.Size:]
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, false
	}
	return data, true
}

// put stores an entry, whole or not at all, and drops the oldest of its kind.
func (c *cache) put(key string, data []byte) error {
	if c.temp {
		return nil
	}
	sum := sha256.Sum256(data)
	name := filepath.Join(c.root, key)
	tmp := name + ".tmp" // the lock keeps others away
	if err := os.WriteFile(tmp, append(sum[:], data...), 0o644); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("store in image cache: %w", err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("store in image cache: %w", err)
	}
	kind, _, _ := strings.Cut(key, "-")
	return c.prune(kind)
}

func (c *cache) prune(kind string) error {
	names, err := filepath.Glob(filepath.Join(c.root, kind+"-*"))
	if err != nil {
		return fmt.Errorf("prune image cache: %w", err)
	}
	age := make(map[string]int64)
	for _, n := range names {
		if st, err := os.Stat(n); err == nil {
			age[n] = st.ModTime().UnixNano()
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(age[b], age[a]) })
	for _, n := range names[min(keep, len(names)):] {
		if err := os.Remove(n); err != nil {
			return fmt.Errorf("prune image cache: %w", err)
		}
	}
	return nil
}
