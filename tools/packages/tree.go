// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tidyTree makes an unpacked tree fit to be used where it is: absolute
// symbolic links become relative, so that they stay within the tree (links to
// what the tree doesn't have stay as they are), and no program keeps the
// right to run as another user.
func tidyTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("walk unpacked tree: %w", err)
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return relink(root, path)
		}
		info, err := d.Info()
		if err != nil {
			return fmt.Errorf("walk unpacked tree: %w", err)
		}
		if m := info.Mode(); m&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			if err := os.Chmod(path, m.Perm()); err != nil {
				return fmt.Errorf("drop set-user-id: %w", err)
			}
		}
		return nil
	})
}

// relink makes one absolute link relative, if its target is below root.
func relink(root, path string) error {
	target, err := os.Readlink(path)
	if err != nil {
		return fmt.Errorf("relink: %w", err)
	}
	if !filepath.IsAbs(target) {
		return nil
	}
	inside := filepath.Join(root, target)
	if _, err := os.Lstat(inside); err != nil {
		return nil
	}
	relative, err := filepath.Rel(filepath.Dir(path), inside)
	if err != nil {
		return fmt.Errorf("relink: %w", err)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(relative, path)); err != nil {
		return fmt.Errorf("relink: %w", err)
	}
	return nil
}

// syncTree brings the tree to the disk, before a marker says that it is whole.
func syncTree(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("sync unpacked tree: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync unpacked tree: %w", err)
	}
	return nil
}
