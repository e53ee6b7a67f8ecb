// SPDX-License-Identifier: Apache-2.0

package detect

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/davit-dpu/davit/board"
	"github.com/davit-dpu/davit/board/loopback"
	"github.com/davit-dpu/davit/board/qemuvirt"
)

// Boards lists every board there is. A new board is added here.
func Boards() []board.Board {
	return []board.Board{qemuvirt.Board(), loopback.Board()}
}

// Named returns the board of that name.
func Named(name string) (board.Board, error) {
	var names []string
	for _, b := range Boards() {
		if b.Name == name {
			return b, nil
		}
		names = append(names, b.Name)
	}
	return board.Board{}, fmt.Errorf("board %q: unknown; known are %s", name, strings.Join(names, ", "))
}

// Detect returns the board whose marks sysfs (the tree under /sys) shows. No
// match is an error, never a guess: the wrong board's devices would be opened.
func Detect(sysfs fs.FS) (board.Board, error) {
	for _, b := range Boards() {
		if b.Matches(sysfs) {
			return b, nil
		}
	}
	return board.Board{}, fmt.Errorf("board: this machine matches none; name one with --board or in the card configuration")
}
