// SPDX-License-Identifier: Apache-2.0

// Command blkserver serves one volume to vhost-user front ends, one after the
// other, as a vcard does but with nothing else around: no agent, no sandbox, no
// card. It is what is measured against qemu-storage-daemon's export.
//
//	blkserver --socket PATH null SIZE      reads and writes nothing
//	blkserver --socket PATH memory SIZE    memory of the process
//	blkserver --socket PATH file PATH      a file or block device
//
// SIZE is in bytes. It runs until it is killed.
package main
