// SPDX-License-Identifier: Apache-2.0

// Command vcard is one virtual card: the process that serves one host's disks
// and reads everything that the host and its guests write. davitd starts it.
//
//	vcard [--sandbox=strict|available] [--id=N]
//
// It finds its control socket (control.Bind) as file descriptor 3, confines
// itself (firmware/vcard/sandbox) before it accepts a connection, logs to
// standard error without ever waiting for it, and ends after a Shutdown request
// or SIGTERM with all devices drained and all volumes flushed. It outlives
// davitd.
package main
