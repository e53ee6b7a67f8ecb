// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/davit-dpu/davit/firmware/spec"
)

// ErrNoVolume says that the card has no such volume.
var ErrNoVolume = errors.New("no such volume")

// Volumes lists the card's volumes, each with the instances that name it.
func (s *Service) Volumes() ([]spec.VolumeStatus, error) {
	all, err := s.volumes.list()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		all[i].Uses = s.uses(all[i].Kind, all[i].Name)
	}
	return all, nil
}

// Volume is one of Volumes.
func (s *Service) Volume(kind spec.VolumeKind, name string) (spec.VolumeStatus, error) {
	all, err := s.Volumes()
	if err != nil {
		return spec.VolumeStatus{}, err
	}
	i := slices.IndexFunc(all, func(v spec.VolumeStatus) bool { return v.Kind == kind && v.Name == name })
	if i < 0 {
		return spec.VolumeStatus{}, fmt.Errorf("volume %s, kind %s: %w", name, kind, ErrNoVolume)
	}
	return all[i], nil
}

// uses are the instances that name a volume, by name. mu is held.
func (s *Service) uses(kind spec.VolumeKind, name string) []spec.VolumeUse {
	var out []spec.VolumeUse
	for _, r := range s.runners {
		st := r.show()
		for _, v := range st.Spec.Volumes {
			if v.Kind != kind || v.Name != name {
				continue
			}
			use := spec.VolumeUse{Instance: st.Spec.Name, ReadOnly: v.ReadOnly, Limits: v.Limits}
			if i := slices.IndexFunc(st.Devices, func(d spec.DeviceStatus) bool { return d.Name == name }); i >= 0 {
				use.Device = &st.Devices[i]
			}
			out = append(out, use)
		}
	}
	slices.SortFunc(out, func(a, b spec.VolumeUse) int { return cmp.Compare(a.Instance, b.Instance) })
	return out
}

// CreateVolume makes an empty file volume, before any instance names it.
func (s *Service) CreateVolume(name string, size spec.Bytes) error {
	vol := spec.Volume{Name: name, Kind: spec.VolumeFile, Size: size}
	if err := vol.Validate(); err != nil {
		return fmt.Errorf("create volume: %w", err)
	}
	if size == 0 {
		return errors.New("create volume: size: it needs one")
	}
	return s.volumes.create(vol.Kind, vol.Name, vol.Size, nil)
}

// DeleteVolume deletes a volume that no instance names and no overlay lies over. While there is a record
// that cannot be read, nobody knows which volumes that instance names.
func (s *Service) DeleteVolume(kind spec.VolumeKind, name string) error {
	if err := errors.Join(kind.Check(), spec.CheckName("volume", name)); err != nil {
		return fmt.Errorf("delete volume: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.broken {
		return fmt.Errorf("delete volume %s: it may belong to instance %s, whose record cannot be read: delete that instance first", name, other)
	}
	if uses := s.uses(kind, name); len(uses) > 0 {
		return fmt.Errorf("delete volume %s: it belongs to instance %s", name, uses[0].Instance)
	}
	if kind == spec.VolumeFile {
		if err := s.checkBase(name, true); err != nil {
			return fmt.Errorf("delete volume %s: %w", name, err)
		}
	}
	return s.volumes.remove(kind, name)
}

// checkBase refuses to change a file volume over which an overlay lies, or is
// wanted. mu is held. For strict see volumes.checkUnder.
func (s *Service) checkBase(name string, strict bool) error {
	writer := spec.Volume{Name: name, Kind: spec.VolumeFile}
	for owner, r := range s.runners {
		for i := range r.spec.Volumes {
			if o := &r.spec.Volumes[i]; writer.WritesBaseOf(o) {
				return fmt.Errorf("volume %s is the base of overlay %s of instance %s", name, o.Name, owner)
			}
		}
	}
	return s.volumes.checkUnder(name, strict)
}

// OpenVolume opens an existing file volume for reading and writing, for a device
// that belongs to no instance. The caller closes it.
func (s *Service) OpenVolume(name string) (*os.File, error) {
	if err := spec.CheckName("volume", name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkBase(name, false); err != nil {
		return nil, fmt.Errorf("open volume %s: %w", name, err)
	}
	return s.volumes.openFile(&spec.Volume{Name: name, Kind: spec.VolumeFile}, false)
}

// VolumeDigest is SHA-256 over [offset, offset+length) of a volume as the
// card's storage holds it now; length is at most MaxDigest.
func (s *Service) VolumeDigest(kind spec.VolumeKind, name string, offset, length spec.Bytes) ([]byte, error) {
	return s.volumes.digest(kind, name, offset, length)
}
