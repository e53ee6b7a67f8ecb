// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"testing"
	"time"
)

// stubOptions change the image that makeStub makes.
type stubOptions struct {
	machine   uint16
	headers   int    // SizeOfHeaders; 0: 0x400
	filler    uint32 // word in the room behind the section table
	debug     bool
	dirs      uint32 // data directories; 0: 16
	tail      []byte // behind the last section
	extra     string // name of one more section
	fileAlign uint32
}

// makeStub makes a small PE32+ image, like the stubs that linkers make.
func makeStub(o stubOptions) []byte {
	if o.machine == 0 {
		o.machine = MachineARM64
	}
	if o.headers == 0 {
		o.headers = 0x400
	}
	if o.dirs == 0 {
		o.dirs = 16
	}
	if o.fileAlign == 0 {
		o.fileAlign = 0x200
	}
	sections := []content{
		{".text", bytes.Repeat([]byte{0x1f, 0x20, 0x03, 0xd5}, 100)},
		{".data", []byte("data of the stub")},
		{".sbat", []byte("sbat,1,SBAT Version,sbat,1,https://example.org/\n")},
	}
	if o.extra != "" {
		sections = append(sections, content{o.extra, []byte("extra")})
	}
	optional := optionalFixed + 8*int(o.dirs)
	out := make([]byte, o.headers)
	for i := 0; i+4 <= len(out); i += 4 {
		le.PutUint32(out[i:], o.filler)
	}
	table := 0x40 + 4 + coffSize + optional
	clear(out[:table+len(sections)*sectionSize])
	copy(out, "MZ")
	le.PutUint32(out[lfanewOffset:], 0x40)
	copy(out[0x40:], "PE\x00\x00")
	coff := out[0x44:]
	le.PutUint16(coff, o.machine)
	le.PutUint16(coff[2:], uint16(len(sections)))
	le.PutUint32(coff[8:], 0x1234) // symbols
	le.PutUint32(coff[12:], 7)
	le.PutUint16(coff[16:], uint16(optional))
	le.PutUint16(coff[18:], 0x0206)
	opt := out[0x44+coffSize:]
	le.PutUint16(opt, magicPE32Plus)
	le.PutUint32(opt[16:], 0x1000)
	le.PutUint32(opt[offSectionAlignment:], 0x1000)
	le.PutUint32(opt[offFileAlignment:], o.fileAlign)
	le.PutUint32(opt[offSizeOfHeaders:], uint32(o.headers))
	le.PutUint32(opt[offCheckSum:], 0xdeadbeef)
	le.PutUint16(opt[68:], 10) // EFI application
	le.PutUint32(opt[offNumberOfDirs:], o.dirs)
	if o.debug {
		le.PutUint32(opt[optionalFixed+8*dirDebug:], 0x2000)
		le.PutUint32(opt[optionalFixed+8*dirDebug+4:], 28)
	}
	virtual := uint64(0x1000)
	for i, s := range sections {
		raw := align(uint64(len(s.data)), uint64(o.fileAlign))
		putSection(out[table+i*sectionSize:table+(i+1)*sectionSize], section{
			name: s.name, virtualSize: uint32(len(s.data)), virtualAddress: uint32(virtual),
			rawSize: uint32(raw), rawOffset: uint32(len(out)), characteristics: dataCharacteristics,
		})
		out = append(out, s.data...)
		out = append(out, make([]byte, raw-uint64(len(s.data)))...)
		virtual = align(virtual+uint64(len(s.data)), 0x1000)
	}
	le.PutUint32(out[0x44+coffSize+offSizeOfImage:], uint32(virtual))
	return append(out, o.tail...)
}

// signer is a key with its certificate.
type signer struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

var (
	signerA = sync.OnceValue(func() signer { return newSigner("a", 1) })
	// signerB has the name and number of signerA, and another key.
	signerB = sync.OnceValue(func() signer { return newSigner("a", 1) })
)

func newSigner(name string, serial int64) signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now, NotAfter: now.AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return signer{key, cert}
}

// testSections are small contents.
func testSections() Sections {
	return Sections{
		OSRelease: []byte("ID=davit\n"), Cmdline: "console=ttyAMA0 panic=5", Uname: "6.12.0-test",
		Linux: bytes.Repeat([]byte("kernel"), 1000), Initrd: bytes.Repeat([]byte("initrd!"), 777),
	}
}

func mustBuild(t *testing.T, stub []byte) []byte {
	t.Helper()
	out, err := Build(stub, testSections())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustSign(t *testing.T, image []byte, s signer) []byte {
	t.Helper()
	out, err := Sign(image, s.key, s.cert)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustOpen(t *testing.T, image []byte) *Image {
	t.Helper()
	img, err := Open(image)
	if err != nil {
		t.Fatal(err)
	}
	return img
}
