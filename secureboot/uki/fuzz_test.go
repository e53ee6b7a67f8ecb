// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func FuzzOpen(f *testing.F) {
	stub := makeStub(stubOptions{})
	f.Add(stub)
	f.Add(makeStub(stubOptions{tail: []byte("tail"), dirs: 6, filler: 0xd503201f}))
	if image, err := Build(stub, Sections{Linux: []byte("kernel"), Cmdline: "quiet"}); err == nil {
		f.Add(image)
	}
	for _, name := range []string{"sbsign.efi", "osslsigncode.efi"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	cert := signerA().cert
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		img, err := Open(data)
		if (err == nil) == (img == nil) {
			t.Fatalf("image %v, error %v", img, err)
		}
		if img != nil {
			for _, s := range img.Sections() {
				if c, ok := img.Content(s.Name); !ok || len(c) != int(s.Size) {
					t.Fatalf("section %q: %d bytes (there: %t), listed with %d", s.Name, len(c), ok, s.Size)
				}
			}
			if v, err := img.Verify(cert); err == nil || v != nil {
				t.Fatal("an image that the key never signed verifies")
			}
		}
		out, err := Build(data, Sections{Linux: []byte("kernel"), Initrd: []byte("initrd")})
		if (err == nil) == (out == nil) {
			t.Fatalf("built %d bytes, error %v", len(out), err)
		}
		if err == nil {
			built, err := Open(out)
			if err != nil {
				t.Fatalf("a built image does not parse: %v", err)
			}
			if c, _ := built.Content(".linux"); string(c) != "kernel" {
				t.Fatalf(".linux holds %q", c)
			}
		}
		if !bytes.Equal(before, data) {
			t.Fatal("the input was changed")
		}
	})
}

func FuzzParsePKCS7(f *testing.F) {
	signature, err := signPKCS7([32]byte{1}, signerA().key, signerA().cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signature)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parsePKCS7(data)
		if (err == nil) == (s == nil) {
			t.Fatalf("signature %v, error %v", s, err)
		}
		if s != nil && s.check([32]byte{2}, signerA().cert) == nil {
			t.Fatal("a signature fits a digest that it was not made for")
		}
	})
}
