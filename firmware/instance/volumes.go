// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

// volumes finds and makes the files behind volumes: DIR/NAME.img, for memory
// volumes in a folder on tmpfs, and DIR/NAME.overlay for the stores of overlays.
type volumes struct {
	files, memory string
	durable       bool // see Config.Durable
	statfs        func(path string, st *unix.Statfs_t) error

	creating sync.Mutex // from the look for room until the volume takes it
}

const volumeSuffix = ".img"

// open opens what a volume lies in. With create it is made when it is not there yet
// and the spec gives a size, or a base.
func (v *volumes) open(vol *spec.Volume, create bool) (VolumeFiles, error) {
	if vol.Kind == spec.VolumeOverlay {
		return v.openOverlay(vol, create)
	}
	f, err := v.openFile(vol, create)
	return VolumeFiles{File: f}, err
}

// openFile opens a file or memory volume. One of another size than the spec says is
// refused: growing or cutting somebody's disk is not a side effect of a start. So is
// writing below an overlay.
func (v *volumes) openFile(vol *spec.Volume, create bool) (*os.File, error) {
	f, err := v.openPath(vol)
	if errors.Is(err, fs.ErrNotExist) && create && vol.Size > 0 {
		if err := v.create(vol.Kind, vol.Name, vol.Size, nil); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		return v.openFile(vol, false) // what is there now, whoever made it
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", vol.Name, err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case vol.Size != 0 && st.Size() != int64(vol.Size):
		err = fmt.Errorf("has %s, the instance wants %s", spec.Bytes(st.Size()), vol.Size)
	case st.Size() == 0 || st.Size()%spec.SectorSize != 0:
		err = fmt.Errorf("has %d bytes, not a multiple of %d", st.Size(), spec.SectorSize)
	}
	if err == nil && vol.Kind == spec.VolumeFile && !vol.ReadOnly {
		err = v.checkUnder(vol.Name, false)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open volume %s: %w", vol.Name, err)
	}
	return f, nil
}

