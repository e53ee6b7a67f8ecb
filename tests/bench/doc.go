// SPDX-License-Identifier: Apache-2.0

// Package bench measures against others what a card is judged by: how long it
// takes to be ready, and how fast its disks are. docs/performance.md has the figures
// and the bars.
//
//	make bench                                                all of them
//	go test -run '^$' -bench Boot/direct -benchtime 1x -timeout 30m ./tests/bench
//	go test -run '^$' -bench Block -benchtime 1x -timeout 30m ./tests/bench
//
// # Boot
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
//
// # Block
//
// BenchmarkBlock compares our vhost-user-blk back end (blkserver) with the export
// of qemu-storage-daemon. No machine runs: one client (blkclient) is front end and driver for both.
//
//	processor A                        processor B
//	┌─────────────────────┐  rings,    ┌───────────┐
//	│ blkserver           │  eventfds  │ blkclient │
//	│ qemu-storage-daemon │◄──────────►│ polls     │
//	└─────────────────────┘            └───────────┘
//	  in turn                            then A and B change places
//
// Each side has a processor of its own, for what it costs to wake one is more than a
// request. The two back ends are started afresh and run one right after the other; of all turns those count in which
// others used the machine least. The table has medians with least and most, and the
// ratio of the medians.
//
//	DAVIT_BENCH_BLOCK_SECONDS=S   length of a run (default 2)
//	DAVIT_BENCH_BLOCK_ROUNDS=N    turns of each case in each placement (default 3)
//	DAVIT_BENCH_BLOCK_AIO=NAME    how qemu-storage-daemon does file I/O: threads, as is its
//	                              default, or io_uring
package bench
