// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	proofFiles = 4
	blockSize  = 4096
	sectorSize = 512 // sysfs counts in these, whatever the disk has
	fibmap     = 1   // FIBMAP, linux/fs.h: block number of a file's block; asked for block 0
)

// prove writes fresh random files, syncs them, reads them back past the page
// cache, and prints where on the disk they lie, for the card to compare.
func prove(out io.Writer, dir, nonce string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	start, err := partitionStart(dir)
	if err != nil {
		return err
	}
	for i := range proofFiles {
		path := filepath.Join(dir, fmt.Sprintf("%02d", i))
		data := make([]byte, blockSize)
		rand.Read(data)
		copy(data, "nonce="+nonce+"\n")
		if err := writeSynced(path, data); err != nil {
			return err
		}
		if err := dropCaches(); err != nil {
			return err
		}
		back, block, err := readBack(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(back, data) {
			return fmt.Errorf("%s: read back other bytes than were written", path)
		}
		fmt.Fprintf(out, "DAVIT-PROOF nonce=%s disk=%s offset=%d length=%d sha256=%x\n", nonce, disk, start+block*blockSize, blockSize, sha256.Sum256(data))
	}
	return nil
}

// partitionStart is where on its disk the file system of path begins, in bytes.
func partitionStart(path string) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/start", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // a whole disk
	}
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, err
	}
	return sectors * sectorSize, nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func dropCaches() error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// readBack reads one block and tells its number on the disk.
func readBack(path string) (data []byte, block int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	if data, err = io.ReadAll(f); err != nil {
		return nil, 0, err
	}
	block, err = unix.IoctlGetInt(int(f.Fd()), fibmap)
	if err != nil {
		return nil, 0, fmt.Errorf("block of %s: %w", path, err)
	}
	if block == 0 {
		return nil, 0, fmt.Errorf("%s has no block on the disk yet", path)
	}
	return data, block, nil
}

// load writes checksummed files until stop is closed and says how it goes:
// whoever kills a process on the card or the host sees whether I/O went on.
// Each line says of which boot it is.
func load(dir string, boot int, stop <-chan struct{}) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		fmt.Println("DAVIT-LOAD error:", err)
		return
	}
	data := make([]byte, 256*1024)
	for round := 1; ; round++ {
		select {
		case <-stop:
			return
		default:
		}
		rand.Read(data)
		path := filepath.Join(dir, fmt.Sprintf("%d", round%16))
		err := writeSynced(path, data)
		if err == nil {
			err = dropCaches()
		}
		var back []byte
		if err == nil {
			back, err = os.ReadFile(path)
		}
		if err == nil && sha256.Sum256(back) != sha256.Sum256(data) {
			err = errors.New("read back other bytes than were written")
		}
		if err != nil {
			fmt.Println("DAVIT-LOAD error:", err)
			return
		}
		fmt.Printf("DAVIT-LOAD boot=%d round=%d ok\n", boot, round)
	}
}
