// SPDX-License-Identifier: Apache-2.0

// Package image builds what a card boots: an initramfs with our programs, the
// board's kernel modules and the card's configuration, together with kernel and
// command line as one Payload. How a payload is wrapped (a UKI for UEFI boards,
// later a BFB for BlueField) is another package's matter.
//
//	/init                    pid 1
//	/davit/davitd            the agent
//	/davit/vcard             the virtual card
//	/etc/davit/config.yaml   the card's configuration
//	/etc/davit/modules       kernel modules in load order, one absolute path a line
//	/etc/os-release          what this image is
//	/etc/resolv.conf         link to where the agent writes it
//	/lib/modules/REL/…       the modules of that list
//	/bbin/…  /bin/sh         the rescue shell; in development images only
//	/dev /proc /sys /run …   empty folders to mount on
//
// The archive is reproducible: the same sources, toolchain and inputs give the
// same bytes, wherever and whenever it is built. Every record has modification
// time, owner, inode and link count zero, records are sorted by path, Go code
// is built with -trimpath and without version-control stamps, and zstd runs
// with one worker.
//
// Our programs are built by `go build` here, and only the rescue shell by
// u-root's mkuimage. mkuimage can keep commands as separate binaries, and
// reproducibly so, but it compiles everything anew each time (go build -a),
// without inlining, into one folder: a second start would take minutes and not
// seconds, the agent's crypto would be slower, and /init could only be a
// symbolic link.
//
// What it does not know: boards (module names are an argument), where packages
// come from, keys and signatures.
package image
