// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/goccy/go-yaml"
)

// MaxDocument bounds a YAML document before it is parsed.
const MaxDocument = 256 * 1024

// DecodeYAML reads exactly one document into out. Unknown and duplicate keys
// are refused, so that a misspelt limit is an error and not a default.
func DecodeYAML(text []byte, out any) error {
	if len(text) > MaxDocument {
		return fmt.Errorf("document of %d bytes is larger than %d", len(text), MaxDocument)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := dec.Decode(out); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("document is empty")
		}
		return err
	}
	var second any
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}

// EncodeYAML writes v the way DecodeYAML reads it.
func EncodeYAML(v any) ([]byte, error) { return yaml.Marshal(v) }
