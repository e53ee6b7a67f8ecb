// SPDX-License-Identifier: Apache-2.0

package control

// requests lists every operation: its name on the wire and its body.
var requests = map[string]func() Request{
	"hello":         func() Request { return new(Hello) },
	"attach-bus":    func() Request { return new(AttachBus) },
	"add-device":    func() Request { return new(AddDevice) },
	"limit-device":  func() Request { return new(LimitDevice) },
	"remove-device": func() Request { return new(RemoveDevice) },
	"start-vmm":     func() Request { return new(StartVMM) },
	"stop-vmm":      func() Request { return new(StopVMM) },
	"console-read":  func() Request { return new(ConsoleRead) },
	"console-write": func() Request { return new(ConsoleWrite) },
	"door-read":     func() Request { return new(DoorRead) },
	"door-write":    func() Request { return new(DoorWrite) },
	"door-close":    func() Request { return new(DoorClose) },
	"status":        func() Request { return new(StatusRequest) },
	"shutdown":      func() Request { return new(Shutdown) },
}

func (*Hello) op() string         { return "hello" }
func (*AttachBus) op() string     { return "attach-bus" }
func (*AddDevice) op() string     { return "add-device" }
func (*LimitDevice) op() string   { return "limit-device" }
func (*RemoveDevice) op() string  { return "remove-device" }
func (*StartVMM) op() string      { return "start-vmm" }
func (*StopVMM) op() string       { return "stop-vmm" }
func (*ConsoleRead) op() string   { return "console-read" }
func (*ConsoleWrite) op() string  { return "console-write" }
func (*DoorRead) op() string      { return "door-read" }
func (*DoorWrite) op() string     { return "door-write" }
func (*DoorClose) op() string     { return "door-close" }
func (*StatusRequest) op() string { return "status" }
func (*Shutdown) op() string      { return "shutdown" }

func (*Hello) files() int         { return 0 }
func (*AttachBus) files() int     { return 2 }
func (*LimitDevice) files() int   { return 0 }
func (*RemoveDevice) files() int  { return 0 }
func (*StopVMM) files() int       { return 0 }
func (*ConsoleRead) files() int   { return 0 }
func (*ConsoleWrite) files() int  { return 0 }
func (*DoorRead) files() int      { return 0 }
func (*DoorWrite) files() int     { return 0 }
func (*DoorClose) files() int     { return 0 }
func (*StatusRequest) files() int { return 0 }
func (*Shutdown) files() int      { return 0 }

func (m *AddDevice) files() int {
	n := 1
	if m.Base != nil {
		n++
	}
	if m.Listen {
		n++
	}
	return n
}

func (m *StartVMM) files() int {
	n := 0
	if m.Kernel {
		n++
	}
	if m.Initrd {
		n++
	}
	return n
}
