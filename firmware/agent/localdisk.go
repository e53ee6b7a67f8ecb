// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
)

// localInstance stands for the VMMs of local disks towards the vcard; opCreate
// refuses an instance of this name.
const localInstance = "local-disks"

// localDisks offers volumes to VMMs on this machine that Davit did not start: a
// vhost-user-blk socket for each, DIR/VOLUME.sock. It is how the loopback board
// serves an unmodified QEMU without host and bus.
type localDisks struct {
	dir   string
	names []string
	open  func(name string) (*os.File, error)

	result state.Cell[error] // of the last offer
}

// offer makes each socket anew and hands it to a vcard that does not have the
// disk yet.
func (l *localDisks) offer(ctx context.Context, client *control.Client) error {
	if len(l.names) == 0 {
		return nil
	}
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	served := map[string]bool{}
	for _, d := range st.Devices {
		if d.Instance == localInstance {
			served[d.Name] = true
		}
	}
	var failed []error
	for _, name := range l.names {
		if served[name] {
			continue
		}
		if err := l.offerOne(ctx, client, name); err != nil {
			failed = append(failed, fmt.Errorf("local disk %s: %w", name, err))
		}
	}
	return errors.Join(failed...)
}

func (l *localDisks) offerOne(ctx context.Context, client *control.Client, name string) error {
	volume, err := l.open(name)
	if err != nil {
		return err
	}
	defer volume.Close()
	listener, err := listenStream(filepath.Join(l.dir, name+".sock"))
	if err != nil {
		return err
	}
	defer listener.Close()
	v := spec.Volume{Name: name}
	return client.AddDevice(ctx, control.AddDevice{
		Instance: localInstance, Name: name, Serial: v.SerialOrName(), Queues: spec.MaxQueues, Listen: true,
	}, control.DeviceFiles{Volume: volume, Listener: listener})
}

// listenStream makes a listening unix socket that only this user reaches, in
// place of one that a vcard left behind, and gives the file to hand on.
func listenStream(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false) // the copy that the vcard gets listens on
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}
