// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/spec"
)

// VolumeArgs name a volume.
type VolumeArgs struct {
	Kind spec.VolumeKind `json:"kind"`
	Name string          `json:"name"`
}

// Validate implements mailbox.Validator.
func (v VolumeArgs) Validate() error {
	return errors.Join(v.Kind.Check(), spec.CheckName("volume", v.Name))
}

// VolumeCreateArgs say which file volume to make.
type VolumeCreateArgs struct {
	Name string     `json:"name"`
	Size spec.Bytes `json:"size"`
}

// Validate implements mailbox.Validator.
func (c VolumeCreateArgs) Validate() error {
	if c.Size == 0 {
		return errors.New("size: a volume needs one")
	}
	v := spec.Volume{Name: c.Name, Kind: spec.VolumeFile, Size: c.Size}
	return v.Validate()
}

// VolumeLimitArgs replace the limits of an instance's volume.
type VolumeLimitArgs struct {
	Instance string       `json:"instance"`
	Volume   string       `json:"volume"`
	Limits   *spec.Limits `json:"limits,omitempty"` // absent: none
}

// Validate implements mailbox.Validator.
func (l VolumeLimitArgs) Validate() error {
	if l.Limits != nil {
		if err := l.Limits.Validate(); err != nil {
			return err
		}
	}
	return errors.Join(spec.CheckName("instance", l.Instance), spec.CheckName("volume", l.Volume))
}

// DigestArgs name a range of a volume.
type DigestArgs struct {
	Kind   spec.VolumeKind `json:"kind"`
	Name   string          `json:"name"`
	Offset spec.Bytes      `json:"offset"`
	Length spec.Bytes      `json:"length"` // at most instance.MaxDigest
}

func (a *agent) opVolumes(context.Context, *mailbox.Command, None) (any, error) {
	return a.instances.Volumes()
}

func (a *agent) opVolumeDigest(_ context.Context, _ *mailbox.Command, args DigestArgs) (any, error) {
	return a.instances.VolumeDigest(args.Kind, args.Name, args.Offset, args.Length)
}

func (a *agent) opVolumeShow(_ context.Context, _ *mailbox.Command, args VolumeArgs) (any, error) {
	return a.instances.Volume(args.Kind, args.Name)
}

func (a *agent) opVolumeCreate(_ context.Context, _ *mailbox.Command, args VolumeCreateArgs) (any, error) {
	if err := a.instances.CreateVolume(args.Name, args.Size); err != nil {
		return nil, err
	}
	return a.instances.Volume(spec.VolumeFile, args.Name)
}

func (a *agent) opVolumeDelete(_ context.Context, _ *mailbox.Command, args VolumeArgs) (any, error) {
	if args.Kind == spec.VolumeFile && slices.Contains(a.cfg.Disks, args.Name) { // nothing has it open while there is no vcard
		return nil, fmt.Errorf("delete volume %s: it is offered as a local disk", args.Name)
	}
	return nil, a.instances.DeleteVolume(args.Kind, args.Name)
}

func (a *agent) opVolumeLimit(ctx context.Context, _ *mailbox.Command, args VolumeLimitArgs) (any, error) {
	return nil, a.instances.Limit(ctx, args.Instance, args.Volume, args.Limits)
}
