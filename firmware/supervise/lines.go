// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"bufio"
	"errors"
	"io"
)

// maxLine is the longest line handed to an Output in one piece, in bytes.
const maxLine = 4096

// copyLines hands each line of src to dst in one Write, newline included. A
// line that is too long is cut into pieces, so that a child cannot make its
// parent keep an endless line. It returns at the end of src; what dst does with
// a line is not its business, so errors of dst are not looked at: output must
// never stop the child.
func copyLines(dst io.Writer, src io.Reader) {
	r := bufio.NewReaderSize(src, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			if line[len(line)-1] != '\n' {
				line = append(line[:len(line):len(line)], '\n')
			}
			_, _ = dst.Write(line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}
