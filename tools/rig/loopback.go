// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/davit-dpu/davit/board/loopback"
	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise"
)

// Loopback is a server whose card is two processes on this machine, davitd and
// vcard, on the loopback board: no emulated card, no TPM, and nothing attested;
// everything else is the same. It is up in a second.
type Loopback struct {
	*Server
	Agent string // the davitd program
	Vcard string // the vcard program

	// Configure, if set, changes the card's configuration before it is written.
	Configure func(*spec.CardConfig)
}

// RunDir is davitd's run folder.
func (l *Loopback) RunDir() string { return l.sock("run") }

// StateDir is the folder that stands for the card's storage.
func (l *Loopback) StateDir() string { return l.path("state") }

// Bus is the socket that hostd connects to.
func (l *Loopback) Bus() string { return filepath.Join(l.RunDir(), "bus.sock") }

// Door is the socket of the card's own door.
func (l *Loopback) Door() string { return filepath.Join(l.RunDir(), "mailbox.sock") }

// PowerOn are the steps from nothing to a card that answers and sees its host.
func (l *Loopback) PowerOn(o *Operator) []Step {
	return []Step{
		{"storage", func(context.Context) (string, error) {
			return "the card's folder holds the operator's boot files and volumes", l.makeState(o)
		}, time.Minute},
		{"agent", func(ctx context.Context) (string, error) {
			return "davitd answers; without a TPM nothing is attested", l.StartAgent(ctx, o)
		}, time.Minute},
		{"hostd", func(ctx context.Context) (string, error) {
			return "runs, and waits for the card's word", l.StartHost(ctx)
		}, time.Minute},
		{"ready", o.waitReady, time.Minute},
		{"bus", o.waitHost, time.Minute},
	}
}

// makeState copies the seed, and writes the configuration.
func (l *Loopback) makeState(o *Operator) error {
	l.cfg.busSocket = l.Bus()
	key, err := mailbox.ReadPrivateKey(o.KeyFile)
	if err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	config, err := CardConfiguration(key.Public(), spec.Development)
	if err != nil {
		return err
	}
	config.Board = loopback.Board().Name
	config.Management = spec.Management{Listen: address}
	l.Address = address
	if l.Configure != nil {
		l.Configure(config)
	}
	text, err := spec.EncodeYAML(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path("config.yaml"), text, 0o600); err != nil {
		return err
	}
	if l.cfg.Seed.Dir == "" {
		return nil
	}
	return os.CopyFS(l.StateDir(), os.DirFS(l.cfg.Seed.Dir))
}

// freeAddress is a loopback address that nobody listens on at this moment.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

// StartAgent starts davitd and waits until its door answers. Killed with
// SIGKILL it leaves its vcard running, which the next StartAgent adopts.
func (l *Loopback) StartAgent(ctx context.Context, o *Operator) error {
	cmd := exec.Command(l.Agent, "--board", loopback.Board().Name, "--config", l.path("config.yaml"), "--state", l.StateDir(),
		"--run", l.RunDir(), "--pool", l.pool, "--vcard", l.Vcard, "--lenient-sandbox")
	p, err := l.start("davitd", cmd, syscall.SIGTERM)
	if err != nil {
		return err
	}
	l.Card = p
	return o.retry(ctx, func(ctx context.Context) error { return l.meet(ctx, o) })
}

// meet takes the card's software key from its own folder: a loopback card
// cannot prove more than that it is on this machine.
func (l *Loopback) meet(ctx context.Context, o *Operator) error {
	key, err := mailbox.ReadPrivateKey(filepath.Join(l.StateDir(), "identity.key"))
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	id := sha256.Sum256(spki)
	o.Contact = &Contact{
		Address: l.Address, CardID: hex.EncodeToString(id[:]), ReceiptKey: spki,
		KeyFile: o.KeyFile, HostDoor: l.HostDoor(),
	}
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := door.DialTLS(call, l.Address, door.ClientConfig{Card: o.Contact.CardID, CardKey: key.Public()})
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Request(call, "status", nil); err != nil {
		return err
	}
	return o.Contact.Save(l.path("card.json"))
}

// VcardProcess is the vcard as it runs now, for tests that kill it.
func (l *Loopback) VcardProcess() (*supervise.Adopted, error) {
	text, err := os.ReadFile(filepath.Join(l.RunDir(), "vcard", "0", "identity.json"))
	if err != nil {
		return nil, err
	}
	var id supervise.Identity
	if err := json.Unmarshal(text, &id); err != nil {
		return nil, err
	}
	return supervise.Adopt(id)
}

// Close stops everything; the vcard last, since it outlives its agent.
func (l *Loopback) Close() {
	vcard, err := l.VcardProcess()
	l.reclaimVMMs()
	l.stopAll()
	if later, again := l.VcardProcess(); again == nil {
		vcard, err = later, nil
	}
	if err == nil {
		if kill := vcard.Signal(syscall.SIGKILL); kill == nil || errors.Is(kill, os.ErrProcessDone) {
			<-vcard.Done()
		} else {
			fmt.Fprintln(os.Stderr, "stop the vcard:", kill)
		}
	}
	if text, err := os.ReadFile(filepath.Join(l.RunDir(), "vcard", "0", "log")); err == nil {
		_ = os.WriteFile(l.path("log/vcard.log"), text, 0o600)
	}
	l.removeTemporary()
}
