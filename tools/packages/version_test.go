// SPDX-License-Identifier: Apache-2.0

package packages

import "testing"

func TestParseToolVersion(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, output string
		want         Version
		bad          bool
	}{
		{name: "qemu of Debian", output: "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025", want: Version{10, 0, 2}},
		{name: "qemu from source", output: "QEMU emulator version 10.1.50 (v10.1.0-1234-gdeadbeef)\n", want: Version{10, 1, 50}},
		{name: "qemu candidate", output: "QEMU emulator version 11.0.0-rc2\n", want: Version{11}},
		{name: "qemu-img", output: "qemu-img version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1.4)\n", want: Version{8, 2, 2}},
		{name: "swtpm", output: "TPM emulator version 0.7.1, Copyright (c) 2014-2021 IBM Corp.\n", want: Version{0, 7, 1}},
		{name: "mke2fs", output: "mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0\n", want: Version{1, 47}},
		{name: "mke2fs work in progress", output: "mke2fs 1.47.1-rc1 (1-May-2024)\n", want: Version{1, 47, 1}},
		{name: "tpm2-tools", output: `tool="/home/a/5.x/bin/tpm2_eventlog" version="5.4" tctis="libtss2-tctildr" tcti-default=tcti-device`, want: Version{5, 4}},
		{name: "go env GOVERSION", output: "1.26.8\n", want: Version{1, 26, 8}},
		{name: "v in front", output: "tool v3.2", want: Version{3, 2}},
		{name: "five numbers", output: "tool 1.2.3.4.5", want: Version{1, 2, 3, 4}},
		{name: "empty", bad: true},
		{name: "no version", output: "usage: tool [options]", bad: true},
		{name: "lone number", output: "copyright 2021", bad: true},
		{name: "letters within", output: "1.2x3", bad: true},
		{name: "number out of range", output: "tool 99999999999999999999.1", bad: true},
		{name: "number above the bound", output: "tool 1073741825.1", bad: true},
		{name: "too far away", output: string(make([]byte, maxVersionOutput)) + " 10.0", bad: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseToolVersion(tc.output)
			if (err != nil) != tc.bad || got != tc.want {
				t.Errorf("ParseToolVersion = %v, %v; want %v, error %v", got, err, tc.want, tc.bad)
			}
		})
	}
}

func TestParsePackageVersion(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in   string
		want Version
		bad  bool
	}{
		{in: "1:10.0.2+ds-2+deb13u1~bpo12+1", want: Version{10, 0, 2}},
		{in: "6.12.95-1~bpo12+1", want: Version{6, 12, 95}},
		{in: "0.7.1-1.3", want: Version{0, 7, 1}},
		{in: "2022.11-6+deb12u2", want: Version{2022, 11}},
		{in: "257.13-1~deb13u1", want: Version{257, 13}},
		{in: "7", want: Version{7}},
		{in: "11.0.0~rc1+ds-1", want: Version{11}},
		{in: "", bad: true},
		{in: "x:1.0", bad: true},
		{in: "-1:1.0", bad: true},
		{in: "abc", bad: true},
	} {
		got, err := ParsePackageVersion(tc.in)
		if (err != nil) != tc.bad || got != tc.want {
			t.Errorf("ParsePackageVersion(%q) = %v, %v; want %v, error %v", tc.in, got, err, tc.want, tc.bad)
		}
	}
}

func TestVersionOrder(t *testing.T) {
	t.Parallel()
	ordered := []Version{{}, {0, 7}, {0, 7, 1}, {9, 99}, {10}, {10, 0, 2}, {10, 1}}
	for i, v := range ordered {
		for j, w := range ordered {
			if got, want := v.Less(w), i < j; got != want {
				t.Errorf("%v.Less(%v) = %v, want %v", v, w, got, want)
			}
		}
	}
	for v, want := range map[Version]string{{10}: "10.0", {1, 47}: "1.47", {10, 0, 2}: "10.0.2", {1, 2, 3, 4}: "1.2.3.4"} {
		if got := v.String(); got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
	}
}

func FuzzParseToolVersion(f *testing.F) {
	for _, s := range []string{"QEMU emulator version 10.0.2 (Debian)", `version="5.4"`, "1.2.3.4.5-rc1", "v.", "=1.=2.3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseToolVersion(s)
		if err != nil {
			if v != (Version{}) {
				t.Errorf("error %v, and version %v", err, v)
			}
			return
		}
		again, err := ParseToolVersion(v.String())
		if err != nil || again != v {
			t.Errorf("%v reads back as %v, %v", v, again, err)
		}
	})
}
