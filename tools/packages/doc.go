// SPDX-License-Identifier: Apache-2.0

// Package packages brings the programs and files that the emulated server
// needs (QEMU, swtpm, UEFI firmware, kernels, stubs, e2fsprogs, busybox) within
// reach of an ordinary user, without installing anything on the system.
//
// Each [Need] is one row of the table in needs.go. It is met, in this order, by
//
//	local     $XDG_CACHE_HOME/davit/local/NEED    a tree the user unpacked there
//	system    PATH and well-known places          when recent enough
//	fetched   $XDG_CACHE_HOME/davit/packages/…    distribution packages, unpacked
//
// Fetching asks the distribution's own apt, in a private tree, with the
// mirrors, keyrings and proxies of the system's own apt configuration. apt
// verifies the signed metadata and chooses the versions; this package
// compares every archive with the SHA-256 of that metadata again, and unpacks
// it. No maintainer script runs.
//
//	                  lock                            rename        symlink swap
//	(nothing) ─► tmp/NEED-… ─► index ─► plan ─► download ─► unpack ─► complete ─► gen-DIGEST ─► current
//	                  └──────────── killed or failed: tmp/NEED-… is removed by the next holder of the lock
//
// The cache, shared by clones and by concurrent processes:
//
//	packages/CODENAME-ARCH/lock             flock: one fetch at a time
//	packages/CODENAME-ARCH/apt/             private apt tree (lists, configuration)
//	packages/CODENAME-ARCH/NEED/current     symlink to the generation in use
//	packages/CODENAME-ARCH/NEED/gen-DIGEST/ root/ (the unpacked tree) and complete
//	packages/CODENAME-ARCH/tmp/             fetches under way
//
// complete holds one line "name version arch sha256" for each package, and is
// written last. A generation with all its files in place is used as it is:
// nothing is asked of the network, of apt or of the lock.
//
// The package doesn't know what a card or an instance is, and never changes
// the environment of its own process: only that of the commands it prepares.
package packages
