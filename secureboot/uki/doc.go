// SPDX-License-Identifier: Apache-2.0

// Package uki makes, reads, signs and checks unified kernel images: a PE/COFF
// stub (systemd-stub) with kernel, initrd and command line as sections of the
// same file, so that one signature covers all that boots.
//
//	offset 0            DOS header, PE signature, COFF header, optional header,
//	                    section table (grown into the room before the first section)
//	SizeOfHeaders       the stub's own sections, as they were (.text .data .sbat …)
//	…                   .osrel .cmdline .uname .linux .initrd, in this order
//	…                   attribute certificate table (only when signed)
//
// Added sections lie behind the stub's last one, in the file (aligned to
// FileAlignment) and in memory (aligned to a page at least); SizeOfImage grows,
// CheckSum becomes zero, and what the stub's file has behind its sections
// (symbols, linker remains) is dropped. The stub finds its sections by name and
// takes VirtualSize as the length of the content, so VirtualSize is exact.
//
// Signatures are Authenticode (PE/COFF specification, "Attribute Certificate
// Table"; Windows Authenticode Portable Executable Signature Format 1.0), as
// UEFI firmware checks them (UEFI 2.10 section 32.2): PKCS #7 SignedData over
// SpcIndirectDataContent with SHA-256, signed with RSA PKCS #1 v1.5. They are
// made and read here and not with a library: the libraries at hand do not bind
// the signed attributes to the content when they verify, stop the program when
// a signer fails, and take the time from the clock, which would make a signed
// image different in each build.
//
// What it does not know: where stub, kernel and keys come from, PCR prediction,
// and chains of certificates: like the firmware's db, Verify takes the
// certificate that is trusted, and nothing else.
package uki
