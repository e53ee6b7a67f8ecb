// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
)

// MakerRoot is the certificate of the TPM maker's authority, in a run's folder.
const MakerRoot = "tpm-maker/issuercert.pem"

// Operator is the operator's part in bringing the server up: first contact with
// the card, then commands to it.
type Operator struct {
	Server  *Server
	KeyFile string
	Contact *Contact // set by the enrol step
}

// look is how often something that has no event is looked at.
const look = 100 * time.Millisecond

// retry calls f until it works, the card ends, or ctx does; then it returns
// the last error that was not for lack of time.
func (o *Operator) retry(ctx context.Context, f func(context.Context) error) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	last := errors.New("nothing was tried")
	for {
		err := f(ctx)
		if err == nil || isFinal(err) {
			return err
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-o.Server.Card.Done():
			return o.Server.Card.Failure()
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w\nthe card's serial line, from %s:\n%s", context.Cause(ctx), last,
				o.Server.CardLog(), Tail(o.Server.CardLog(), 15))
		}
	}
}

// isFinal tells errors that waiting does not mend.
func isFinal(err error) bool {
	var bad *NotTrusted
	return errors.As(err, &bad) || errors.Is(err, errFinal)
}

var errFinal = errors.New("will not change")

// Attend are the steps from power-on to a card that has proved itself, is ready
// and sees its host.
func (o *Operator) Attend() []Step {
	return []Step{
		{"attest", o.enrol, 3 * time.Minute},
		{"ready", o.waitReady, time.Minute},
		{"bus", o.waitHost, time.Minute},
	}
}

// enrol waits until the card's TLS door answers, and appraises its evidence.
func (o *Operator) enrol(ctx context.Context) (string, error) {
	text, err := os.ReadFile(o.Server.path(MakerRoot))
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return "", fmt.Errorf("%s holds no certificate", MakerRoot)
	}
	err = o.retry(ctx, func(ctx context.Context) error {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		o.Contact, err = Enrol(call, o.Server.Address, roots)
		return err
	})
	if err != nil {
		return "", err
	}
	o.Contact.KeyFile, o.Contact.CardConsole = o.KeyFile, o.Server.CardConsole()
	o.Contact.HostDoor = o.Server.HostDoor()
	if err := o.Contact.Save(o.Server.path("card.json")); err != nil {
		return "", err
	}
	return "evidence with a fresh nonce: quote by a TPM-resident key, logs replay to its PCRs; card " + o.Contact.CardID[:16], nil
}

