// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"debug/elf"
	"errors"
	"reflect"
	"testing"
)

func TestParseInfo(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		in   []byte
		want *info // nil: refused
	}{
		{"empty", nil, &info{}},
		{"padding only", []byte{0, 0, 0}, &info{}},
		{"usual", modinfo("license=GPL", "depends=b,a-x,b", "name=m", "vermagic=1 SMP"),
			&info{name: "m", depends: []string{"a_x", "b"}, vermagic: "1 SMP"}},
		{"padded", modinfo("name=m", "", "", "depends="), &info{name: "m"}},
		{"value with =", modinfo("parm=x:a=b", "name=m"), &info{name: "m"}},
		{"no NUL at the end", []byte("name=m"), nil},
		{"no =", modinfo("name"), nil},
		{"two names", modinfo("name=a", "name=b"), nil},
		{"name leads away", modinfo("name=../x"), nil},
		{"dependency leads away", modinfo("depends=a,../x"), nil},
		{"empty dependency", modinfo("depends=a,,b"), nil},
		{"empty name", modinfo("name="), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseInfo(tc.in)
			if tc.want == nil {
				if got != nil || !errors.Is(err, ErrModinfo) {
					t.Fatalf("got %v, error %v, want %v", got, err, ErrModinfo)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, error %v, want %+v", got, err, tc.want)
			}
		})
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add(modinfo("license=GPL", "depends=b,a", "name=m", "vermagic=1 SMP"))
	f.Add([]byte("name=m"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parseInfo(data)
		if (err == nil) == (got == nil) {
			t.Fatalf("got %v, error %v", got, err)
		}
		if got == nil {
			return
		}
		for _, d := range got.depends {
			if !validName(d) {
				t.Fatalf("dependency %q passed", d)
			}
		}
	})
}

func FuzzReadInfo(f *testing.F) {
	f.Add(makeModule(modinfo("name=m", "depends=a")))
	f.Add(makeELF(elf.ET_EXEC, modinfo("name=m")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, err := readInfo(data); (err == nil) == (got == nil) {
			t.Fatalf("got %v, error %v", got, err)
		}
	})
}
