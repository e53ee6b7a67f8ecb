// SPDX-License-Identifier: Apache-2.0

// Package boot is what pid 1 of the card does: it works through one table, then
// keeps davitd running, and takes the card down cleanly.
//
//	table ──ok──► davitd under supervision ──request, signal──► clean stop ─► reboot(2)
//	  │                 │
//	  │ required step   │ restart budget used up
//	  │ failed          ▼
//	  │           production: a pause, then a new budget (vcards go on serving)
//	  │           development: rescue shell, then a new budget
//	  ▼
//	production: reason on all consoles, a delay, power-off. No shell, no reboot loop.
//
// The table (see steps) is read from top to bottom; each row says whether it is
// required. Required rows bind in every lifecycle but development, where a
// failure is reported and the boot goes on. The lifecycle comes from the kernel
// command line (davit.lifecycle=), which is part of the signed UKI; absent or
// contradictory means production.
//
// # What is measured when
//
// The TPM's driver is a kernel module, so modules are loaded before the TPM can
// be spoken to; they, like init itself, were measured by the firmware with the
// UKI that holds them. Everything else is measured before its first use, and
// davitd runs from the sealed copy that was measured (firmware/measure), also
// when it is started again.
//
// Copying and hashing takes longer than all else of measuring. It is done beside
// the loading of modules; a row that measures a file takes what was read then,
// logs it and extends the TPM, in the order of the table.
//
// # Consoles
//
// Which consoles exist depends on the number of console= arguments: lines go to
// all that /sys/class/tty/console/active lists, else to the board's own, and in
// every case to the kernel's log. A console that does not take its lines loses
// them; pid 1 never waits for one.
//
// The image must hold the nodes /dev/console and /dev/null. When the kernel finds
// no console to open as pid 1's standard streams, Go's runtime opens /dev/null in
// their place, before any of this runs, and without it ends the process: a
// kernel panic.
//
// # Watchdog
//
// When there is one it is armed from its row on. It is pinged between rows, and
// by the loop that supervises: a loop that hangs, or davitd given up for good,
// ends in a reset. A clean stop pings it for a bounded time in each stage, so that
// a slow unmount is not reset and one that hangs is, and then disarms it.
//
// # Words on the kernel command line
//
//	davit.lifecycle=development|production|rma    default production
//	davit.board=NAME                              default: detected
//	davit.hostname=NAME                           default "davit"
//
// # What it does not know
//
// It reads no configuration, no network and no file system content but the
// signed image's own; it does not know what davitd does.
package boot
