// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/initramfs/kernel"
	"github.com/davit-dpu/davit/secureboot/uki"
)

const testRelease = "6.12.0-test"

// testKernel is a kernel package whose modules are all built in; how modules
// are resolved is tested where it is done.
func testKernel(t *testing.T) *kernel.Kernel {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"boot/vmlinuz-" + testRelease:                     "the kernel",
		"lib/modules/" + testRelease + "/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k, err := kernel.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// testOptions build two small programs of testdata.
func testOptions(t *testing.T) Options {
	return Options{
		Source: "../..", Arch: "arm64", Board: "qemuvirt", Version: "0.1",
		Commands: []Command{
			{Path: "init", Package: "./initramfs/image/testdata/pid1"},
			{Path: "davit/hello", Package: "./initramfs/image/testdata/hello"},
		},
		Kernel: testKernel(t), Modules: []string{"ext4"},
		Config: []byte("card: test\n"), Cmdline: "console=ttyAMA0 panic=5",
		CacheDir: t.TempDir(),
	}
}

func mustBuild(t *testing.T, o Options) *Image {
	t.Helper()
	img, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func paths(m Manifest) []string {
	var list []string
	for _, e := range m.Entries {
		list = append(list, e.Path)
	}
	return list
}

func content(t *testing.T, img *Image, name string) string {
	t.Helper()
	plain, err := decompress(img.Payload.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	var found string
	err = walk(plain, func(r record) error {
		if "/"+r.name == name {
			found = string(r.data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestBuildProduction(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	img := mustBuild(t, o)
	want := []string{
		"/davit/hello", "/dev/console", "/dev/null", "/etc/davit/config.yaml", "/etc/davit/modules",
		"/etc/os-release", "/etc/resolv.conf", "/init",
	}
	// A list, and not a look for shells: nothing else may get in.
	if got := paths(img.Manifest); !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	if got := content(t, img, "/etc/davit/config.yaml"); got != string(o.Config) {
		t.Errorf("configuration %q", got)
	}
	if got := content(t, img, "/etc/os-release"); got != string(img.Payload.OSRelease) ||
		!strings.Contains(got, "DAVIT_LIFECYCLE=production\n") || !strings.Contains(got, "DAVIT_BOARD=qemuvirt\n") {
		t.Errorf("release file %q", got)
	}
	if got := img.Payload; string(got.Kernel) != "the kernel" || got.Cmdline != o.Cmdline || got.Uname != testRelease {
		t.Errorf("kernel %q, command line %q, release %q", got.Kernel, got.Cmdline, got.Uname)
	}
	if !slices.Equal(img.BuiltIn, []string{"ext4"}) {
		t.Errorf("built in %v, want ext4", img.BuiltIn)
	}
	for _, program := range []string{"/init", "/davit/hello"} {
		// ELF, 64 bits, little-endian, machine EM_AARCH64.
		if got := content(t, img, program); !strings.HasPrefix(got, "\x7fELF\x02\x01") || got[18] != 0xb7 {
			t.Errorf("%s is not a program for arm64", program)
		}
	}
}

// The same sources elsewhere, built by someone else at another time, give the
// same bytes.
func TestBuildIsReproducible(t *testing.T) {
	t.Parallel()
	var first *Image
	for _, name := range []string{"a", "somewhere/else"} {
		o := testOptions(t)
		o.Source = filepath.Join(t.TempDir(), name)
		copySource(t, o.Source)
		o.Commands = []Command{{Path: "init", Package: "example.org/x/pid1"}, {Path: "davit/hello", Package: "./hello"}}
		img := mustBuild(t, o)
		if first == nil {
			first = img
			continue
		}
		if !bytes.Equal(img.Payload.Initrd, first.Payload.Initrd) {
			var a, b strings.Builder
			if err := errors.Join(first.Manifest.Print(&a), img.Manifest.Print(&b)); err != nil {
				t.Fatal(err)
			}
			t.Errorf("two builds differ:\n%s\n%s", a.String(), b.String())
		}
	}
}

func copySource(t *testing.T, dir string) {
	t.Helper()
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.org/x\n\ngo 1.24\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A second build takes what the first made; a damaged entry is made again.
func TestBuildUsesCache(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	const step = "compressing"
	first := mustBuild(t, o)
	if !strings.Contains(log.String(), step) {
		t.Fatalf("the first build did not compress: %s", &log)
	}
	log.Reset()
	second := mustBuild(t, o)
	if strings.Contains(log.String(), step) {
		t.Errorf("the second build compressed again: %s", &log)
	}
	entries, err := filepath.Glob(filepath.Join(o.CacheDir, "initrd-*"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("entries %v, error %v", entries, err)
	}
	b, err := os.ReadFile(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(entries[0], b, 0o644); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	third := mustBuild(t, o)
	if !strings.Contains(log.String(), step) {
		t.Error("a damaged entry was used")
	}
	for _, img := range []*Image{second, third} {
		if !bytes.Equal(img.Payload.Initrd, first.Payload.Initrd) {
			t.Error("builds differ")
		}
	}
	o.Config = []byte("card: other\n")
	if img := mustBuild(t, o); bytes.Equal(img.Payload.Initrd, first.Payload.Initrd) {
		t.Error("another configuration made no difference")
	}
}

func TestBuildShowsCompilerErrors(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	o.Source = t.TempDir()
	copySource(t, o.Source)
	o.Commands = []Command{{Path: "init", Package: "./hello"}}
	main := filepath.Join(o.Source, "hello", "main.go")
	if err := os.WriteFile(main, []byte("package main\n\nfunc main() { missing() }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := Build(t.Context(), o)
	if img != nil || err == nil || !strings.Contains(err.Error(), "undefined: missing") {
		t.Errorf("got %v, error %v, want the compiler's words", img, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*Options)
		is     error
	}{
		{"no source", func(o *Options) { o.Source = "" }, ErrOptions},
		{"arch", func(o *Options) { o.Arch = "riscv64" }, ErrOptions},
		{"board", func(o *Options) { o.Board = "a\nb" }, ErrOptions},
		{"version", func(o *Options) { o.Version = `1"` }, ErrOptions},
		{"lifecycle", func(o *Options) { o.Lifecycle = "testing" }, ErrOptions},
		{"shell by default", func(o *Options) { o.Development = true }, ErrOptions},
		{"shell in production", func(o *Options) { o.Lifecycle, o.Development = spec.Production, true }, ErrOptions},
		{"no kernel", func(o *Options) { o.Kernel = nil }, ErrOptions},
		{"no configuration", func(o *Options) { o.Config = nil }, ErrOptions},
		{"absolute path", func(o *Options) { o.Commands[0].Path = "/init" }, ErrOptions},
		{"path leads out", func(o *Options) { o.Commands[0].Path = "../init" }, ErrOptions},
		{"same program name", func(o *Options) { o.Commands[0].Package = "./x/hello" }, ErrOptions},
		{"unknown module", func(o *Options) { o.Modules = []string{"none"} }, kernel.ErrUnknownModule},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := testOptions(t)
			tc.change(&o)
			if img, err := Build(t.Context(), o); img != nil || !errors.Is(err, tc.is) {
				t.Errorf("got %v, error %v, want %v", img, err, tc.is)
			}
		})
	}
}

// A program may not take the place of a file of the image.
func TestBuildRefusesCollision(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	o.Commands[1].Path = "etc/davit/config.yaml"
	if img, err := Build(t.Context(), o); img != nil || err == nil || !strings.Contains(err.Error(), "there twice") {
		t.Errorf("got %v, error %v", img, err)
	}
}

// The release file says what the card will be, with a rescue shell or without.
func TestReleaseSaysTheLifecycle(t *testing.T) {
	t.Parallel()
	for given, want := range map[spec.Lifecycle]string{
		"": "production", spec.Production: "production", spec.Development: "development", spec.RMA: "rma",
	} {
		o := testOptions(t)
		o.Lifecycle = given
		if err := o.complete(); err != nil {
			t.Fatal(err)
		}
		got := string(o.release())
		if !strings.Contains(got, "DAVIT_LIFECYCLE="+want+"\n") || !strings.Contains(got, "(qemuvirt, "+want+")") {
			t.Errorf("lifecycle %q: release file %q", given, got)
		}
	}
}

func TestBuildWaitsForCache(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	held, err := openCache(t.Context(), o.CacheDir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Build(ctx, o)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("build while another holds the cache: error %v, want %v", err, context.Canceled)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	mustBuild(t, o) // the abandoned wait has not kept the lock
}

// A payload survives its wrapping.
func TestPayloadThroughUKI(t *testing.T) {
	t.Parallel()
	stub, err := os.ReadFile("../../secureboot/uki/testdata/stub.efi")
	if err != nil {
		t.Fatal(err)
	}
	want := mustBuild(t, testOptions(t)).Payload
	b, err := uki.Build(stub, want.Sections())
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := uki.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := FromUKI(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Error("the payload came back different")
	}
	bare, err := uki.Open(stub)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := FromUKI(bare); err == nil || p.Kernel != nil {
		t.Errorf("a bare stub gave %+v, error %v", p, err)
	}
}
