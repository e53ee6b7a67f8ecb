// SPDX-License-Identifier: Apache-2.0

// Package disk makes the boot disk of a UEFI machine, which is a card or an
// instance, as a sparse raw file, and later replaces the image on it without
// touching the machine's state:
//
//	LBA 0       protective MBR, GPT
//	1 MiB       "davit-esp":  EFI system partition, FAT32, one file:
//	            EFI/BOOT/BOOTAA64.EFI (or BOOTX64.EFI), the unified kernel image
//	1 MiB+ESP   "davit-data": ext4, the machine's state
//	end         backup GPT
//
// The FAT is written here and not by a library: its layout is fixed (one file
// in two folders, in contiguous clusters), so the same image gives the same
// bytes, an unchanged image is seen without reading a directory, and firmware
// reads the file in one run. Format: Microsoft FAT specification, 2005.
//
// What it does not know: what is in the image or the state, and whether either
// is to be trusted.
package disk
