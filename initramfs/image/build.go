// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"os"

	"github.com/u-root/mkuimage/cpio"

	"github.com/davit-dpu/davit/initramfs/kernel"
	"github.com/davit-dpu/davit/secureboot/uki"
)

// Payload is what a card boots, apart from how it is wrapped.
type Payload struct {
	Kernel    []byte // the kernel image
	Initrd    []byte // the initramfs, cpio compressed with zstd
	Cmdline   string // the kernel's command line
	OSRelease []byte // the release file, as in the initramfs
	Uname     string // the kernel's release
}

// Sections gives the payload as sections of a unified kernel image.
func (p Payload) Sections() uki.Sections {
	return uki.Sections{
		OSRelease: p.OSRelease, Cmdline: p.Cmdline, Uname: p.Uname,
		Linux: p.Kernel, Initrd: p.Initrd,
	}
}

// FromUKI takes the payload out of a unified kernel image. Whether the image is
// to be trusted is a question for its signature.
func FromUKI(img *uki.Image) (Payload, error) {
	var p Payload
	for name, dst := range map[string]*[]byte{
		".linux": &p.Kernel, ".initrd": &p.Initrd, ".osrel": &p.OSRelease,
	} {
		b, ok := img.Content(name)
		if !ok {
			return Payload{}, fmt.Errorf("not a davit image: no section %s", name)
		}
		*dst = b
	}
	cmdline, _ := img.Content(".cmdline")
	uname, _ := img.Content(".uname")
	p.Cmdline, p.Uname = string(cmdline), string(uname)
	return p, nil
}

// Image is a built payload and what is in it.
type Image struct {
	Payload  Payload
	Manifest Manifest
	BuiltIn  []string // modules asked for that are part of the kernel
}

// Build builds an image. Two builds of the same options and sources give the
// same bytes. A failing Go build is shown with the compiler's words.
func Build(ctx context.Context, o Options) (*Image, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	modules, err := o.Kernel.Resolve(o.Modules)
	if err != nil {
		return nil, err
	}
	linux, err := o.Kernel.Image()
	if err != nil {
		return nil, err
	}
	c, err := openCache(ctx, o.CacheDir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	initrd, err := o.initrd(ctx, c, modules)
	if err != nil {
		return nil, err
	}
	payload := Payload{
		Kernel: linux, Initrd: initrd, Cmdline: o.Cmdline,
		OSRelease: o.release(), Uname: o.Kernel.Release(),
	}
	manifest, err := Inspect(payload)
	if err != nil {
		return nil, fmt.Errorf("check built image: %w", err)
	}
	return &Image{Payload: payload, Manifest: *manifest, BuiltIn: modules.BuiltIn}, nil
}

// initrd makes the compressed archive.
func (o *Options) initrd(ctx context.Context, c *cache, modules *kernel.Set) ([]byte, error) {
	a := newArchive()
	if err := o.addPrograms(ctx, c, a); err != nil {
		return nil, err
	}
	if o.Development {
		shell, err := o.shell(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("build rescue shell: %w", err)
		}
		if err := a.addArchive(shell); err != nil {
			return nil, fmt.Errorf("build rescue shell: %w", err)
		}
	}
	var list []byte
	for _, m := range modules.Load {
		a.file(m.Path, 0o644, m.Data)
		list = append(list, "/"+m.Path+"\n"...)
	}
	a.file("etc/davit/modules", 0o644, list)
	a.file("etc/davit/config.yaml", 0o644, o.Config)
	a.file("etc/os-release", 0o644, o.release())
	a.record(cpio.Symlink("etc/resolv.conf", "../run/davit/resolv.conf")) // the root is read-only
	a.skeleton()
	plain, err := a.bytes()
	if err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	return o.compress(c, plain)
}

func (o *Options) addPrograms(ctx context.Context, c *cache, a *archive) error {
	programs, err := o.goBuild(ctx, c)
	if err != nil {
		return err
	}
	for i, p := range programs {
		b, err := os.ReadFile(p)
		if err != nil {
			return fmt.Errorf("read built program: %w", err)
		}
		a.file(o.Commands[i].Path, 0o755, b)
	}
	return nil
}
