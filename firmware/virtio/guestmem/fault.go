// SPDX-License-Identifier: Apache-2.0

package guestmem

import (
	"fmt"
	"runtime/debug"
)

// FaultError says that guest memory was taken away while it was mapped here:
// its file was truncated, or the device behind it failed.
type FaultError struct {
	// Addr is the address in this process at which the access failed.
	Addr uintptr
}

// Error says where the access failed.
func (e *FaultError) Error() string {
	return fmt.Sprintf("guest memory vanished: fault at %#x", e.Addr)
}

// Guard runs fn, which may touch the memory, and returns its error. An access
// to mapped memory that the kernel refuses (SIGBUS, SIGSEGV) comes back as a
// *FaultError. Panics and faults at any other address are bugs of this
// program and go on.
//
// fn must hold its locks by defer: a fault unwinds it like a panic.
func (m *Memory) Guard(fn func() error) error { return guard(m.holds, fn) }

// guard is Guard for what holds says is such memory.
func guard(holds func(addr uintptr) bool, fn func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		fault, ok := r.(interface{ Addr() uintptr })
		if !ok || !holds(fault.Addr()) {
			panic(r)
		}
		err = &FaultError{Addr: fault.Addr()}
	}()
	return fn()
}
