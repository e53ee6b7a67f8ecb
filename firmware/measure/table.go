// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"errors"
	"fmt"
)

// Kind says what sort of thing is measured; it decides the PCR.
type Kind string

// The kinds that there are.
const (
	// KindInit is the program that runs as process 1.
	KindInit Kind = "init"
	// KindProgram is any other program of the card: davitd, vcard.
	KindProgram Kind = "program"
	// KindModule is a kernel module, or the list of all that are loaded.
	KindModule Kind = "module"
	// KindConfig is the card's configuration: one file, with the keyring and the
	// policy in it, measured as a whole.
	KindConfig Kind = "config"
	// KindLifecycle is the lifecycle state in which the card starts.
	KindLifecycle Kind = "lifecycle"
)

// ErrUnknownKind: the table has no row for the kind.
var ErrUnknownKind = errors.New("no such kind of measurement")

// Row is one PCR of the table.
type Row struct {
	// PCR is the register's number.
	PCR int
	// Kinds go to this PCR, and to no other.
	Kinds []Kind
	// Holds says what that is in a few words.
	Holds string
	// Why says why it has a PCR of its own, and why this one.
	Why string
}

// Table returns which of our measurements go to which PCR.
//
// Of the PCRs for the operating system, 8 to 15, these are in use by what
// boots us (see the Linux TPM PCR Registry of the UAPI group):
//
//	 9  the kernel's EFI stub: initramfs and load options
//	10  IMA, where the kernel has it
//	11  systemd-stub: the sections of the UKI
//	12  systemd-stub: command lines and credentials from outside of the UKI
//	13  systemd-stub: system extension images
//
// That leaves 8 (otherwise GRUB's commands), 14 (shim's certificates) and 15
// (systemd's system identity), all by software that does not run on a card. A
// card that boots through shim or GRUB all the same has their events in the
// firmware's log, and the replay of both logs holds; only predicted values
// change. PCRs 16 and 23 can be reset by any software, 17 to 22 belong to a
// dynamic launch: none of them can hold a record.
//
// What differs from card to card is kept apart from what the image alone
// decides, so that the value of PCR 8 can be predicted from the image and
// secrets be sealed to 8 and 14. Nothing goes to 15: it is kept free for what
// happens while a card runs, to which nothing may be sealed.
func Table() []Row {
	return []Row{
		{
			PCR:   8,
			Kinds: []Kind{KindInit, KindProgram, KindModule},
			Holds: "code that the card runs",
			Why:   "depends on the image alone; GRUB's, which cards do not have",
		},
		{
			PCR:   14,
			Kinds: []Kind{KindConfig, KindLifecycle},
			Holds: "what the card is told to be, and whom it obeys: keyring and policy are part of its configuration",
			Why:   "changes with configuration while the code stays; shim's, which cards do not have",
		},
	}
}

// Registers returns the table as a map from kind to PCR, as an appraisal of
// evidence wants it.
func Registers() map[string]int {
	out := map[string]int{}
	for _, row := range Table() {
		for _, k := range row.Kinds {
			out[string(k)] = row.PCR
		}
	}
	return out
}

// register returns the PCR for a kind.
func register(k Kind) (int, error) {
	pcr, ok := Registers()[string(k)]
	if !ok {
		return 0, fmt.Errorf("%q: %w", k, ErrUnknownKind)
	}
	return pcr, nil
}
