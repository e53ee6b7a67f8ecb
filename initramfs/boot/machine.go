// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/board"
	"github.com/davit-dpu/davit/board/detect"
	"github.com/davit-dpu/davit/firmware/measure"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
	"github.com/davit-dpu/davit/firmware/tpm"
)

// Config says where things are and how long to wait for them.
type Config struct {
	Self       string // this program, as it is named in the image
	Agent      string // davitd
	Vcard      string
	CardConfig string
	ModuleList string
	EventLog   string // our event log, see firmware/eventlog
	StateDir   string // where the data partition goes
	Report     string
	Socket     string
	Watchdog   string
	Shells     []string // rescue shells, the first that exists is used

	WatchdogSeconds int
	TPMWait         time.Duration // for the TPM to appear
	DataWait        time.Duration // for the data partition to appear
	StopDelay       time.Duration // between a stopped boot and power-off
	ReadyWithin     time.Duration // for davitd to become ready
	Grace           time.Duration // between SIGTERM and SIGKILL
	CoolDown        time.Duration // after davitd used up its restarts
}

// Default is the configuration of a card.
func Default() Config {
	return Config{
		Self:       "/init",
		Agent:      "/davit/davitd",
		Vcard:      "/davit/vcard",
		CardConfig: "/etc/davit/config.yaml",
		ModuleList: "/etc/davit/modules",
		EventLog:   "/run/davit/eventlog",
		StateDir:   "/var/lib/davit",
		Report:     initctl.ReportPath,
		Socket:     initctl.SocketPath,
		Watchdog:   "/dev/watchdog",
		Shells:     []string{"/bin/gosh", "/bbin/gosh", "/bin/sh"},

		WatchdogSeconds: 60,
		TPMWait:         15 * time.Second,
		DataWait:        15 * time.Second,
		StopDelay:       30 * time.Second,
		ReadyWithin:     2 * time.Minute,
		Grace:           10 * time.Second,
		CoolDown:        time.Minute,
	}
}

// developmentWait bounds waits in development, where things may be absent.
const developmentWait = 2 * time.Second

// defaultBoard is used when the board is not recognised: pid 1 tries what most
// have; davitd decides for itself.
var defaultBoard = board.Board{
	Consoles:       fallbackTTYs,
	TPM:            "/dev/tpmrm0",
	StatePartition: "davit-data",
}

// machine is what the steps of the table make and use, in that order.
type machine struct {
	cfg    Config
	term   terminal
	log    *slog.Logger
	report initctl.Report

	cmdline  string
	board    board.Board
	ttys     []string
	modules  []string
	watchdog *watchdog
	tpm      *tpm.TPM
	captures captures          // files that were read ahead of being measured
	meter    *measure.Measurer // nil before tpm and after the log was handed over
	agent    *measure.Measured // davitd as it was measured; nil if it was not

	reaper   *supervise.Reaper
	state    atomic.Value // initctl.State
	requests chan initctl.Word
	steward  *supervise.Supervisor // of davitd
	shown    time.Time             // of steward's status that was followed last
	gaveUp   <-chan error          // steward's end
	stop     context.CancelFunc    // ends steward; nil when it has ended
	rescued  <-chan error          // the rescue shell's end
	retry    <-chan time.Time      // when to begin supervision anew
}

func newMachine(cfg Config, now func() time.Duration) *machine {
	m := &machine{
		cfg:      cfg,
		report:   initctl.Report{Version: 1, Lifecycle: spec.Production},
		board:    defaultBoard,
		reaper:   supervise.NewReaper(),
		requests: make(chan initctl.Word, 1),
	}
	m.term.sinceUp = now
	m.log = slog.New(slog.NewTextHandler(stamped{&m.term}, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime}))
	m.state.Store(initctl.Booting)
	return m
}

// stamped writes log records as lines with our own time.
type stamped struct{ term *terminal }

func (s stamped) Write(p []byte) (int, error) {
	s.term.line("%s", bytes.TrimRight(p, "\n"))
	return len(p), nil
}

// withoutTime leaves the time out of log records: our lines have their own.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// sinceUp is the time since the kernel's start, CLOCK_BOOTTIME.
func sinceUp() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func stepBoard(_ context.Context, m *machine) (string, error) {
	name, ok := option(m.cmdline, "davit.board=")
	var b board.Board
	var err error
	if ok {
		b, err = detect.Named(name)
	} else {
		b, err = detect.Detect(os.DirFS("/sys"))
	}
	if err != nil {
		return "", err
	}
	m.board = b
	return b.Name, nil
}

func stepConsole(_ context.Context, m *machine) (string, error) {
	ttys, err := openConsoles(&m.term.consoles, "/sys/class/tty/console/active", "/dev", m.board.Consoles)
	if err != nil {
		m.term.withoutConsole()
		return "", err
	}
	m.ttys = ttys
	return strings.Join(ttys, " "), nil
}

func stepLoopback(_ context.Context, _ *machine) (string, error) {
	if err := setUp("lo"); err != nil {
		return "", fmt.Errorf("set lo up: %w", err)
	}
	return "lo is up", nil
}

// setUp sets an interface up, netdevice(7).
func setUp(name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func stepControl(ctx context.Context, m *machine) (string, error) {
	l, err := initctl.Listen(m.cfg.Socket)
	if err != nil {
		return "", err
	}
	s := &initctl.Server{Act: m.request, State: m.currentState, Log: m.log}
	guard("control socket", &m.term, func() {
		if err := s.Serve(ctx, l); err != nil {
			m.term.line("%v", err)
		}
	})
	return m.cfg.Socket, nil
}

// request takes a request to reboot or power off; the first one counts.
func (m *machine) request(w initctl.Word) bool {
	if m.currentState() == initctl.Stopping {
		return false
	}
	select {
	case m.requests <- w:
		return true
	default:
		return false
	}
}

func (m *machine) currentState() initctl.State {
	s, ok := m.state.Load().(initctl.State)
	if !ok {
		return initctl.Booting
	}
	return s
}
