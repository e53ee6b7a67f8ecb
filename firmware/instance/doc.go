// SPDX-License-Identifier: Apache-2.0

// Package instance keeps the card's instances: what is wanted of each, stored
// on the card, and what is seen of each, and the steps that bring the two
// together. One goroutine owns each instance.
//
//	           start                  vmm runs
//	stopped ────────► starting ───────────────► running
//	   ▲                │ error, undone            │ stop     │ vmm gone
//	   │                ▼                          ▼          ▼
//	   │              failed ◄──────────────── stopping    failed, or stopped
//	   │                │  restart policy          │        when the guest
//	   └────────────────┴──────────────────────────┘        shut itself down
//
//	unknown: the host or the vcard is not there; what was last seen is in the
//	reason, and nothing is decided until it is there again.
//	pending: wanted to run, and waits for the host or for the next try.
//
// A start is written down (generation, memory range) before its first effect,
// so that an agent that dies in the middle finds what it must adopt or undo. When
// only the answer got lost, the host's next report decides: a VMM that runs is
// adopted, one that ended is judged, and one of which the host knows nothing never
// was, so that the next try is no restart.
//
// Package instance does not know mailboxes, keys, TPMs or the bus. It sees its
// host through the interface Host and the Observations that the agent hands in,
// and believes the host only as far as reporting goes: memory and volumes of an
// instance are freed only when the host says that its VMM is gone.
package instance
