// SPDX-License-Identifier: Apache-2.0

package detect

import (
	"testing"
	"testing/fstest"
)

func TestDetect(t *testing.T) {
	tests := []struct {
		name            string
		vendor, product string
		want            string
	}{
		{"emulated card", "QEMU\n", "QEMU Virtual Machine\n", "qemuvirt"},
		{"x86 guest", "QEMU\n", "Standard PC (Q35 + ICH9, 2009)\n", ""},
		{"another vendor", "Acme\n", "Virtual Machine\n", ""},
		{"nothing known", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sysfs := fstest.MapFS{
				"class/dmi/id/sys_vendor":   {Data: []byte(tt.vendor)},
				"class/dmi/id/product_name": {Data: []byte(tt.product)},
			}
			got, err := Detect(sysfs)
			if got.Name != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v; want %q", got.Name, err, tt.want)
			}
		})
	}
}

func TestNamed(t *testing.T) {
	for _, b := range Boards() {
		if got, err := Named(b.Name); err != nil || got.Name != b.Name {
			t.Errorf("Named(%q) = %q, %v", b.Name, got.Name, err)
		}
	}
	if _, err := Named("nonesuch"); err == nil {
		t.Error("an unknown board was found")
	}
}
