// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

var (
	testNonce = []byte("a nonce of thirty-two bytes here")
	testNow   = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	registers = map[string]int{"program": 8, "config": 14}
)

// card makes evidence as a card does, with keys in software: an appraiser sees
// no difference, and a test can sign what no TPM would.
type card struct {
	t           *testing.T
	ak, receipt *ecdsa.PrivateKey
	ek          *rsa.PrivateKey
	ca          *ecdsa.PrivateKey
	root        *x509.Certificate
	cert        []byte
	pcrs        eventlog.PCRs // what the TPM holds
	selected    []int         // what it quotes
	bank        tpm2.TPMIAlgHash
}

func newCard(t *testing.T) *card { return cardWith(t, firstEK) }

// otherCard returns one with another endorsement key.
func otherCard(t *testing.T) *card { return cardWith(t, otherEK) }

// The endorsement keys, made once: they take long.
var (
	firstEK = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })
	otherEK = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })
)

func cardWith(t *testing.T, makeEK func() (*rsa.PrivateKey, error)) *card {
	t.Helper()
	ek, err := makeEK()
	if err != nil {
		t.Fatal(err)
	}
	c := &card{t: t, ak: newKey(t), receipt: newKey(t), ek: ek, ca: newKey(t), pcrs: eventlog.PCRs{}, bank: tpm2.TPMAlgSHA256}
	for n := range 16 {
		c.selected = append(c.selected, n)
		c.pcrs[n] = eventlog.Initial(eventlog.SHA256, n)
	}
	c.certify()
	return c
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certify has a maker certify the endorsement key, as makers do: no subject,
// the TPM named in a critical alternative name.
func (c *card) certify() {
	c.t.Helper()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: testNow.AddDate(-1, 0, 0), NotAfter: testNow.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, c.ca.Public(), c.ca)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.root, err = x509.ParseCertificate(der); err != nil {
		c.t.Fatal(err)
	}
	name, err := asn1.Marshal(pkix.Name{CommonName: "TPM"}.ToRDNSequence())
	if err != nil {
		c.t.Fatal(err)
	}
	directory, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		c.t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageKeyEncipherment,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{{Id: subjectAltName, Critical: true, Value: directory}},
	}
	if c.cert, err = x509.CreateCertificate(rand.Reader, leaf, c.root, c.ek.Public(), c.ca); err != nil {
		c.t.Fatal(err)
	}
}

func area(key *ecdsa.PrivateKey, restricted bool) []byte {
	return tpm2.Marshal(publicArea(key, restricted))
}

func publicArea(key *ecdsa.PrivateKey, restricted bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true, Restricted: restricted},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: key.X.FillBytes(make([]byte, 32))},
			Y: tpm2.TPM2BECCParameter{Buffer: key.Y.FillBytes(make([]byte, 32))},
		}),
	}
}

func (c *card) ekArea() []byte {
	template := tpm2.RSAEKTemplate
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: c.ek.N.Bytes()})
	return tpm2.Marshal(template)
}

// sign signs a statement with key as the attestation key does.
func (c *card) sign(key *ecdsa.PrivateKey, statement tpm2.TPMSAttest) Signed {
	c.t.Helper()
	statement.Magic = tpm2.TPMGeneratedValue
	data := tpm2.Marshal(statement)
	digest := sha256.Sum256(data)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		c.t.Fatal(err)
	}
	return Signed{Statement: data, Signature: tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		}),
	})}
}

func (c *card) quote(qualifying []byte) tpm2.TPMSAttest {
	var list []uint
	h := sha256.New()
	for _, n := range c.selected {
		list = append(list, uint(n))
		h.Write(c.pcrs[n])
	}
	return tpm2.TPMSAttest{
		Type:      tpm2.TPMSTAttestQuote,
		ExtraData: tpm2.TPM2BData{Buffer: qualifying},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: c.bank, PCRSelect: tpm2.PCClientCompatible.PCRs(list...)}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		}),
	}
}

func certification(area []byte) tpm2.TPMSAttest {
	return tpm2.TPMSAttest{
		Type:     tpm2.TPMSTAttestCertify,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: nameOf(area)}}),
	}
}

// log returns a log of the given events and extends them.
func (c *card) log(events ...eventlog.Event) []byte {
	c.t.Helper()
	l, err := eventlog.New(eventlog.SHA256)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range events {
		if err := l.Append(e); err != nil {
			c.t.Fatal(err)
		}
		if e.Type != eventlog.NoAction {
			c.pcrs[int(e.PCR)] = eventlog.SHA256.Sum(c.pcrs[int(e.PCR)], e.Digest(eventlog.SHA256))
		}
	}
	return l.Encode()
}

func (c *card) measurement(pcr int, kind, name string) eventlog.Event {
	c.t.Helper()
	e, err := eventlog.Measurement{Kind: kind, Items: []eventlog.Item{{Name: name, Size: 1, Digest: sha256.Sum256([]byte(name))}}}.Event(pcr, eventlog.SHA256)
	if err != nil {
		c.t.Fatal(err)
	}
	return e
}

func firmwareEvent(pcr uint32) eventlog.Event {
	return eventlog.Event{PCR: pcr, Type: 0x80000003, Digests: eventlog.DigestsOf([]byte("code"), eventlog.SHA256), Data: []byte("label")}
}

// document returns all that a card gives, not yet quoted.
func (c *card) document() Document {
	c.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(c.receipt.Public())
	if err != nil {
		c.t.Fatal(err)
	}
	receipt := area(c.receipt, false)
	return Document{
		Version: Version,
		Nonce:   testNonce,
		TPM: &TPM{
			AttestationKey: area(c.ak, true),
			EndorsementKey: c.ekArea(),
			Certificate:    c.cert,
			Receipt:        CertifiedKey{Public: receipt, Certification: c.sign(c.ak, certification(receipt))},
		},
		ReceiptKey:  spki,
		FirmwareLog: c.log(firmwareEvent(0), firmwareEvent(4), firmwareEvent(14)),
		CardLog:     c.log(c.measurement(8, "program", "/davit/davitd"), c.measurement(8, "program", "/davit/vcard"), c.measurement(14, "config", "/etc/davit/config.yaml")),
		BootReport:  []byte(`{"lifecycle":"development"}`),
	}
}

// seal quotes: what changes afterwards is tampering.
func (c *card) seal(d *Document) {
	c.t.Helper()
	binding := d.Binding()
	d.TPM.Quote = c.sign(c.ak, c.quote(binding[:]))
	c.list(d)
}

// list fills in the values of what is quoted.
func (c *card) list(d *Document) {
	d.TPM.PCRs = map[uint64][]byte{}
	for _, n := range c.selected {
		d.TPM.PCRs[uint64(n)] = c.pcrs[n]
	}
}

// expectations are those that the card's evidence meets without exemption.
func (c *card) expectations() Expectations {
	roots := x509.NewCertPool()
	roots.AddCert(c.root)
	id := sha256.Sum256(c.ekArea())
	return Expectations{
		Nonce:            testNonce,
		Registers:        registers,
		AttestationKey:   nameOf(area(c.ak, true)),
		CardID:           id[:],
		EndorsementRoots: roots,
		Now:              testNow,
		PCRs:             map[int][][]byte{8: {make([]byte, 32), c.pcrs[8]}},
	}
}
