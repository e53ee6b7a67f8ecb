// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// limitWish is what an operator wants one volume's limits to be.
type limitWish struct {
	volume string
	limits *spec.Limits // nil: none
}

// Limit replaces the limits of an instance's volume, nil for none. They are
// stored, and if the instance runs, in force when it returns without an error.
func (s *Service) Limit(ctx context.Context, name, volume string, limits *spec.Limits) error {
	if limits != nil {
		if err := limits.Validate(); err != nil {
			return fmt.Errorf("instance %s: volume %s: %w", name, volume, err)
		}
	}
	r, err := s.runner(name)
	if err != nil {
		return err
	}
	return r.want(ctx, wish{limit: &limitWish{volume, limits}})
}

// grantLimit stores limits before they come into force: what a restart finds is
// never less than what was seen to be so.
func (r *runner) grantLimit(ctx context.Context, w *limitWish) error {
	i := slices.IndexFunc(r.rec.Spec.Volumes, func(v spec.Volume) bool { return v.Name == w.volume })
	if i < 0 {
		return fmt.Errorf("instance %s: it has no volume %s", r.spec.Name, w.volume)
	}
	next := r.rec
	next.Spec.Volumes = slices.Clone(next.Spec.Volumes) // others read the old ones
	next.Spec.Volumes[i].Limits = w.limits
	if err := r.save(next); err != nil {
		return err
	}
	if next.Generation == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := r.svc.cfg.Host.LimitDevice(ctx, r.spec.Name, w.volume, w.limits); err != nil {
		return fmt.Errorf("instance %s: volume %s: the limits are stored, and come into force when the vcard takes them: %w", r.spec.Name, w.volume, err)
	}
	return nil
}

// keepLimits repeats what an agent that died, or a vcard that did not answer, left
// undone. Limits that are in force already are not disturbed by it.
func (r *runner) keepLimits(ctx context.Context, devices []spec.DeviceStatus) time.Time {
	call, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for _, v := range r.rec.Spec.Volumes {
		for _, d := range devices {
			if d.Name != v.Name || spec.SameLimits(d.Limits, v.Limits) {
				continue
			}
			if err := r.svc.cfg.Host.LimitDevice(call, r.spec.Name, v.Name, v.Limits); err != nil {
				return r.svc.cfg.Now().Add(firstRetry)
			}
		}
	}
	return time.Time{}
}
