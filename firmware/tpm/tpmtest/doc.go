// SPDX-License-Identifier: Apache-2.0

// Package tpmtest starts a TPM emulator for tests: swtpm in a private folder,
// on a unix socket, started as a firmware would (TPM2_Startup(CLEAR)), with
// all PCR banks that it has.
//
// It is for tests only, and does not know what they do with the TPM.
package tpmtest
