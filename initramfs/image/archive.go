// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage/initramfs"
)

// archive collects the records of an initramfs. The first failure is kept and
// given by bytes.
type archive struct {
	files *initramfs.Files
	err   error
}

func newArchive() *archive { return &archive{files: initramfs.NewFiles()} }

func (a *archive) record(r cpio.Record) {
	if a.files.Contains(r.Name) {
		// mkuimage lets equal metadata pass, with whatever content.
		a.err = errors.Join(a.err, fmt.Errorf("%s is there twice", r.Name))
		return
	}
	a.err = errors.Join(a.err, a.files.AddRecord(cpio.MakeReproducible(r)))
}

func (a *archive) file(name string, mode uint64, data []byte) {
	a.record(cpio.StaticRecord(data, cpio.Info{Name: name, Mode: cpio.S_IFREG | mode}))
}

// skeleton adds what programs and kernel expect to find in a root.
func (a *archive) skeleton() {
	for _, d := range []struct {
		name string
		mode uint64
	}{
		{"dev", 0o755}, {"proc", 0o555}, {"sys", 0o555}, {"run", 0o755}, {"tmp", 0o1777},
		{"root", 0o700}, {"mnt", 0o755}, {"var", 0o755}, {"var/lib", 0o755}, {"var/lib/davit", 0o700},
	} {
		a.record(cpio.Directory(d.name, d.mode))
	}
	// The kernel opens it as pid 1's standard streams before /dev is mounted.
	a.record(cpio.CharDev("dev/console", 0o600, 5, 1))
	// Without a console those streams are closed, and Go's runtime opens this
	// one in their place, or ends pid 1.
	a.record(cpio.CharDev("dev/null", 0o666, 1, 3))
}

// addArchive adds the records of another archive. Folders that are there stay.
func (a *archive) addArchive(plain []byte) error {
	return walk(plain, func(r record) error {
		if r.mode&cpio.S_IFMT == cpio.S_IFDIR {
			return nil // made again where they are needed
		}
		a.record(cpio.StaticRecord(r.data, cpio.Info{Name: r.name, Mode: r.mode}))
		return nil
	})
}

// bytes gives the archive in newc format: sorted, with all parent folders.
func (a *archive) bytes() ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	var out memory
	if err := initramfs.Write(&initramfs.Opts{Files: a.files, OutputFile: &out}); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// memory is an archive that mkuimage writes to.
type memory struct{ bytes.Buffer }

// OpenWriter implements initramfs.WriteOpener.
func (m *memory) OpenWriter() (initramfs.Writer, error) {
	return memoryWriter{cpio.Newc.Writer(&m.Buffer)}, nil
}

type memoryWriter struct{ cpio.RecordWriter }

// Finish implements initramfs.Writer.
func (w memoryWriter) Finish() error { return cpio.WriteTrailer(w) }

// compress compresses the archive, or takes the result of an earlier time.
func (o *Options) compress(c *cache, plain []byte) ([]byte, error) {
	key := c.key("initrd", plain)
	if out, ok := c.get(key); ok {
		return out, nil
	}
	o.Log.Info("compressing initramfs", "bytes", len(plain))
	out, err := compress(plain)
	if err != nil {
		return nil, fmt.Errorf("compress archive: %w", err)
	}
	return out, c.put(key, out)
}

// window is how far back, in bytes, a match may lie. Programs of one language
// have much in common, so it spans them all; the kernel allocates as much for a
// moment, and takes up to 128 MiB.
const window = 32 << 20

// compress is deterministic: one worker, and everything that matters is named.
func compress(plain []byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(window),
		zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, err
	}
	return enc.EncodeAll(plain, nil), enc.Close()
}