// openPath opens the one file that is written when the volume is.
func (v *volumes) openPath(vol *spec.Volume) (*os.File, error) {
	flags := os.O_RDWR
	if v.durable && vol.Kind != spec.VolumeMemory {
		flags |= unix.O_DSYNC
	}
	if vol.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(v.path(vol.Kind, vol.Name), flags|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// create makes a sparse file of so many bytes under another name first, formats it
// if that is not nil, and links it, so that a crash leaves no volume of the wrong size,
// and none that is half made. It fails with fs.ErrExist, and changes nothing, when
// there is one of that name.
//
// Sparse, because it is there at once, whatever its size, and because a guest's
// discards give room back. But a guest may fill what it was given at any time:
// so room for all of every volume must be there when one is made, beside the
// reserve for what the card itself writes.
func (v *volumes) create(kind spec.VolumeKind, name string, size spec.Bytes, format func(path string) error) error {
	path := v.path(kind, name)
	v.creating.Lock()
	defer v.creating.Unlock()
	if err := v.checkRoom(kind, size); err != nil {
		return fmt.Errorf("create volume %s: %w", name, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+name+"-*")
	if err != nil {
		return fmt.Errorf("create volume %s: %w", name, err)
	}
	defer os.Remove(tmp.Name())
	err = tmp.Truncate(int64(size))
	if err == nil && format != nil {
		err = format(tmp.Name())
	}
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Link(tmp.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("create volume %s: %w", name, err)
	}
	return nil
}

// remove deletes a volume that nobody has open.
func (v *volumes) remove(kind spec.VolumeKind, name string) error {
	path := v.path(kind, name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { // see disk.OpenFile
		return fmt.Errorf("delete volume %s: it is in use: %w", name, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	return syncDir(filepath.Dir(path))
}

// minReserve, or a twentieth of the file system when that is more, is never given
// to volumes: records, the audit log and sockets need it.
const minReserve = 64 * spec.MiB

// checkRoom refuses a volume that could not be filled. What is promised to sparse
// volumes and not yet in use counts as used.
func (v *volumes) checkRoom(kind spec.VolumeKind, size spec.Bytes) error {
	dir := v.dir(kind)
	var st unix.Statfs_t
	if err := v.statfs(dir, &st); err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	promised, err := v.unused(dir)
	if err != nil {
		return err
	}
	block := spec.Bytes(st.Bsize)
	free, reserve := spec.Bytes(st.Bavail)*block, max(minReserve, spec.Bytes(st.Blocks)*block/20)
	// In this order: a sum of sizes could overflow.
	if left := free - min(free, reserve); promised > left || size > left-promised {
		return fmt.Errorf("%s does not fit: %s free, of which %s are promised to other volumes and %s kept in reserve: %w",
			size, free, promised, reserve, unix.ENOSPC)
	}
	return nil
}

// unused is what the volumes in dir may still come to take.
func (v *volumes) unused(dir string) (spec.Bytes, error) {
	var sum spec.Bytes
	for _, kind := range kinds {
		if v.dir(kind) != dir {
			continue
		}
		list, err := v.listFiles(kind)
		if err != nil {
			return 0, err
		}
		for _, i := range list {
			sum += i.Size - min(i.Size, i.Allocated)
		}
	}
	return sum, nil
}

// kinds are all kinds of volume, in the order of lists.
var kinds = []spec.VolumeKind{spec.VolumeFile, spec.VolumeOverlay, spec.VolumeMemory}

func suffix(kind spec.VolumeKind) string {
	if kind == spec.VolumeOverlay {
		return overlaySuffix
	}
	return volumeSuffix
}

func (v *volumes) dir(kind spec.VolumeKind) string {
	if kind == spec.VolumeMemory {
		return v.memory
	}
	return v.files
}

func (v *volumes) path(kind spec.VolumeKind, name string) string {
	return filepath.Join(v.dir(kind), name+suffix(kind))
}

// list returns all volumes of the card.
func (v *volumes) list() ([]spec.VolumeStatus, error) {
	var out []spec.VolumeStatus
	for _, kind := range kinds {
		some, err := v.listFiles(kind)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	if err := v.describeOverlays(out); err != nil {
		return nil, err
	}
	return out, nil
}

// listFiles lists the files of one kind, with their own sizes.
func (v *volumes) listFiles(kind spec.VolumeKind) ([]spec.VolumeStatus, error) {
	dir := v.dir(kind)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var out []spec.VolumeStatus
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix(kind))
		var st syscall.Stat_t
		if !ok || spec.CheckName("volume", name) != nil || syscall.Lstat(filepath.Join(dir, e.Name()), &st) != nil {
			continue
		}
		out = append(out, spec.VolumeStatus{Name: name, Kind: kind, Size: spec.Bytes(st.Size), Allocated: spec.Bytes(st.Blocks * 512)})
	}
	return out, nil
}

// MaxDigest bounds one request for a volume's digest, so that it stays short.
const MaxDigest = 64 * spec.MiB

// digest is SHA-256 over length bytes of a volume from offset, as the card's
// storage holds them now.
func (v *volumes) digest(kind spec.VolumeKind, name string, offset, length spec.Bytes) ([]byte, error) {
	if err := errors.Join(kind.Check(), spec.CheckName("volume", name)); err != nil {
		return nil, err
	}
	if kind == spec.VolumeOverlay {
		return nil, fmt.Errorf("digest of volume %s: an overlay has none: its store holds only what was changed of its base", name)
	}
	f, err := os.OpenFile(v.path(kind, name), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("digest of volume %s: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("digest of volume %s: %w", name, err)
	}
	size := spec.Bytes(st.Size())
	if length == 0 || length > MaxDigest || offset > size || length > size-offset {
		return nil, fmt.Errorf("digest of volume %s: [%d, +%d) is not a range of at most %s inside its %s", name, offset, length, MaxDigest, size)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, int64(offset), int64(length))); err != nil {
		return nil, fmt.Errorf("digest of volume %s: %w", name, err)
	}
	return h.Sum(nil), nil
}
