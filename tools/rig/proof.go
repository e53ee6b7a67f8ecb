// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Extent is a piece of a volume that the demonstration's guest says it wrote.
type Extent struct {
	Offset, Length spec.Bytes
	SHA256         []byte
}

// ReadProof reads the guest's console until it has told all that it wrote under
// this nonce. Lines of other runs (the nonce is another one) are passed over.
// What it returns is only what the guest says: compare it with the volume.
func ReadProof(console io.Reader, nonce string) ([]Extent, error) {
	var extents []Extent
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		_, text, ok := strings.Cut(strings.TrimRight(lines.Text(), "\r"), "DAVIT-PROOF nonce="+nonce+" ")
		if !ok {
			continue
		}
		if text == "end" {
			if len(extents) == 0 {
				return nil, errors.New("the instance ended its proof without having written anything")
			}
			return extents, nil
		}
		if why, ok := strings.CutPrefix(text, "error: "); ok {
			return nil, fmt.Errorf("the instance says: %s", why)
		}
		e, err := parseExtent(text)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", text, err)
		}
		extents = append(extents, e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("the instance's console: %w", err)
	}
	return nil, errors.New("the instance's console ended before its proof did")
}

func parseExtent(text string) (Extent, error) {
	var e Extent
	var disk, digest string
	if _, err := fmt.Sscanf(text, "disk=%s offset=%d length=%d sha256=%s", &disk, &e.Offset, &e.Length, &digest); err != nil {
		return Extent{}, err
	}
	sum, err := hex.DecodeString(digest)
	if err != nil || len(sum) != 32 {
		return Extent{}, fmt.Errorf("sha256 %q is not 64 hexadecimal digits", digest)
	}
	e.SHA256 = sum
	return e, nil
}
