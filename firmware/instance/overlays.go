// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/spec"
)

// overlaySuffix is that of an overlay's store, beside the file volumes.
const overlaySuffix = ".overlay"

// openOverlay opens an overlay's base for reading and its store, which with create
// is made when it is not there yet. The base is locked as its readers lock it, so
// that nobody writes it from here until the last descriptor is closed.
func (v *volumes) openOverlay(vol *spec.Volume, create bool) (VolumeFiles, error) {
	base, err := v.openBase(vol.Base)
	if err != nil {
		return VolumeFiles{}, fmt.Errorf("open volume %s: base: %w", vol.Name, err)
	}
	files := VolumeFiles{Base: base}
	if files.BaseID, err = contentOf(base); err == nil {
		files.File, err = v.openStore(vol, create, &files)
	}
	if err != nil {
		files.Close()
		return VolumeFiles{}, err
	}
	return files, nil
}

func (v *volumes) openBase(name string) (*os.File, error) {
	base, err := v.openFile(&spec.Volume{Name: name, Kind: spec.VolumeFile, ReadOnly: true}, false)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(base.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil { // see disk.OpenFile
		base.Close()
		return nil, fmt.Errorf("volume %s is being written: %w", name, err)
	}
	return base, nil
}

// openStore opens the store of an overlay that was made over the base at hand.
func (v *volumes) openStore(vol *spec.Volume, create bool, over *VolumeFiles) (*os.File, error) {
	f, err := v.openPath(vol)
	if errors.Is(err, fs.ErrNotExist) && create {
		if err := v.createOverlay(vol, over); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		return v.openStore(vol, false, over) // what is there now, whoever made it
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", vol.Name, err)
	}
	h, err := disk.ReadOverlayHeader(f)
	switch {
	case err != nil:
	case h.Base != over.BaseID:
		err = fmt.Errorf("%w: volume %s is not what it was made over, or was changed since", disk.ErrOtherBase, vol.Base)
	case vol.Size != 0 && h.Size != int64(vol.Size):
		err = fmt.Errorf("has %s, the instance wants %s", spec.Bytes(h.Size), vol.Size)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open volume %s: %w", vol.Name, err)
	}
	return f, nil
}

// createOverlay makes the store of an empty overlay. What it is made over is on the
// storage first: a power cut must not leave another base than the one it names.
func (v *volumes) createOverlay(vol *spec.Volume, over *VolumeFiles) error {
	st, err := over.Base.Stat()
	if err == nil {
		err = over.Base.Sync()
	}
	if err != nil {
		return fmt.Errorf("create volume %s: base: %w", vol.Name, err)
	}
	h := disk.OverlayHeader{
		Size: cmp.Or(int64(vol.Size), st.Size()), BaseSize: st.Size(), ClusterSize: disk.DefaultClusterSize, Base: over.BaseID,
	}
	return v.create(vol.Kind, vol.Name, spec.Bytes(h.StoreSize()), func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		store, err := disk.OpenFile(f, false)
		if err != nil {
			return err
		}
		return errors.Join(disk.FormatOverlay(store, h), store.Close())
	})
}

// contentOf names the content of a base: which file it is, its size and when it was
// written last. Whoever writes a file changes that, and it costs no reading of it.
func contentOf(base *os.File) (disk.BaseID, error) {
	raw, err := base.SyscallConn()
	if err != nil {
		return disk.BaseID{}, err
	}
	var st unix.Stat_t
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.Fstat(int(fd), &st) }); err != nil || serr != nil {
		return disk.BaseID{}, fmt.Errorf("look at %s: %w", base.Name(), errors.Join(err, serr))
	}
	return contentID(&st), nil
}

// contentID leaves out the time of the last change of the inode: a link or another
// mode does not change what is in it.
func contentID(st *unix.Stat_t) disk.BaseID {
	b := []byte("davit file volume 1\x00")
	for _, n := range []uint64{st.Ino, uint64(st.Size), uint64(st.Mtim.Sec), uint64(st.Mtim.Nsec)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return sha256.Sum256(b)
}

// checkUnder refuses to change a file volume that overlays lie over: they would be
// lost. A volume that is not there has none. A store that cannot be read shows
// nothing any more; with strict it counts nevertheless, as for what cannot be undone.
func (v *volumes) checkUnder(name string, strict bool) error {
	var st unix.Stat_t
	err := unix.Lstat(v.path(spec.VolumeFile, name), &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	stores, err := v.stores()
	if err != nil {
		return err
	}
	id := contentID(&st)
	var over []string
	for _, s := range stores {
		switch {
		case s.err != nil && strict:
			return fmt.Errorf("volume %s may be the base of overlay %s, which cannot be read: delete that first: %w", name, s.name, s.err)
		case s.err == nil && s.header.Base == id:
			over = append(over, s.name)
		}
	}
	if len(over) > 0 {
		return fmt.Errorf("volume %s is the base of overlay %s", name, strings.Join(over, ", "))
	}
	return nil
}

// overlayStore is one store as its header says.
type overlayStore struct {
	name   string
	header disk.OverlayHeader
	err    error // why there is no header
}

// stores are those of all overlays of the card.
func (v *volumes) stores() ([]overlayStore, error) {
	entries, err := os.ReadDir(v.files)
	if err != nil {
		return nil, fmt.Errorf("list overlays: %w", err)
	}
	var out []overlayStore
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), overlaySuffix)
		if !ok || spec.CheckName("volume", name) != nil {
			continue
		}
		s := overlayStore{name: name}
		s.header, s.err = readStore(filepath.Join(v.files, e.Name()))
		if errors.Is(s.err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		out = append(out, s)
	}
	return out, nil
}

func readStore(path string) (disk.OverlayHeader, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return disk.OverlayHeader{}, err
	}
	defer f.Close()
	return disk.ReadOverlayHeader(f)
}

// describeOverlays says of each overlay in list how large it is for a guest, and over
// which of the file volumes in the list it was made.
func (v *volumes) describeOverlays(list []spec.VolumeStatus) error {
	stores, err := v.stores()
	if err != nil {
		return err
	}
	bases := map[disk.BaseID]string{}
	for _, f := range list {
		var st unix.Stat_t
		if f.Kind == spec.VolumeFile && unix.Lstat(v.path(f.Kind, f.Name), &st) == nil {
			bases[contentID(&st)] = f.Name
		}
	}
	headers := map[string]disk.OverlayHeader{}
	for _, s := range stores {
		if s.err == nil {
			headers[s.name] = s.header
		}
	}
	for i := range list {
		if o := &list[i]; o.Kind == spec.VolumeOverlay {
			h, ok := headers[o.Name]
			o.Size = spec.Bytes(h.Size)
			if ok {
				o.Base = bases[h.Base]
			}
		}
	}
	return nil
}
