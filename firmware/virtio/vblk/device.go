// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// MaxSerial is the longest serial number in bytes (VIRTIO_BLK_ID_BYTES).
const MaxSerial = 20

// DefaultDepth is the number of requests of one queue that wait for the volume at
// a time.
const DefaultDepth = 16

// Options are the properties of a block device.
type Options struct {
	// Serial is what the guest sees as the disk's serial number: printable
	// ASCII, up to MaxSerial bytes.
	Serial string
	// Queues is the number of virtqueues, 1 to 256. Default: 1.
	Queues int
	// Depth is the number of requests of one queue that wait for the volume at a
	// time, 1 to 1024. Default: DefaultDepth.
	Depth int
	// ConfigWCE lets the driver turn the write cache off (see the package's
	// documentation for why not). The setting lives as long as the Device.
	ConfigWCE bool
	// Log gets failed requests, at most one line a second. Default: no log.
	Log *slog.Logger
	// Limits hold the guest back from the beginning on; see SetLimits. Default: none.
	Limits Limits
	// Now is the clock for the log's limit and for Limits. Default: time.Now.
	Now func() time.Time
}

// Device is a virtio block device. It implements virtio.Device and
// virtio.ConfigWatcher.
type Device struct {
	virtio.ConfigWatch
	volume  disk.Volume
	trimmer disk.Trimmer  // nil: no discard, no write-zeroes
	prompt  disk.Prompter // nil: every access may have to wait
	info    virtio.Info
	queues  int
	depth   int
	serial  [MaxSerial]byte
	log     limitedLog
	limit   limiter // of all queues together

	writeback atomic.Bool // write cache is on
	stats     []counters  // one for each queue
}

// New makes a device that serves a volume, which stays the caller's and must
// stay open until no session serves the device any longer.
func New(volume disk.Volume, opts Options) (*Device, error) {
	if opts.Queues == 0 {
		opts.Queues = 1
	}
	if opts.Depth == 0 {
		opts.Depth = DefaultDepth
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Queues < 1 || opts.Queues > 256 {
		return nil, fmt.Errorf("block device with %d queues, 1 to 256 are possible", opts.Queues)
	}
	if opts.Depth < 1 || opts.Depth > 1024 {
		return nil, fmt.Errorf("block device of depth %d, 1 to 1024 are possible", opts.Depth)
	}
	if err := checkSerial(opts.Serial); err != nil {
		return nil, err
	}
	d := &Device{
		volume: volume, queues: opts.Queues, depth: opts.Depth,
		log:   limitedLog{log: opts.Log, now: opts.Now},
		limit: limiter{now: opts.Now},
		stats: make([]counters, opts.Queues),
	}
	d.limit.set(opts.Limits)
	copy(d.serial[:], opts.Serial)
	if t, ok := volume.(disk.Trimmer); ok && !volume.Info().ReadOnly {
		d.trimmer = t
	}
	if p, ok := volume.(disk.Prompter); ok {
		d.prompt = p
	}
	d.writeback.Store(true)
	d.info = virtio.Info{Queues: opts.Queues, Features: d.features(opts.ConfigWCE)}
	return d, nil
}

func checkSerial(s string) error {
	if len(s) > MaxSerial {
		return fmt.Errorf("serial number %q has %d bytes, at most %d", s, len(s), MaxSerial)
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return fmt.Errorf("serial number %q is not printable ASCII", s)
		}
	}
	return nil
}

func (d *Device) features(configWCE bool) virtio.Features {
	f := FeatureSegMax | FeatureBlkSize | FeatureFlush | FeatureTopology
	if d.queues > 1 {
		f |= FeatureMQ
	}
	if configWCE {
		f |= FeatureConfigWCE
	}
	if d.trimmer != nil {
		f |= FeatureDiscard | FeatureWriteZeroes
	}
	if d.volume.Info().ReadOnly {
		f |= FeatureReadOnly
	}
	return f
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info { return d.info }

// Grow takes over the size that the volume's store has now, and returns it in
// bytes: requests may use it, and drivers are told of the new capacity (Virtio 1.2,
// 5.2.4). A store that has shrunk is an error (disk.ErrShrunk), and so is a volume
// that cannot grow (disk.ErrNotSupported); the device goes on as before.
func (d *Device) Grow() (int64, error) {
	g, ok := d.volume.(disk.Growable)
	if !ok {
		return 0, fmt.Errorf("grow block device: %w", disk.ErrNotSupported)
	}
	was := d.volume.Info().Size
	size, err := g.Grow()
	if err != nil {
		return 0, fmt.Errorf("grow block device: %w", err)
	}
	if size != was {
		d.ConfigChanged()
	}
	return size, nil
}

// SetLimits changes how fast the device works, at once: also for requests that
// wait. Setting those that are in force changes nothing.
func (d *Device) SetLimits(l Limits) { d.limit.set(l) }

// Stats returns the counters of each queue.
func (d *Device) Stats() []Stats {
	all := make([]Stats, len(d.stats))
	for i := range d.stats {
		all[i] = d.stats[i].snapshot()
	}
	return all
}

// Serve implements virtio.Device.
func (d *Device) Serve(ctx context.Context, q virtio.Queue) error {
	s := &server{Device: d, ctx: ctx, stop: q.Stopping(), failed: q.Err, queue: q.Index, features: q.Features, stats: &d.stats[q.Index]}
	if !q.MayLeave() {
		s.ctx = context.WithoutCancel(ctx)
	}
	service := virtq.Service{Try: s.try, Handle: s.handle, Workers: d.depth}
	s.requests = make([]request, service.Slots())
	return q.Serve(ctx, service)
}

var (
	_ virtio.Device        = (*Device)(nil)
	_ virtio.ConfigWatcher = (*Device)(nil)
)
