// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"container/list"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// A nonce is 8 bytes time of issue (nanoseconds since the mailbox was made) |
// 8 bytes random | 16 bytes of HMAC-SHA-256 over both with a key that is made
// at random when the mailbox is made and never leaves it.
const (
	nonceStamp = 8
	nonceBody  = 16
)

// nonces issues nonces and lets each be used once.
//
// Issuing keeps nothing, so that nobody can use up memory, or push out honest
// peers' nonces, by asking for many. Only used nonces are kept, until they
// would be too old anyway, and a nonce is used only by a command that has
// passed all other checks. All state dies with the process, and with it the
// key: no nonce outlives a restart, used or not.
type nonces struct {
	key   [32]byte
	now   func() time.Time
	start time.Time
	ttl   time.Duration
	limit int

	mu     sync.Mutex
	latest time.Time                         // the clock never goes back here; guarded by mu
	used   map[[NonceSize]byte]*list.Element // guarded by mu
	age    *list.List                        // of usedNonce, in order of use; guarded by mu
}

type usedNonce struct {
	nonce [NonceSize]byte
	at    time.Time
}

func newNonces(now func() time.Time, ttl time.Duration, limit int) *nonces {
	start := now()
	n := &nonces{
		now: now, start: start, latest: start, ttl: ttl, limit: limit,
		used: map[[NonceSize]byte]*list.Element{}, age: list.New(),
	}
	_, _ = rand.Read(n.key[:]) // never fails: crypto/rand ends the program instead
	return n
}

// clock tells the time, but never an earlier one than before: a used nonce that
// was forgotten for its age must not become young again. Needs mu.
func (n *nonces) clock() time.Time {
	if t := n.now(); t.After(n.latest) {
		n.latest = t
	}
	return n.latest
}

// issue makes a nonce.
func (n *nonces) issue() []byte {
	n.mu.Lock()
	age := n.clock().Sub(n.start)
	n.mu.Unlock()
	nonce := make([]byte, nonceBody, NonceSize)
	binary.BigEndian.PutUint64(nonce, uint64(age))
	_, _ = rand.Read(nonce[nonceStamp:]) // never fails, see above
	return append(nonce, n.mac(nonce)...)
}

func (n *nonces) mac(body []byte) []byte {
	h := hmac.New(sha256.New, n.key[:])
	h.Write(body)
	return h.Sum(nil)[:NonceSize-nonceBody]
}

// check reports whether the nonce could be used now, without using it.
func (n *nonces) check(nonce []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, err := n.usable(n.clock(), nonce)
	return err
}

// use uses the nonce up; of several commands with the same nonce one gets nil.
func (n *nonces) use(nonce []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.clock()
	id, err := n.usable(now, nonce)
	if err != nil {
		return err
	}
	// Used nonces may be forgotten when usable refuses them for their age.
	for e := n.age.Front(); e != nil && now.Sub(e.Value.(usedNonce).at) > n.ttl; e = n.age.Front() {
		delete(n.used, e.Value.(usedNonce).nonce)
		n.age.Remove(e)
	}
	if n.age.Len() >= n.limit {
		return refuse(Busy, "too many commands in a short time")
	}
	n.used[id] = n.age.PushBack(usedNonce{nonce: id, at: now})
	return nil
}

// usable makes sure that this mailbox issued the nonce, not too long ago, and
// that no command has used it. Needs mu.
func (n *nonces) usable(now time.Time, nonce []byte) (id [NonceSize]byte, err error) {
	if len(nonce) != NonceSize || !hmac.Equal(n.mac(nonce[:nonceBody]), nonce[nonceBody:]) {
		return id, refuse(NoSuchNonce, "this card did not issue the nonce since it started")
	}
	age := now.Sub(n.start) - time.Duration(binary.BigEndian.Uint64(nonce))
	if age > n.ttl {
		return id, refuse(NoSuchNonce, "the nonce is too old")
	}
	copy(id[:], nonce)
	if _, used := n.used[id]; used {
		return id, refuse(Replayed, "the nonce was used before")
	}
	return id, nil
}
