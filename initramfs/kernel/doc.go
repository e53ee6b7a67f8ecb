// SPDX-License-Identifier: Apache-2.0

// Package kernel reads an unpacked distribution kernel package and answers two
// questions: what is the kernel's image, and which modules, in which order,
// must be loaded to get the named ones.
//
// The package's tree is what `dpkg -x linux-image-….deb DIR` leaves:
//
//	DIR/boot/vmlinuz-REL
//	DIR/lib/modules/REL/kernel/…/NAME.ko[.xz|.zst|.gz]   (or usr/lib/modules)
//	DIR/lib/modules/REL/modules.builtin
//
// There is no modules.dep in it (that is made by depmod at installation), so
// the dependencies are read from the modules themselves: the ELF section
// .modinfo is a list of NUL-terminated key=value strings, of which this
// package uses
//
//	name=virtio_net
//	depends=failover,net_failover
//	vermagic=6.12.95 SMP …        (must name this very kernel)
//
// Soft dependencies (softdep=) are hints, not needs, and are ignored: whoever
// wants such a module lists it.
//
// Modules are decompressed, because the initramfs is compressed as a whole,
// but never stripped: the signature appended behind the ELF image is what a
// kernel under lockdown checks.
//
// What it does not know: boards, the format of the initramfs, and how modules
// are loaded.
package kernel
