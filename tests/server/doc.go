// SPDX-License-Identifier: Apache-2.0

// Package server tests the whole emulated server: an emulated card (aarch64,
// UEFI, the real image and a software TPM), hostd, and an instance whose disk
// the card serves over the bus. Booting takes its time, so one server goes
// through all of it:
//
//	boot from the card's own storage → evidence, status, network
//	→ reboot under load → power cut under load → a TPM that is another one
//
// It has no exported names: it is tests only.
package server
