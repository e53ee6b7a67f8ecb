// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/davit-dpu/davit/board/qemuvirt"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/initramfs/image"
	"github.com/davit-dpu/davit/initramfs/kernel"
	"github.com/davit-dpu/davit/secureboot/keys"
	"github.com/davit-dpu/davit/secureboot/uki"
	"github.com/davit-dpu/davit/tools/packages"
)

// ImageOptions say which image of the emulated card is built.
type ImageOptions struct {
	Source    string         // the module's folder
	Set       *packages.Set  // kernel and stub
	Keys      string         // folder of the checkout's keys; made when missing
	Out       string         // folder for card.efi
	Cache     string         // keeps what is costly to make
	Lifecycle spec.Lifecycle // default development
	Cmdline   []string       // words added to the board's
	// Commands are the programs of the image; nil: the card's own. An image with
	// other programs has no rescue shell: nothing is in it but these, the
	// kernel's modules and the configuration.
	Commands []image.Command
	Log      *slog.Logger
}

// BuiltImage is a signed image in a file, and what is in it.
type BuiltImage struct {
	UKI      string // path
	Size     int    // of the UKI, bytes
	Manifest image.Manifest
	Keys     *keys.Set
}

// CardConfiguration is the configuration of an emulated card whose operator has
// the given key.
func CardConfiguration(operator any, lifecycle spec.Lifecycle) (*spec.CardConfig, error) {
	spki, err := x509.MarshalPKIXPublicKey(operator)
	if err != nil {
		return nil, err
	}
	c := &spec.CardConfig{
		Version: 1, Name: "card0", Lifecycle: lifecycle, Board: qemuvirt.Board().Name,
		Management: spec.Management{DHCP: true, Listen: fmt.Sprintf("0.0.0.0:%d", cardDoor)},
		Keys: []spec.Key{{
			ID: spec.KeyID(spki), Algorithm: "EdDSA", Roles: []string{"operator"},
			Public: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})),
		}},
		Policy: spec.Policy{Roles: map[string]spec.Role{
			"operator": {Ops: []string{"instance.*", "volume.*", "log.tail", "reboot"}},
		}},
	}
	return c, c.Validate()
}

// BuildImage builds and signs the image. With a filled cache, and nothing
// changed, it takes as long as go build does to see that.
func BuildImage(ctx context.Context, o ImageOptions) (*BuiltImage, error) {
	if o.Lifecycle == "" {
		o.Lifecycle = spec.Development
	}
	set, err := keys.Ensure(o.Keys, time.Now())
	if err != nil {
		return nil, err
	}
	if o.Lifecycle != spec.Development {
		if err := keys.CheckProduction(set.Certificate); err != nil {
			return nil, fmt.Errorf("a %s image needs keys that were not made by a checkout: %w", o.Lifecycle, err)
		}
	}
	root, _, err := o.Set.Where(packages.KernelFor(packages.ArchARM64))
	if err != nil {
		return nil, err
	}
	k, err := kernel.Open(root)
	if err != nil {
		return nil, err
	}
	config, err := CardConfiguration(set.Operator.Public(), o.Lifecycle)
	if err != nil {
		return nil, err
	}
	text, err := spec.EncodeYAML(config)
	if err != nil {
		return nil, err
	}
	b := qemuvirt.Board()
	built, err := image.Build(ctx, image.Options{
		Source: o.Source, Arch: b.Arch, Board: b.Name, Version: spec.Version, Kernel: k, Modules: b.Modules, Config: text,
		Cmdline:  strings.Join(append([]string{b.Cmdline, "davit.board=" + b.Name, "davit.lifecycle=" + string(o.Lifecycle)}, o.Cmdline...), " "),
		Commands: o.Commands, Lifecycle: o.Lifecycle, Development: o.Lifecycle == spec.Development && o.Commands == nil, CacheDir: o.Cache, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	signed, err := wrap(o.Set, built.Payload, set)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Out, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(o.Out, "card.efi")
	if err := writeWhole(path, signed); err != nil {
		return nil, err
	}
	return &BuiltImage{UKI: path, Size: len(signed), Manifest: built.Manifest, Keys: set}, nil
}

// wrap makes a signed UKI of a payload, and verifies it as firmware would.
func wrap(set *packages.Set, p image.Payload, k *keys.Set) ([]byte, error) {
	stubPath, err := set.Stub(packages.ArchARM64)
	if err != nil {
		return nil, err
	}
	stub, err := os.ReadFile(stubPath)
	if err != nil {
		return nil, err
	}
	unsigned, err := uki.Build(stub, p.Sections())
	if err != nil {
		return nil, err
	}
	signed, err := uki.Sign(unsigned, k.Image, k.Certificate)
	if err != nil {
		return nil, err
	}
	img, err := uki.Open(signed)
	if err != nil {
		return nil, err
	}
	if _, err := img.Verify(k.Certificate); err != nil {
		return nil, err
	}
	return signed, nil
}

// writeWhole replaces a file at once: a run that uses the old one is not
// disturbed.
func writeWhole(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(data); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
