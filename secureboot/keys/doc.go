// SPDX-License-Identifier: Apache-2.0

// Package keys makes and loads the development keys of one checkout: those
// that let a developer sign images and send commands without ceremony. They
// live in a folder of their own, each checkout its own:
//
//	image.key      RSA-2048, PKCS #8 PEM, mode 0600: signs images (UEFI db)
//	image.crt      its self-signed certificate, PEM
//	operator.key   Ed25519, PKCS #8 PEM, mode 0600: signs commands
//	operator.pub   its public key, PKIX PEM
//
// RSA-2048 because firmware must support it (UEFI 2.10 section 32.4.1), and
// not all firmware supports more.
//
// The folder appears at once and whole (it is made beside its place and then
// renamed), and what exists is never overwritten. Development keys are marked
// in the certificate's common name, so that production refuses them: see
// CheckProduction.
//
// What it does not know: keys of production, which never lie in files of a
// build machine, and what is signed with these.
package keys
