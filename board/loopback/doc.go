// SPDX-License-Identifier: Apache-2.0

// Package loopback is any Linux machine playing the card: the agent and its
// vcards are ordinary processes, the bus is a unix socket, and the host's
// memory pool a file. It is never detected; it is asked for by name.
package loopback
