// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"text/tabwriter"

	"github.com/klauspost/compress/zstd"
)

// maxArchive bounds a decompressed initramfs in bytes.
const maxArchive = 512 << 20

// Manifest is the content of an image. Sizes are in bytes.
type Manifest struct {
	Uname      string  `json:"uname"`      // the kernel's release
	Cmdline    string  `json:"cmdline"`    // the kernel's command line
	KernelSize int     `json:"kernelSize"` // of the kernel image
	InitrdSize int     `json:"initrdSize"` // of the initramfs, compressed
	PlainSize  int     `json:"plainSize"`  // of the initramfs, decompressed
	Entries    []Entry `json:"entries"`    // in the order of the archive, without folders
}

// Entry is one file, symbolic link or device of the initramfs.
type Entry struct {
	Path   string      `json:"path"` // absolute
	Mode   fs.FileMode `json:"mode"`
	Size   int         `json:"size"`
	SHA256 string      `json:"sha256"`           // hexadecimal, of the content
	Target string      `json:"target,omitempty"` // of a symbolic link
}

// Inspect lists what is in a payload. A payload that is malformed gives an
// error that wraps ErrArchive.
func Inspect(p Payload) (*Manifest, error) {
	plain, err := decompress(p.Initrd)
	if err != nil {
		return nil, err
	}
	m := &Manifest{
		Uname: p.Uname, Cmdline: p.Cmdline,
		KernelSize: len(p.Kernel), InitrdSize: len(p.Initrd), PlainSize: len(plain),
	}
	err = walk(plain, func(r record) error {
		mode := fileMode(r.mode)
		if mode.IsDir() {
			return nil
		}
		sum := sha256.Sum256(r.data)
		e := Entry{Path: "/" + r.name, Mode: mode, Size: len(r.data), SHA256: hex.EncodeToString(sum[:])}
		if mode.Type() == fs.ModeSymlink {
			e.Target = string(r.data)
		}
		m.Entries = append(m.Entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func decompress(initrd []byte) ([]byte, error) {
	dec, err := zstd.NewReader(bytes.NewReader(initrd),
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxArchive), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	defer dec.Close()
	plain, err := io.ReadAll(io.LimitReader(dec, maxArchive+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	if len(plain) > maxArchive {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrArchive, maxArchive)
	}
	return plain, nil
}

// Has tells if the image has a file, link or device at the absolute path.
func (m *Manifest) Has(path string) bool {
	for _, e := range m.Entries {
		if e.Path == path {
			return true
		}
	}
	return false
}

// Print writes the manifest for people to read.
func (m *Manifest) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "kernel\t%s\t%s\n", m.Uname, size(m.KernelSize))
	fmt.Fprintf(tw, "initramfs\t%d files, %s\t%s compressed\n", len(m.Entries), size(m.PlainSize), size(m.InitrdSize))
	fmt.Fprintf(tw, "command line\t%s\n\n", m.Cmdline)
	fmt.Fprintf(tw, "MODE\tSIZE\tSHA256\tPATH\n")
	for _, e := range m.Entries {
		name := e.Path
		if e.Target != "" {
			name += " -> " + e.Target
		}
		fmt.Fprintf(tw, "%v\t%d\t%.16s\t%s\n", e.Mode, e.Size, e.SHA256, name)
	}
	return tw.Flush()
}

func size(n int) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
