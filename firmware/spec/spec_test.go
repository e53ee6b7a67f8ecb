// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

const goodInstance = `
name: demo
vcpus: 2
memory: 256MiB
restart: on-failure
boot:
  kernel: vmlinuz
  initrd: initrd.img
  cmdline: console=ttyS0
volumes:
  - name: demo-root
    kind: file
    size: 64MiB
    queues: 2
    serial: ROOT1
  - {name: scratch, kind: memory, size: 1MiB, readOnly: true}
`

func TestParseInstanceRoundTrip(t *testing.T) {
	want, err := ParseInstance([]byte(goodInstance))
	if err != nil {
		t.Fatal(err)
	}
	if want.Memory != 256*MiB || len(want.Volumes) != 2 || want.Volumes[1].Size != MiB || !want.Volumes[1].ReadOnly {
		t.Fatalf("decoded to %+v", want)
	}
	text, err := EncodeYAML(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseInstance(text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("yaml: got %+v, %v; want %+v", got, err, want)
	}
	for name, codec := range map[string]struct {
		enc func(any) ([]byte, error)
		dec func([]byte, any) error
	}{"json": {json.Marshal, json.Unmarshal}, "cbor": {cbor.Marshal, cbor.Unmarshal}} {
		data, err := codec.enc(want)
		if err != nil {
			t.Fatal(name, err)
		}
		var back Instance
		if err := codec.dec(data, &back); err != nil || !reflect.DeepEqual(&back, want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, back, err, want)
		}
	}
}

