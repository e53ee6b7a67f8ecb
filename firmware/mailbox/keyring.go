// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"fmt"
	"strings"

	"github.com/veraison/go-cose"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Keyring holds the keys that may sign commands and what each of them may do.
// It never changes once it is made.
type Keyring struct {
	keys map[string]ringKey
}

type ringKey struct {
	verifier cose.Verifier
	patterns []string // of all the key's roles
}

// NewKeyring builds a keyring from a card's configuration. An empty keyring is
// valid: then no command is accepted.
func NewKeyring(keys []spec.Key, policy spec.Policy) (*Keyring, error) {
	ring := &Keyring{keys: make(map[string]ringKey, len(keys))}
	for i, k := range keys {
		entry, err := newRingKey(k, policy)
		if err != nil {
			return nil, fmt.Errorf("keys[%d] %q: %w", i, k.ID, err)
		}
		if _, twice := ring.keys[k.ID]; twice {
			return nil, fmt.Errorf("keys[%d]: id %q is used twice", i, k.ID)
		}
		ring.keys[k.ID] = entry
	}
	return ring, nil
}

func newRingKey(k spec.Key, policy spec.Policy) (ringKey, error) {
	if len(k.ID) > maxKeyID || !printable(k.ID) {
		return ringKey{}, fmt.Errorf("id: want 1 to %d printable ASCII characters", maxKeyID)
	}
	public, err := ParsePublicKey([]byte(k.Public))
	if err != nil {
		return ringKey{}, err
	}
	if alg, err := AlgorithmOf(public); err != nil || string(alg) != k.Algorithm {
		return ringKey{}, fmt.Errorf("algorithm is %q, but the key is for %s", k.Algorithm, alg)
	}
	entry := ringKey{}
	if entry.verifier, err = newVerifier(public); err != nil {
		return ringKey{}, err
	}
	for _, name := range k.Roles {
		role, ok := policy.Roles[name]
		if !ok {
			return ringKey{}, fmt.Errorf("role %q is not in the policy", name)
		}
		entry.patterns = append(entry.patterns, role.Ops...)
	}
	return entry, nil
}

// allows reports whether one of the key's roles names the op. What nothing
// allows is denied.
func (k ringKey) allows(op string) bool {
	for _, pattern := range k.patterns {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			if prefix == "" || (strings.HasSuffix(prefix, ".") && strings.HasPrefix(op, prefix)) {
				return true
			}
		} else if pattern == op {
			return true
		}
	}
	return false
}
