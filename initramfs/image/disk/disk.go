// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/davit-dpu/davit/secureboot/uki"
)

// Names of the partitions (GPT).
const (
	ESPName  = "davit-esp"
	DataName = "davit-data"
)

// DefaultESPSize and DefaultDataSize are sizes in bytes; the file is sparse.
const (
	DefaultESPSize  = 96 << 20
	DefaultDataSize = 1 << 30
)

const mebibyte = 1 << 20

// ErrLayout says that a file is not a disk made by this package.
var ErrLayout = errors.New("not a davit boot disk")

// Options say what Create makes.
type Options struct {
	Path string // of the new file; its folder must exist
	UKI  []byte // the image to boot
	// ESPSize and DataSize are the partitions' sizes in bytes, multiples of
	// 1 MiB; 0: the defaults.
	ESPSize, DataSize int64
	// DataTree is the folder whose content the data partition gets; empty: none.
	DataTree string
	// Mke2fs gives the command mke2fs with these arguments, ready to run.
	Mke2fs func(ctx context.Context, args ...string) *exec.Cmd
}

// Create makes a disk. A file that exists is not touched (fs.ErrExist), since
// it may hold a card's state; on any failure nothing is left.
func Create(ctx context.Context, o Options) error {
	if err := create(ctx, o); err != nil {
		return fmt.Errorf("make boot disk %s: %w", o.Path, err)
	}
	return nil
}

func create(ctx context.Context, o Options) error {
	if o.ESPSize == 0 {
		o.ESPSize = DefaultESPSize
	}
	if o.DataSize == 0 {
		o.DataSize = DefaultDataSize
	}
	if o.ESPSize <= 0 || o.DataSize <= 0 || o.ESPSize%mebibyte != 0 || o.DataSize%mebibyte != 0 {
		return fmt.Errorf("sizes %d and %d are not multiples of 1 MiB", o.ESPSize, o.DataSize)
	}
	if _, err := os.Lstat(o.Path); err == nil {
		return fs.ErrExist
	}
	segments, err := espSegments(o.ESPSize, o.UKI)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(o.Path), filepath.Base(o.Path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = errors.Join(tmp.Truncate(mebibyte+o.ESPSize+o.DataSize+mebibyte), tmp.Close())
	if err != nil {
		return err
	}
	if err := partition(tmp.Name(), o); err != nil {
		return err
	}
	if err := writeSegments(tmp.Name(), mebibyte, segments); err != nil {
		return err
	}
	if err := o.makeData(ctx, tmp.Name()); err != nil {
		return err
	}
	// A link, and not a rename: it fails when the name is taken meanwhile.
	return os.Link(tmp.Name(), o.Path)
}

// ReplaceUKI puts another image on a disk. The data partition is not touched.
// It tells if there was anything to do. What can be checked is checked before
// the first byte is written; a crash in the middle leaves a disk that does not
// boot until the next ReplaceUKI. No one else may use the disk meanwhile.
func ReplaceUKI(path string, image []byte) (changed bool, err error) {
	esp, err := findESP(path)
	if err != nil {
		return false, fmt.Errorf("replace image on %s: %w", path, err)
	}
	segments, err := espSegments(esp.size, image)
	if err != nil {
		return false, fmt.Errorf("replace image on %s: %w", path, err)
	}
	same, err := hasSegments(path, esp.offset, segments)
	if err != nil {
		return false, fmt.Errorf("replace image on %s: %w", path, err)
	}
	if same {
		return false, nil
	}
	if err := writeSegments(path, esp.offset, segments); err != nil {
		return false, fmt.Errorf("replace image on %s: %w", path, err)
	}
	return true, nil
}

// espSegments lays an image out for the EFI system partition.
func espSegments(size int64, image []byte) ([]segment, error) {
	img, err := uki.Open(image)
	if err != nil {
		return nil, err
	}
	// UEFI 2.10 section 3.5.1.1: the file that firmware takes from a disk it
	// knows nothing about.
	names := map[uint16]string{uki.MachineARM64: "BOOTAA64.EFI", uki.MachineAMD64: "BOOTX64 .EFI"}
	name, ok := names[img.Machine()]
	if !ok {
		return nil, fmt.Errorf("image for machine type %#x", img.Machine())
	}
	return fat(size, mebibyte/sectorSize, name, image)
}

func writeSegments(path string, base int64, segments []segment) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, s := range segments {
		if _, err := f.WriteAt(s.data, base+s.offset); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func hasSegments(path string, base int64, segments []segment) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for _, s := range segments {
		got := make([]byte, len(s.data))
		if _, err := f.ReadAt(got, base+s.offset); err != nil {
			return false, err
		}
		if !bytes.Equal(got, s.data) {
			return false, nil
		}
	}
	return true, nil
}

func partition(path string, o Options) (err error) {
	d, err := diskfs.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	first := uint64(mebibyte / sectorSize)
	return d.Partition(&gpt.Table{
		LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize, ProtectiveMBR: true,
		Partitions: []*gpt.Partition{
			{Index: 1, Start: first, Size: uint64(o.ESPSize), Type: gpt.EFISystemPartition, Name: ESPName},
			{Index: 2, Start: first + uint64(o.ESPSize)/sectorSize, Size: uint64(o.DataSize), Type: gpt.LinuxFilesystem, Name: DataName},
		},
	})
}

// extent is a partition's place on the disk in bytes.
type extent struct{ offset, size int64 }

func findESP(path string) (extent, error) {
	d, err := diskfs.Open(path, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		return extent{}, err
	}
	defer d.Close()
	table, err := d.GetPartitionTable()
	if err != nil {
		return extent{}, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	g, ok := table.(*gpt.Table)
	if !ok {
		return extent{}, fmt.Errorf("%w: no GPT", ErrLayout)
	}
	for _, p := range g.Partitions {
		if p.Name == ESPName && p.Type == gpt.EFISystemPartition && p.Start == mebibyte/sectorSize && p.End >= p.Start {
			return extent{offset: mebibyte, size: int64(p.End-p.Start+1) * sectorSize}, nil
		}
	}
	return extent{}, fmt.Errorf("%w: no partition %s", ErrLayout, ESPName)
}

// makeData makes the file system of the data partition, owned by root.
func (o Options) makeData(ctx context.Context, path string) error {
	if o.Mke2fs == nil {
		return errors.New("no mke2fs")
	}
	args := []string{"-q", "-F", "-t", "ext4", "-L", DataName, "-b", "4096"}
	if o.DataTree != "" {
		args = append(args, "-d", o.DataTree)
	}
	args = append(args,
		"-E", fmt.Sprintf("root_owner=0:0,offset=%d", mebibyte+o.ESPSize),
		path, fmt.Sprint(o.DataSize/4096))
	cmd := o.Mke2fs(ctx, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mke2fs: %w\n%s", err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}
