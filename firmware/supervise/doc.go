// SPDX-License-Identifier: Apache-2.0

// Package supervise keeps one child process alive: it starts it, hears when it
// is ready, restarts it within bounds, says why it ended, and stops it.
//
//	           start            ready
//	pending ──────────► starting ─────► ready
//	   ▲                   │              │
//	   │ backoff, cooldown │ exit, or     │ exit
//	   │                   │ not ready    │
//	   └───────────────────┴──────────────┤
//	                                      ▼
//	   budget used up and no cool-down: failed       context ended: stopping ─► stopped
//
// Policy and History are pure: they decide from times given as arguments.
// Command and Child touch the kernel. Supervisor joins the two.
//
// # Reaping as pid 1
//
// Pid 1 inherits every orphan (a vcard whose davitd died) and must wait for it,
// or it stays a zombie. Waiting for "any child" beside os/exec's Wait would
// steal its exit statuses: each can be collected once. So in a process with a
// Reaper there is one collector: Reaper waits for everything, gives the status
// of a child that was started through it to that child, and reports the rest
// as orphans; os/exec's Wait is never called. A start holds the Reaper's lock,
// so a child that ends at once is already known when it is collected. All
// children of such a process must be started through its Reaper.
//
// # Children that outlive their parent
//
// A vcard outlives the davitd that started it, so no parent-death signal is set
// unless the caller asks for one, and its output must not be a pipe into the
// parent (it would die of SIGPIPE with it): give it an OutputFile. The next
// davitd takes it over with Adopt, which needs the Identity that Child.Identity
// gave: pid and start time, so that a reused pid is never taken for it.
//
// The package does not know what the children do, nor their protocols.
package supervise
