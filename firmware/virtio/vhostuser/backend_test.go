// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// attachBackend negotiates and opens the back end's channel.
func (s *session) attachBackend() *vhostuser.SocketConn {
	s.t.Helper()
	s.front.Extra = vhostuser.ProtocolBackend
	s.must(s.front.Negotiate(ringFeatures))
	c, err := s.front.OpenBackend()
	s.must(err)
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// wantChange reads one announcement of a new configuration.
func (s *session) wantChange(c *vhostuser.SocketConn) {
	s.t.Helper()
	m, err := c.ReadMessage()
	s.must(err)
	if m.Request != vhostuser.BackendConfigChange || m.Flags != 1 || len(m.Payload) != 0 || len(m.FDs) != 0 {
		s.t.Errorf("got %+v", m)
	}
}

func TestConfigChange(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.device.ConfigChanged() // nobody to tell
	c := s.attachBackend()
	s.device.ConfigChanged()
	s.wantChange(c)
	again, err := s.front.OpenBackend() // instead of the one before
	s.must(err)
	defer again.Close()
	if _, err := c.ReadMessage(); err == nil {
		t.Error("the channel before is still open")
	}
	s.device.ConfigChanged()
	s.wantChange(again)
	s.must(s.end())
	s.device.ConfigChanged() // nobody any more
}

// A front end that does not read is told no more than it has room for, holds up
// nobody, and misses nothing: it reads of a change after the last one.
func TestConfigChangeUnread(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.attachBackend()
	for range 10_000 {
		s.device.ConfigChanged()
	}
	s.wantChange(c)
	s.must(s.front.Do(vhostuser.SetOwner, nil))
	s.must(s.end())
}

// A front end that closes its end of the channel keeps its device.
func TestConfigChangeClosed(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.attachBackend()
	_ = c.Close()
	s.device.ConfigChanged()
	s.must(s.front.Do(vhostuser.SetOwner, nil))
	s.must(s.end())
}

// Sockets that could block, or mean something else, are refused.
func TestBackendSockets(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string][2]int{
		"datagrams": {unix.AF_UNIX, unix.SOCK_DGRAM}, "packets": {unix.AF_UNIX, unix.SOCK_SEQPACKET}, "network": {unix.AF_INET, unix.SOCK_STREAM},
	} {
		s := open(t)
		s.front.Extra = vhostuser.ProtocolBackend
		s.must(s.front.Negotiate(ringFeatures))
		fd, err := unix.Socket(kind[0], kind[1]|unix.SOCK_CLOEXEC, 0)
		s.must(err)
		if err := s.front.Do(vhostuser.SetBackendFD, nil, fd); err == nil {
			t.Errorf("%s: accepted", name)
		}
		s.must(unix.Close(fd))
		if err := <-s.result; err == nil || !strings.Contains(err.Error(), "not a unix stream socket") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A device whose configuration never changes asks for no channel.
func TestNoBackend(t *testing.T) {
	t.Parallel()
	s := openDevice(t, &gate{})
	s.must(s.front.Negotiate(ringFeatures))
	if s.front.Protocol&vhostuser.ProtocolBackend != 0 {
		t.Error("BACKEND_REQ is offered")
	}
	s.must(s.end())
}