// waitReady waits until the card says that everything it needs is ready.
func (o *Operator) waitReady(ctx context.Context) (string, error) {
	var st spec.CardStatus
	err := o.retry(ctx, func(ctx context.Context) error {
		if err := o.Ask(ctx, "status", nil, &st); err != nil {
			return err
		}
		if st.Phase != spec.PhaseReady {
			return fmt.Errorf("the card is %s: %s", st.Phase, st.Reason)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	signer := "its TPM"
	if o.Contact.AttestationKey == "" {
		signer = "a key in software"
	}
	return fmt.Sprintf("the card says so in a receipt signed by %s; %d components, address %s", signer, len(st.Components), addressOf(&st)), nil
}

func addressOf(st *spec.CardStatus) string {
	if st.Network == nil {
		return "none"
	}
	return st.Network.Address
}

// waitHost waits until card and hostd have a bus session.
func (o *Operator) waitHost(ctx context.Context) (string, error) {
	var st spec.CardStatus
	err := o.retry(ctx, func(ctx context.Context) error {
		if err := o.Ask(ctx, "status", nil, &st); err != nil {
			return err
		}
		for _, c := range st.Components {
			if c.Name == "host" && c.Phase != spec.PhaseReady {
				return fmt.Errorf("the card sees its host as %s: %s", c.Phase, c.Reason)
			}
		}
		return nil
	})
	return "card and host speak; the host's pool is mapped by the card", err
}

// Demonstrate are the steps that start the demonstration instance and compare
// what it wrote with what the card's volume holds. The volume is that of the
// demonstration's seed.
func (o *Operator) Demonstrate(d Demo) []Step {
	var nonce [8]byte
	rand.Read(nonce[:]) // never returns an error
	text := hex.EncodeToString(nonce[:])
	return []Step{
		{"instance", func(ctx context.Context) (string, error) { return o.startDemo(ctx, d.Instance(text)) }, 2 * time.Minute},
		{"proof", func(ctx context.Context) (string, error) { return o.proveDemo(ctx, text) }, 3 * time.Minute},
	}
}

func (o *Operator) startDemo(ctx context.Context, in spec.Instance) (string, error) {
	if err := o.replace(ctx, in); err != nil {
		return "", err
	}
	if err := o.Start(ctx, in.Name); err != nil {
		return "", err
	}
	return "the host runs its VMM on the card's order; its disk is attached to the card", nil
}

// replace creates an instance, in place of a stopped one of the same name.
func (o *Operator) replace(ctx context.Context, in spec.Instance) error {
	text, err := spec.EncodeYAML(in)
	if err != nil {
		return err
	}
	var list []spec.InstanceStatus
	if err := o.Do(ctx, "instance.list", nil, &list); err != nil {
		return err
	}
	for _, st := range list {
		if st.Spec.Name != in.Name {
			continue
		}
		if err := o.Stop(ctx, in.Name, 0); err != nil {
			return err
		}
		if err := o.Do(ctx, "instance.delete", map[string]string{"name": in.Name}, nil); err != nil {
			return err
		}
	}
	return o.Do(ctx, "instance.create", map[string]string{"yaml": string(text)}, nil)
}

// Start has an instance started and waits until it runs.
func (o *Operator) Start(ctx context.Context, name string) error {
	if err := o.Do(ctx, "instance.start", map[string]string{"name": name}, nil); err != nil {
		return err
	}
	return o.WaitPhase(ctx, name, spec.PhaseRunning)
}

// Stop has an instance stopped and waits until it is.
func (o *Operator) Stop(ctx context.Context, name string, grace time.Duration) error {
	args := map[string]any{"name": name, "graceSeconds": uint32(grace / time.Second)}
	if err := o.Do(ctx, "instance.stop", args, nil); err != nil {
		return err
	}
	return o.WaitPhase(ctx, name, spec.PhaseStopped)
}

// WaitPhase waits until an instance is in a phase; one that has failed does not
// get there.
func (o *Operator) WaitPhase(ctx context.Context, name string, want spec.Phase) error {
	return o.retry(ctx, func(ctx context.Context) error {
		st, err := o.Show(ctx, name)
		if err != nil {
			return err
		}
		if st.Phase == want {
			return nil
		}
		err = fmt.Errorf("instance %s is %s: %s", name, st.Phase, st.Reason)
		if st.Phase == spec.PhaseFailed && st.Desired == spec.PhaseStopped {
			return errors.Join(err, errFinal)
		}
		return err
	})
}

// Show returns an instance's status.
func (o *Operator) Show(ctx context.Context, name string) (*spec.InstanceStatus, error) {
	var st spec.InstanceStatus
	if err := o.Do(ctx, "instance.show", map[string]string{"name": name}, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// proveDemo reads from the instance's console what it wrote where, and asks the
// card for the digest of exactly those bytes of its volume.
func (o *Operator) proveDemo(ctx context.Context, nonce string) (string, error) {
	client, err := o.Contact.Dial(ctx)
	if err != nil {
		return "", err
	}
	defer client.Close()
	console, err := client.Stream(ctx, "instance.console", map[string]string{"name": DemoName}, "")
	if err != nil {
		return "", err
	}
	extents, err := ReadProof(console, nonce)
	if err != nil {
		return "", err
	}
	var total spec.Bytes
	for _, e := range extents {
		if err := o.compare(ctx, e); err != nil {
			return "", err
		}
		total += e.Length
	}
	return fmt.Sprintf("the card's volume holds the %s that the instance wrote, synced and read back (SHA-256 of %d extents)", total, len(extents)), nil
}

func (o *Operator) compare(ctx context.Context, e Extent) error {
	var sum []byte
	args := map[string]any{"kind": spec.VolumeFile, "name": DemoVolume, "offset": e.Offset, "length": e.Length}
	if err := o.Do(ctx, "volume.digest", args, &sum); err != nil {
		return err
	}
	if !bytes.Equal(sum, e.SHA256) {
		return fmt.Errorf("volume %s at %d: the card holds sha256 %x, the instance wrote %x", DemoVolume, e.Offset, sum, e.SHA256)
	}
	return nil
}

// Ask sends a public request and decodes its result.
func (o *Operator) Ask(ctx context.Context, op string, args, result any) error {
	return o.call(ctx, result, func(c *door.Client) (resultDecoder, error) { return c.Request(ctx, op, args) })
}

// Do sends a signed command and decodes its result; nil: there is none.
func (o *Operator) Do(ctx context.Context, op string, args, result any) error {
	return o.call(ctx, result, func(c *door.Client) (resultDecoder, error) { return c.Do(ctx, op, args, "") })
}

type resultDecoder interface{ Decode(v any) error }

func (o *Operator) call(ctx context.Context, result any, send func(*door.Client) (resultDecoder, error)) error {
	client, err := o.Contact.Dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	receipt, err := send(client)
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	if result == nil {
		return nil
	}
	return receipt.Decode(result)
}

// Attest appraises the enrolled card anew.
func (o *Operator) Attest(ctx context.Context) (*evidence.Report, error) {
	text, err := os.ReadFile(o.Server.path(MakerRoot))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return o.Contact.Attest(ctx, roots)
}
