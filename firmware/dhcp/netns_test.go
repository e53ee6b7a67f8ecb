// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/davit-dpu/davit/firmware/spec"
)

// The tests below run in two processes, each in a network namespace of its own:
// the test itself, started anew, and a DHCP server that it starts. A veth pair
// connects them.

const (
	roleEnv    = "DAVIT_TEST_DHCP_ROLE"
	roleClient = "client"
	roleServer = "server"
	clientEnd  = "mgmt0"
	serverEnd  = "srv0"
	patience   = 20 * time.Second
)

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) == roleServer {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// inNamespace runs the calling test again in a new network namespace, and says
// whether this is that run already.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(roleEnv) == roleClient {
		return true
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), roleEnv+"="+roleClient)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exitErr *exec.ExitError
	switch {
	case errors.As(err, &exitErr):
		t.Fatalf("in the namespace: %v\n%s", err, out.String())
	case err != nil:
		t.Skipf("this machine allows no network namespace: %v", err)
	case strings.Contains(out.String(), "--- SKIP"):
		t.Skip(out.String())
	}
	return false
}

// rig is a client and a server on one wire.
type rig struct {
	*testing.T
	client *Client
	orders io.Writer     // to the server, a word a line
	lines  *bufio.Reader // from the server
	pid    int
	resolv string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: clientEnd}, PeerName: serverEnd}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Skipf("this kernel makes no veth pair: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+roleServer)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	peer, err := netlink.LinkByName(serverEnd)
	check(t, err)
	check(t, netlink.LinkSetNsPid(peer, cmd.Process.Pid))
	r := &rig{T: t, orders: in, lines: bufio.NewReader(out), pid: cmd.Process.Pid, resolv: filepath.Join(t.TempDir(), "resolv.conf")}
	r.order("start")
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// order tells the server how to behave, and waits for its word that it does.
func (r *rig) order(word string) {
	r.Helper()
	_, err := fmt.Fprintln(r.orders, word)
	check(r.T, err)
	r.hear("done " + word)
}

// hear reads what the server says up to a line.
func (r *rig) hear(want string) {
	r.Helper()
	for {
		line, err := r.lines.ReadString('\n')
		if err != nil {
			r.Fatalf("server ended while %q was waited for: %v", want, err)
		}
		if strings.TrimSpace(line) == want {
			return
		}
	}
}

// run starts the client and returns what stops it.
func (r *rig) run() (stop func()) {
	r.Helper()
	c, err := New(Config{Interface: clientEnd, Hostname: "card", ResolvConf: r.resolv,
		Log: slog.New(slog.NewTextHandler(r.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	check(r.T, err)
	r.client = c
	ctx, cancel := context.WithCancel(r.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			r.Errorf("Run: %v", err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	r.Cleanup(stop)
	return stop
}

// until waits for a status.
func (r *rig) until(what string, ok func(spec.Lease) bool) spec.Lease {
	r.Helper()
	deadline := time.After(patience)
	for {
		s, changed := r.client.Status()
		if ok(s) {
			return s
		}
		select {
		case <-changed:
		case <-deadline:
			r.Fatalf("%s: not within %v; status is %+v", what, patience, s)
		}
	}
}

func ready(s spec.Lease) bool { return s.Phase == spec.PhaseReady && s.Address != "" }

// addresses are those that the kernel has.
func (r *rig) addresses() []string {
	r.Helper()
	l, err := netlink.LinkByName(clientEnd)
	check(r.T, err)
	all, err := netlink.AddrList(l, netlink.FAMILY_V4)
	check(r.T, err)
	var out []string
	for _, a := range all {
		out = append(out, a.IPNet.String())
	}
	return out
}

func TestLeaseOverAWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRig(t)
	stop := r.run()
	s := r.until("lease", ready)
	if s.Address != "10.77.0.50/24" || s.Router != "10.77.0.1" || s.Server != "10.77.0.1" || s.Interface != clientEnd {
		t.Errorf("status %+v", s)
	}
	if got := r.addresses(); len(got) != 1 || got[0] != "10.77.0.50/24" {
		t.Errorf("addresses %v", got)
	}
	routes, err := netlink.RouteGet(net.IP{192, 0, 2, 1})
	check(t, err)
	if len(routes) != 1 || !routes[0].Gw.Equal(net.IP{10, 77, 0, 1}) {
		t.Errorf("route to elsewhere: %v", routes)
	}
	text, err := os.ReadFile(r.resolv)
	check(t, err)
	if want := "search cards.example\nnameserver 10.77.0.1\n"; string(text) != want {
		t.Errorf("resolv.conf %q, want %q", text, want)
	}
	// Leases last 6 s, so T1 is after 3: the renewal goes to the server alone.
	r.hear("renew unicast")
	first := s.Expires
	r.until("renewed lease", func(s spec.Lease) bool { return ready(s) && s.Expires.After(first) })
	stop()
	if got := r.addresses(); len(got) != 1 {
		t.Errorf("addresses after the client's end: %v; a restarted agent must find its connections", got)
	}
}

func TestServerGoneOverAWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRig(t)
	r.run()
	r.until("lease", ready)
	r.order("silent")
	r.until("expiry", func(s spec.Lease) bool { return s.Address == "" && s.Phase != spec.PhaseReady })
	if got := r.addresses(); len(got) != 0 {
		t.Errorf("addresses %v after expiry", got)
	}
	r.order("start")
	r.until("lease again", ready)
}

func TestNakOverAWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRig(t)
	r.run()
	r.until("lease", ready)
	r.order("nak")
	s := r.until("refusal", func(s spec.Lease) bool { return s.Phase == spec.PhaseFailed })
	if !strings.Contains(s.Reason, "NAK") || s.Address != "" {
		t.Errorf("status %+v", s)
	}
	r.order("move")
	s = r.until("another address", ready)
	if got := r.addresses(); s.Address != "10.77.0.51/24" || len(got) != 1 || got[0] != s.Address {
		t.Errorf("status %+v, addresses %v", s, got)
	}
}

func TestHostileServerOverAWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRig(t)
	r.order("hostile")
	r.run()
	r.hear("sent hostile")
	r.hear("sent hostile")
	if s, _ := r.client.Status(); s.Phase == spec.PhaseReady || len(r.addresses()) != 0 {
		t.Errorf("status %+v, addresses %v", s, r.addresses())
	}
	r.order("start")
	r.until("lease", ready)
}

func TestCarrierOverAWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRig(t)
	r.order("down")
	r.run()
	r.until("wait for carrier", func(s spec.Lease) bool {
		return s.Phase == spec.PhasePending && strings.Contains(s.Reason, "no carrier")
	})
	r.order("up")
	r.until("lease", ready)
	r.order("down")
	r.until("carrier lost", func(s spec.Lease) bool { return s.Phase == spec.PhasePending })
	r.order("up")
	r.until("lease again", ready)
}
