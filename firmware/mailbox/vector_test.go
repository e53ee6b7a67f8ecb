// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// vectors is testdata/vectors.json: messages as another implementation must
// make and read them. Byte strings are hexadecimal. The file changes only when
// the protocol does, and then vectors are added, not altered.
type vectors struct {
	Seed    string `json:"ed25519Seed"`
	KeyID   string `json:"keyID"`
	Command struct {
		Card      string `json:"card"`
		Op        string `json:"op"`
		ArgsName  string `json:"argsName"`
		Nonce     string `json:"nonce"`
		NotBefore int64  `json:"notBefore"`
		NotAfter  int64  `json:"notAfter"`
		Requester string `json:"requester"`
		Reason    string `json:"reason"`
		Lifecycle string `json:"lifecycle"`
		Message   string `json:"message"`
		Digest    string `json:"sha256"`
	} `json:"command"`
	Request struct {
		Op      string `json:"op"`
		Nonce   string `json:"nonce"`
		Message string `json:"message"`
	} `json:"request"`
	Receipt struct {
		Code    string `json:"code"`
		Text    string `json:"text"`
		TimeMS  int64  `json:"timeMS"`
		Audit   uint64 `json:"auditIndex"`
		Payload string `json:"payload"`
	} `json:"receipt"`
}

func TestVectors(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(unhex(t, v.Seed))
	if id, err := KeyID(key.Public()); err != nil || id != v.KeyID {
		t.Errorf("key id %q, %v; want %q", id, err, v.KeyID)
	}
	c := v.Command
	// Ed25519 signatures are deterministic, so that the whole message is.
	command, err := Sign(key, v.KeyID, Request{
		Card: c.Card, Op: c.Op, Args: map[string]any{"name": c.ArgsName}, Nonce: unhex(t, c.Nonce),
		NotBefore: time.Unix(c.NotBefore, 0), NotAfter: time.Unix(c.NotAfter, 0),
		Requester: c.Requester, Reason: c.Reason, Lifecycle: spec.Lifecycle(c.Lifecycle),
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "command", command, c.Message)
	digest := sha256.Sum256(command)
	compare(t, "command digest", digest[:], c.Digest)
	request, err := PublicRequest("", v.Request.Op, nil, unhex(t, v.Request.Nonce))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "request", request, v.Request.Message)
	body, err := encodeReceipt(&Receipt{
		Card: c.Card, Command: digest, Code: Code(v.Receipt.Code), Text: v.Receipt.Text,
		Time: time.UnixMilli(v.Receipt.TimeMS), AuditIndex: v.Receipt.Audit,
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "receipt payload", body, v.Receipt.Payload)
}

func compare(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if !bytes.Equal(got, unhex(t, want)) {
		t.Errorf("%s:\n got %s\nwant %s", what, hex.EncodeToString(got), want)
	}
}
