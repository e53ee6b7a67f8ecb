// SPDX-License-Identifier: Apache-2.0

package vhostusertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// Log is a bitmap of dirty pages, seen from the front end.
type Log struct {
	fd   int
	bits []byte
}

// NewLog makes a bitmap for so many bytes of guest memory.
func NewLog(memory int) (*Log, error) {
	n := (memory/guestmem.PageSize/8 + 7) &^ 7
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return nil, errors.Join(fmt.Errorf("size log: %w", err), unix.Close(fd))
	}
	b, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map log: %w", err), unix.Close(fd))
	}
	return &Log{fd: fd, bits: b}, nil
}

// FD is the log's file. It stays the Log's.
func (l *Log) FD() int { return l.fd }

// Sync returns the pages that were marked since the last time, and clears them.
func (l *Log) Sync() map[uint64]bool {
	pages := map[uint64]bool{}
	for i := 0; i < len(l.bits); i += 4 {
		word := atomic.SwapUint32((*uint32)(unsafe.Pointer(&l.bits[i])), 0)
		for bit := range 32 {
			if word>>bit&1 == 1 {
				pages[uint64(8*i+bit)] = true
			}
		}
	}
	return pages
}

// Close unmaps and closes the log.
func (l *Log) Close() error { return errors.Join(unix.Munmap(l.bits), unix.Close(l.fd)) }

// SetLog has the back end use a log once it is to log at all.
func (f *FrontEnd) SetLog(l *Log) error {
	err := f.Send(vhostuser.Message{Request: vhostuser.SetLogBase, Flags: version, Payload: LogBase(uint64(len(l.bits)), 0), FDs: []int{l.fd}})
	if err != nil {
		return err
	}
	p, err := f.readReply(vhostuser.SetLogBase)
	if err == nil && len(p) != 8 {
		err = fmt.Errorf("reply of %d bytes to SET_LOG_BASE", len(p))
	}
	return err
}

// StartLog has a back end log what it writes, with these features and this queue
// running, in the order of QEMU.
func (f *FrontEnd) StartLog(features virtio.Features, index int, q *Queue) error {
	err := f.Do(vhostuser.SetFeatures, U64(uint64(features|vhostuser.FeatureProtocolFeatures|vhostuser.FeatureLogAll)))
	return errors.Join(err, f.Do(vhostuser.SetVringAddr, LoggedAddr(index, q.Driver)))
}

// StopLog ends what StartLog began.
func (f *FrontEnd) StopLog(features virtio.Features, index int, q *Queue) error {
	err := f.Do(vhostuser.SetFeatures, U64(uint64(features|vhostuser.FeatureProtocolFeatures)))
	return errors.Join(err, f.Do(vhostuser.SetVringAddr, Addr(index, q.Driver)))
}

// LogBase is the payload that describes a log.
func LogBase(size, offset uint64) []byte {
	return binary.LittleEndian.AppendUint64(U64(size), offset)
}