func TestParseInstanceRefuses(t *testing.T) {
	tests := []struct{ name, from, to, want string }{
		{"unknown key", "vcpus: 2", "vcpus: 2\nvcpu: 3", "vcpu"},
		{"unknown key below", "queues: 2", "queus: 2", "queus"},
		{"duplicate key", "vcpus: 2", "vcpus: 2\nvcpus: 3", "vcpus"},
		{"second document", "name: demo\n", "name: demo\n---\nname: other\n", ""},
		{"name escapes", "name: demo\n", "name: ../demo\n", "instance name"},
		{"no vcpus", "vcpus: 2", "vcpus: 0", "vcpus"},
		{"memory unaligned", "256MiB", "257MiB", "memory"},
		{"memory decimal unit", "256MiB", "256MB", "256MB"},
		{"memory overflow", "256MiB", "99999999999TiB", "larger"},
		{"memory negative", "256MiB", "-1", "size"},
		{"restart", "on-failure", "sometimes", "restart"},
		{"kind", "kind: file", "kind: tape", "volumes[0]"},
		{"serial long", "ROOT1", "ROOT12345678901234567890", "serial"},
		{"queues", "queues: 2", "queues: 17", "queues"},
		{"limits without any", "queues: 2", "limits: {}", "neither iops nor bandwidth"},
		{"limits of a burst alone", "queues: 2", "limits: {burst: 1s}", "neither iops nor bandwidth"},
		{"limits misspelt", "queues: 2", "limits: {iop: 5}", "iop"},
		{"iops high", "queues: 2", "limits: {iops: 1000001}", "iops"},
		{"iops negative", "queues: 2", "limits: {iops: -1}", "iops"},
		{"bandwidth low", "queues: 2", "limits: {bandwidth: 1KiB}", "bandwidth"},
		{"bandwidth high", "queues: 2", "limits: {bandwidth: 2TiB}", "bandwidth"},
		{"burst low", "queues: 2", "limits: {iops: 5, burst: 1us}", "burst"},
		{"burst high", "queues: 2", "limits: {iops: 5, burst: 2m}", "burst"},
		{"burst negative", "queues: 2", "limits: {iops: 5, burst: -1s}", "burst"},
		{"burst without unit", "queues: 2", "limits: {iops: 5, burst: 100}", "such as 100ms"},
		{"size unaligned", "size: 64MiB", "size: 1000", "size"},
		{"overlay without base", "kind: memory", "kind: overlay", "base \"\""},
		{"base of a file", "queues: 2", "base: golden", "only an overlay"},
		{"base path", "kind: memory", "kind: overlay, base: ../golden", "base \"../golden\""},
		{"base written beside", "kind: memory", "kind: overlay, base: demo-root", "readOnly"},
		{"volume twice", "name: scratch", "name: demo-root", "twice"},
		{"initrd alone", "kernel: vmlinuz\n", "\n", "need a kernel"},
		{"firmware and kernel", "kernel: vmlinuz\n", "kernel: vmlinuz\n  firmware: bios\n", "exclude"},
		{"kernel path", "kernel: vmlinuz", "kernel: /etc/shadow", "kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodInstance, tt.from, tt.to, 1)
			if text == goodInstance {
				t.Fatalf("%q is not in the sample", tt.from)
			}
			got, err := ParseInstance([]byte(text))
			if err == nil || got != nil {
				t.Fatalf("accepted: %+v", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	text := strings.Replace(goodInstance, "queues: 2", "limits: {iops: 500, bandwidth: 10MiB, burst: 1s}", 1)
	in, err := ParseInstance([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := Limits{IOPS: 500, Bandwidth: 10 * MiB, Burst: Duration(time.Second)}
	if got := in.Volumes[0].Limits; !SameLimits(got, &want) || got.String() != "500 iops, 10MiB/s, burst 1s" {
		t.Errorf("got %v, want %v", got, &want)
	}
	again, err := EncodeYAML(in)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseInstance(again); err != nil || !reflect.DeepEqual(back, in) {
		t.Errorf("got %+v, %v after a round trip, want %+v\n%s", back, err, in, again)
	}
	if got := (&Limits{IOPS: 1}).BurstOrDefault(); got != time.Duration(DefaultBurst) {
		t.Errorf("default burst %v", got)
	}
	if (*Limits)(nil).String() != "none" || SameLimits(nil, &want) || !SameLimits(nil, nil) {
		t.Error("no limits are not none")
	}
}

func TestOverlay(t *testing.T) {
	text := strings.Replace(goodInstance, "kind: memory", "kind: overlay, base: golden", 1)
	in, err := ParseInstance([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	o := &in.Volumes[1]
	if o.Kind != VolumeOverlay || o.Base != "golden" {
		t.Errorf("got %+v", o)
	}
	again, err := EncodeYAML(in)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseInstance(again); err != nil || !reflect.DeepEqual(back, in) {
		t.Errorf("got %+v, %v after a round trip, want %+v\n%s", back, err, in, again)
	}
	for v, want := range map[*Volume]bool{
		{Name: "golden", Kind: VolumeFile}:                 true,
		{Name: "golden", Kind: VolumeFile, ReadOnly: true}: false,
		{Name: "golden", Kind: VolumeMemory}:               false,
		{Name: "other", Kind: VolumeFile}:                  false,
	} {
		if got := v.WritesBaseOf(o); got != want {
			t.Errorf("%+v writes the base: %v, want %v", v, got, want)
		}
	}
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "512": 512, "1KiB": 1024, "3MiB": 3 << 20, "2TiB": 2 << 40} {
		got, err := ParseBytes(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParseBytes(%q) = %d, %v, prints %q", text, got, err, got)
		}
	}
	for _, text := range []string{"", "MiB", "1.5GiB", "1 MiB", "-1", "+1", "18446744073709551616", "16777216TiB"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", text, got)
		}
	}
}

func TestVMMOrderValidate(t *testing.T) {
	good := func() VMMOrder {
		return VMMOrder{Instance: "demo", Generation: strings.Repeat("0a", 16), VCPUs: 1, Memory: 64 * MiB, PoolOffset: 2 * MiB,
			Kernel: &Blob{Offset: 60 * MiB, Length: 4096, SHA256: make([]byte, 32)}, Disks: []VMMDisk{{"root", 1}}}
	}
	pool := 66 * MiB
	if o := good(); o.Validate(pool) != nil {
		t.Fatal(o.Validate(pool))
	}
	bad := map[string]func(*VMMOrder){
		"head of the pool":     func(o *VMMOrder) { o.PoolOffset = 0 },
		"past the pool":        func(o *VMMOrder) { o.PoolOffset = 4 * MiB },
		"offset overflow":      func(o *VMMOrder) { o.PoolOffset = ^Bytes(0) - 2*MiB + 1 },
		"generation":           func(o *VMMOrder) { o.Generation = "zz" },
		"blob outside":         func(o *VMMOrder) { o.Kernel.Offset = 66*MiB - 100 },
		"blob overflow":        func(o *VMMOrder) { o.Kernel.Length = ^Bytes(0) },
		"blob before":          func(o *VMMOrder) { o.Kernel.Offset = MiB },
		"no digest":            func(o *VMMOrder) { o.Kernel.SHA256 = nil },
		"disk twice":           func(o *VMMOrder) { o.Disks = append(o.Disks, o.Disks[0]) },
		"disk name":            func(o *VMMOrder) { o.Disks[0].Device = "a,b" },
		"firmware unknown":     func(o *VMMOrder) { o.Kernel, o.Firmware = nil, "coreboot" },
		"cmdline with newline": func(o *VMMOrder) { o.Cmdline = "a\nb" },
	}
	for name, spoil := range bad {
		o := good()
		spoil(&o)
		if o.Validate(pool) == nil {
			t.Errorf("%s: accepted %+v", name, o)
		}
	}
}

func FuzzParseInstance(f *testing.F) {
	f.Add([]byte(goodInstance))
	f.Add([]byte("name: a\nvcpus: 1\nmemory: 64MiB\nvolumes: [{name: v, kind: overlay, base: b}, {name: b, kind: file, readOnly: true}]\n"))
	f.Add([]byte("name: a\nvcpus: 1\nmemory: 64MiB\nboot: {kernel: k}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		in, err := ParseInstance(text)
		if (err == nil) != (in != nil) {
			t.Fatalf("got %v and %v", in, err)
		}
		if in != nil && in.Validate() != nil {
			t.Fatalf("accepted what Validate refuses: %v", in.Validate())
		}
	})
}
