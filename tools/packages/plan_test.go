// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

const sumA = "1896a2aacf4ad681ff5eacc24a5b0ca4d5d9c9b9c9e4b6de5197bc1e116ea619"

func TestParsePrintURIs(t *testing.T) {
	t.Parallel()
	p, err := parsePrintURIs(testdata(t, "print-uris.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if len(p) != 10 {
		t.Errorf("%d packages, want 10", len(p))
	}
	want := archive{name: "gcc-12-base", version: "12.2.0-14+deb12u1", arch: "amd64", sha256: sumA, size: 37596}
	if got, ok := p.find("gcc-12-base"); !ok || got != want {
		t.Errorf("gcc-12-base is %+v, want %+v", got, want)
	}
	s, err := specOf(E2fsprogs)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.recentEnough(p); err != nil {
		t.Error(err)
	}
	if s.wants("libc6") || !s.wants("libext2fs2") {
		t.Error("a closure is all but the C library")
	}
}

func TestParsePrintURIsRejects(t *testing.T) {
	t.Parallel()
	good := "'http://mirror.example.org/a.deb' a_1%3a2.0_all.deb 12 SHA256:" + sumA
	if p, err := parsePrintURIs(good); err != nil || p[0].version != "1:2.0" {
		t.Fatalf("plan %v, %v", p, err)
	}
	for name, line := range map[string]string{
		"three fields":    "'http://x' a_1_all.deb 12",
		"no deb":          "'http://x' a_1_all.rpm 12 SHA256:" + sumA,
		"no version":      "'http://x' a_all.deb 12 SHA256:" + sumA,
		"option":          "'http://x' -a_1_all.deb 12 SHA256:" + sumA,
		"path":            "'http://x' ..%2fa_1_all.deb 12 SHA256:" + sumA,
		"slash":           "'http://x' a_1%2f2_all.deb 12 SHA256:" + sumA,
		"space":           "'http://x' a_1%202_all.deb 12 SHA256:" + sumA,
		"bad escape":      "'http://x' a_1%zz_all.deb 12 SHA256:" + sumA,
		"negative size":   "'http://x' a_1_all.deb -1 SHA256:" + sumA,
		"huge size":       "'http://x' a_1_all.deb 4294967297 SHA256:" + sumA,
		"size no number":  "'http://x' a_1_all.deb x SHA256:" + sumA,
		"weak checksum":   "'http://x' a_1_all.deb 12 MD5Sum:9db51e73a4a0547f1e67400bc2c11a86",
		"short checksum":  "'http://x' a_1_all.deb 12 SHA256:1896a2",
		"upper-case hash": "'http://x' a_1_all.deb 12 SHA256:" + strings.ToUpper(sumA),
	} {
		if p, err := parsePrintURIs(line + "\n"); err == nil || p != nil {
			t.Errorf("%s: plan %v, %v; want an error", name, p, err)
		}
	}
	many := strings.Repeat(good+"\n", maxPlanPackages+1)
	if p, err := parsePrintURIs(many); err == nil || p != nil {
		t.Error("a plan without bounds is accepted")
	}
}

func TestMarkerRoundTrip(t *testing.T) {
	t.Parallel()
	p, err := parsePrintURIs(testdata(t, "print-uris.txt"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseMarker(p.marker())
	if err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i].size = 0
	}
	if !reflect.DeepEqual(got, p) {
		t.Errorf("marker reads back as %v, want %v", got, p)
	}
	other := append(plan{{name: "a", version: "1", arch: "all", sha256: sumA}}, p...)
	if p.digest() != got.digest() || p.digest() == other.digest() {
		t.Error("digest doesn't follow the content")
	}
	whole := p.marker()
	for _, bad := range []string{"", "a 1 all\n", "a 1 all " + sumA, whole[:len(whole)-1], whole[:len(whole)-20] + "\n"} {
		if p, err := parseMarker(bad); err == nil || p != nil {
			t.Errorf("marker %.30q: %v, %v; want an error", bad, p, err)
		}
	}
}

func TestRecentEnough(t *testing.T) {
	t.Parallel()
	s := spec{need: "x", roots: []string{"x", "y"}, min: Version{10}}
	for _, tc := range []struct {
		name string
		p    plan
		want error
	}{
		{"new", plan{{name: "x", version: "1:10.0+ds"}, {name: "y", version: "1"}}, nil},
		{"old", plan{{name: "x", version: "1:7.2+dfsg"}, {name: "y", version: "1"}}, ErrMissing},
		{"second root not there", plan{{name: "x", version: "10.0"}}, ErrMissing},
		{"empty", nil, ErrMissing},
	} {
		if err := s.recentEnough(tc.p); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestWants(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		need Need
		name string
		want bool
	}{
		{QEMU, "qemu-system-arm", true}, {QEMU, "libslirp0", true}, {QEMU, "libc6", false}, {QEMU, "passwd", false},
		{KernelFor(ArchARM64), "linux-image-6.12.95+deb12-cloud-arm64", true},
		{KernelFor(ArchARM64), "linux-image-cloud-arm64", false},
		{KernelFor(ArchARM64), "linux-image-6.12.95+deb12-cloud-amd64", false},
		{KernelFor(ArchARM64), "initramfs-tools", false},
		{StubFor(ArchARM64), "systemd-boot-efi", true}, {StubFor(ArchARM64), "libsystemd0", false},
	} {
		s, err := specOf(tc.need)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.wants(tc.name); got != tc.want {
			t.Errorf("%s wants %s: %v, want %v", tc.need, tc.name, got, tc.want)
		}
	}
}

func FuzzParsePrintURIs(f *testing.F) {
	f.Add(testdata(f, "print-uris.txt"))
	f.Add("'http://x' a_1%3a2_all.deb 12 SHA256:" + sumA)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePrintURIs(text)
		if err != nil {
			if p != nil {
				t.Errorf("error %v, and plan %v", err, p)
			}
			return
		}
		if len(p) == 0 {
			return
		}
		if again, err := parseMarker(p.marker()); err != nil || again.digest() != p.digest() {
			t.Errorf("marker of %v reads back as %v, %v", p, again, err)
		}
	})
}

func FuzzParseMarker(f *testing.F) {
	f.Add("a 1 all " + sumA + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseMarker(text)
		if (err != nil) != (p == nil) {
			t.Errorf("plan %v, error %v", p, err)
		}
	})
}
