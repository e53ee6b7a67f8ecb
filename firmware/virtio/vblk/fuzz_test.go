// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// cut makes buffers of b whose lengths are the bytes of at.
func cut(b, at []byte) [][]byte {
	var bufs [][]byte
	for _, n := range at {
		if int(n) == 0 || int(n) >= len(b) {
			break
		}
		bufs, b = append(bufs, b[:n:n]), b[n:]
	}
	if len(b) > 0 {
		bufs = append(bufs, b)
	}
	return bufs
}

// FuzzRequest executes any bytes as a request, cut anywhere: it is refused as a
// violation, or gets a status that the specification knows and a true length.
func FuzzRequest(f *testing.F) {
	v, err := disk.NewMemory(testSize)
	if err != nil {
		f.Fatal(err)
	}
	d, err := New(v, Options{Serial: "fuzz"})
	if err != nil {
		f.Fatal(err)
	}
	for _, kind := range []uint32{typeIn, typeOut, typeFlush, typeGetID, typeDiscard, typeWriteZeroes, 99} {
		hdr := binary.LittleEndian.AppendUint32(nil, kind)
		hdr = binary.LittleEndian.AppendUint64(append(hdr, 0, 0, 0, 0), 5)
		f.Add(append(hdr, ranges([3]uint64{8, 8, 0})...), uint16(513), []byte{16, 3})
		f.Add(append(hdr, make([]byte, 512)...), uint16(1), []byte{8, 8, 100})
		f.Add(hdr, uint16(21), []byte{})
	}
	f.Fuzz(func(t *testing.T, readable []byte, room uint16, at []byte) {
		const untouched = 0xee
		writable := bytes.Repeat([]byte{untouched}, int(room))
		s := &server{Device: d, features: virtio.FeatureVersion1, stats: &d.stats[0], requests: make([]request, 1)}
		c := &virtq.Chain{Readable: cut(readable, at), Writable: cut(writable, at)}
		n, err := s.both(c)
		if err != nil {
			var broken *virtq.ProtocolError
			if !errors.As(err, &broken) || n != 0 || len(readable) >= headerSize && room > 0 {
				t.Errorf("got %d, %v", n, err)
			}
			return
		}
		status := writable[len(writable)-1]
		if status > statusUnsupp {
			t.Errorf("status %d", status)
		}
		if n != 0 && n != uint32(room) {
			t.Errorf("length %d of %d", n, room)
		}
	})
}
