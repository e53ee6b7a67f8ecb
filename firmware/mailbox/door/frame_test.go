// SPDX-License-Identifier: Apache-2.0

package door

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

func TestFrameRoundTrip(t *testing.T) {
	t.Parallel()
	for kind, size := range map[Kind]int{Envelope: mailbox.MaxCommand, Receipt: mailbox.MaxReceipt, Data: MaxData, End: 0} {
		for _, n := range []int{0, size} {
			body := bytes.Repeat([]byte{7}, n)
			var b bytes.Buffer
			if err := WriteFrame(&b, kind, body); err != nil {
				t.Fatalf("kind %d: %v", kind, err)
			}
			gotKind, got, err := ReadFrame(&b, Envelope, Receipt, Data, End)
			if err != nil || gotKind != kind || !bytes.Equal(got, body) || b.Len() != 0 {
				t.Errorf("kind %d with %d bytes: kind %d, %d bytes, %v", kind, n, gotKind, len(got), err)
			}
		}
		if err := WriteFrame(io.Discard, kind, make([]byte, size+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("kind %d with %d bytes: %v, want ErrTooLarge", kind, size+1, err)
		}
	}
	if err := WriteFrame(io.Discard, 9, nil); !errors.Is(err, ErrKind) {
		t.Errorf("kind 9: %v, want ErrKind", err)
	}
}

func TestFramesRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		in   string
		want error
	}{
		{"nothing", "", io.EOF},
		{"half a header", "\x00\x00", io.ErrUnexpectedEOF},
		{"no body", "\x00\x00\x00\x05\x01", io.ErrUnexpectedEOF},
		{"half a body", "\x00\x00\x00\x05\x01abc", io.ErrUnexpectedEOF},
		{"4 GiB", "\xff\xff\xff\xff\x01abc", ErrTooLarge},
		{"end with a body", "\x00\x00\x00\x01\x04a", ErrTooLarge},
		{"kind 0", "\x00\x00\x00\x00\x00", ErrKind},
		{"kind that does not belong", "\x00\x00\x00\x00\x02", ErrKind},
	} {
		kind, body, err := ReadFrame(bytes.NewReader([]byte(tt.in)), Envelope, End)
		if !errors.Is(err, tt.want) || kind != 0 || body != nil {
			t.Errorf("%s: kind %d, %q, %v; want %v", tt.name, kind, body, err, tt.want)
		}
	}
}

// An announced length costs no memory until the bytes are there.
func TestAnnouncedLengthIsNotAllocated(t *testing.T) {
	t.Parallel()
	in := []byte{0, 0x40, 0, 0, byte(Receipt), 1, 2, 3} // 4 MiB announced, 3 bytes there
	r := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := ReadFrame(bytes.NewReader(in), Receipt); err == nil {
				b.Fatal("reads")
			}
		}
	})
	if got := r.AllocedBytesPerOp(); got > 16<<10 {
		t.Errorf("%d bytes allocated for 3 that arrived", got)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05\x01hello\x00\x00\x00\x00\x04"))
	f.Add([]byte("\xff\xff\xff\xff\x03"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			before := r.Len()
			kind, body, err := ReadFrame(r, Envelope, Receipt, Data, End)
			if err != nil {
				if kind != 0 || body != nil {
					t.Fatalf("kind %d, %x with error %v", kind, body, err)
				}
				return
			}
			var b bytes.Buffer
			if err := WriteFrame(&b, kind, body); err != nil || b.Len() != before-r.Len() {
				t.Fatalf("kind %d, %x is not what was read (%v)", kind, body, err)
			}
		}
	})
}
