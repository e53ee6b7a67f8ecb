// SPDX-License-Identifier: Apache-2.0

// Package bench measures whole cards: how long one takes to be ready.
// docs/performance.md has the figures and the bars.
//
//	make bench                                                all of them
//	go test -run '^$' -bench Boot/direct -benchtime 1x -timeout 30m ./tests/bench
//
// BenchmarkBoot compares two images on one machine, one after the other and
// again, because nothing here is as unequal as two moments of a shared machine:
//
//	card      the real image; it is ready when its TLS door answers a status
//	          request with a receipt whose signature verifies and which says so
//	baseline  the same kernel and modules, wrapped, signed and started in the
//	          same way, with an init (poweroff) that prints a line and ends
//
// Both are booted once before anything counts: the firmware's variables, the
// TPM's keys and the data partition are then those of a card in use. Between
// two boots the card is shut down cleanly.
//
// What an observation costs is part of it: the console is read from QEMU's log
// file, and the card is asked once it says on its console that it has an
// address.
//
//	DAVIT_BENCH_BOOTS=N   boots of each image (default 5)
package bench
