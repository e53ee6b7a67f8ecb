// SPDX-License-Identifier: Apache-2.0

// Package agent is davitd: the one place where the card's services meet. It
// holds the keys and the TPM, answers the mailbox, keeps the instances, and
// runs one vcard beside itself, in which every byte that the host or a guest
// writes is parsed. The agent itself sees of them only what the control
// protocol has bounded and checked, and mailbox envelopes.
//
//	doors: tls, unix, bus ──► mailbox ──► ops.go ──► instance, attest, status, log
//	                                                    │
//	                          vcardLink ◄───────────────┘ instance.Host
//	                             │ control protocol
//	                           vcard
//
// An agent that dies takes nothing with it: the vcard goes on serving I/O, and
// the next agent adopts it. A vcard that dies is started again and gets its
// devices back; the host's front ends connect to it anew.
//
// It knows who talks to whom and in which order things start. It does not know
// formats, rings or policies: those are below.
package agent
