// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/netip"
	"strings"
)

// Lifecycle gates power: what a card may do at all.
type Lifecycle string

// Lifecycle states.
const (
	Development Lifecycle = "development" // rescue shell, development keys
	Production  Lifecycle = "production"  // no login, no unsigned path
	RMA         Lifecycle = "rma"         // being repaired; cannot open production secrets
)

// Key is a public key that may sign commands.
type Key struct {
	ID        string   `json:"id"`        // COSE kid; by default the first 16 hexadecimal digits of SHA-256(SPKI)
	Algorithm string   `json:"algorithm"` // EdDSA (Ed25519), ES256 or ES384
	Public    string   `json:"public"`    // SubjectPublicKeyInfo, PEM
	Roles     []string `json:"roles"`     // names of roles of the policy
}

// Role is a set of operations: exact names, or a prefix followed by "*".
type Role struct {
	Ops []string `json:"ops"`
}

// Policy says which role may do what. What no role allows is denied.
type Policy struct {
	Roles map[string]Role `json:"roles"`
}

// Management is the card's own network: where the TLS door listens.
type Management struct {
	Interface string `json:"interface,omitempty"` // empty: the first Ethernet link with carrier
	Listen    string `json:"listen,omitempty"`    // address:port of the TLS door; empty: no TLS door
	DHCP      bool   `json:"dhcp,omitempty"`
}

// CardConfig is the card's signed configuration: /etc/davit/config.yaml, part
// of the image, measured before it is used.
type CardConfig struct {
	Version    int        `json:"version"` // 1
	Name       string     `json:"name"`    // a label for people; identity is the TPM's
	Lifecycle  Lifecycle  `json:"lifecycle"`
	Board      string     `json:"board,omitempty"` // empty: detected
	Management Management `json:"management"`
	Keys       []Key      `json:"keys"`
	Policy     Policy     `json:"policy"`
}

// ParseCardConfig decodes and validates a card configuration.
func ParseCardConfig(text []byte) (*CardConfig, error) {
	var c CardConfig
	if err := DecodeYAML(text, &c); err != nil {
		return nil, fmt.Errorf("card configuration: %w", err)
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("card configuration: %w", err)
	}
	return &c, nil
}

// Validate checks the form of each field, and that keys have their own names and
// roles that the policy has: a key that could never work would lock somebody out
// unnoticed. It does not see all of these: whether a key is of the algorithm that
// is said of it, the mailbox finds when it takes the keyring; whether a role
// names any op, and one that this card has, nothing checks.
func (c *CardConfig) Validate() error {
	if c.Version != 1 {
		return fmt.Errorf("version: %d is not 1", c.Version)
	}
	if err := CheckName("name", c.Name); err != nil {
		return err
	}
	switch c.Lifecycle {
	case Development, Production, RMA:
	default:
		return fmt.Errorf("lifecycle: %q is not development, production or rma", c.Lifecycle)
	}
	if c.Management.Listen != "" {
		if _, err := netip.ParseAddrPort(c.Management.Listen); err != nil {
			return fmt.Errorf("management.listen: %w", err)
		}
	}
	for name, role := range c.Policy.Roles {
		if err := role.validate(); err != nil {
			return fmt.Errorf("policy.roles.%s: %w", name, err)
		}
	}
	seen := map[string]bool{}
	for i, k := range c.Keys {
		if err := k.validate(c.Policy); err != nil {
			return fmt.Errorf("keys[%d]: %w", i, err)
		}
		if seen[k.ID] {
			return fmt.Errorf("keys[%d]: id %q is used twice", i, k.ID)
		}
		seen[k.ID] = true
	}
	return nil
}

func (r Role) validate() error {
	for _, op := range r.Ops {
		body := strings.TrimSuffix(op, "*")
		if strings.Contains(body, "*") || op == "" || (op != "*" && body != op && !strings.HasSuffix(body, ".")) {
			return fmt.Errorf("op %q: want a name, a prefix like \"instance.*\", or \"*\"", op)
		}
	}
	return nil
}

func (k *Key) validate(p Policy) error {
	if k.ID == "" || len(k.ID) > 64 || !printable(k.ID) {
		return fmt.Errorf("id %q: want 1 to 64 printable ASCII characters", k.ID)
	}
	switch k.Algorithm {
	case "EdDSA", "ES256", "ES384":
	default:
		return fmt.Errorf("algorithm %q is not EdDSA, ES256 or ES384", k.Algorithm)
	}
	block, rest := pem.Decode([]byte(k.Public))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return fmt.Errorf("public: want one PEM block of type PUBLIC KEY")
	}
	if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return fmt.Errorf("public: %w", err)
	}
	if len(k.Roles) == 0 {
		return fmt.Errorf("roles: a key without a role can do nothing")
	}
	for _, r := range k.Roles {
		if _, ok := p.Roles[r]; !ok {
			return fmt.Errorf("roles: %q is not in the policy", r)
		}
	}
	return nil
}

// KeyID is the default name of a key: the first 16 hexadecimal digits of
// SHA-256 over its DER SubjectPublicKeyInfo.
func KeyID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:8])
}
