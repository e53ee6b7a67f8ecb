// SPDX-License-Identifier: Apache-2.0

package block

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise"
	harness "github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// card is davitd and its vcard on the loopback board, with one local disk.
type card struct {
	t    *testing.T
	dir  string
	args []string
	cmd  *exec.Cmd
}

func newCard(t *testing.T, dir, volume string) *card {
	t.Helper()
	key, err := mailbox.GenerateKey(mailbox.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	config, err := rig.CardConfiguration(key.Public(), spec.Development)
	if err != nil {
		t.Fatal(err)
	}
	config.Board, config.Management = "loopback", spec.Management{}
	text, err := spec.EncodeYAML(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.yaml")
	if err := errors.Join(os.WriteFile(path, text, 0o600), os.MkdirAll(filepath.Join(dir, "state", "volumes"), 0o700),
		os.Rename(volume, filepath.Join(dir, "state", "volumes", "local.img"))); err != nil {
		t.Fatal(err)
	}
	c := &card{t: t, dir: dir, args: []string{
		"--board", "loopback", "--config", path, "--state", filepath.Join(dir, "state"), "--run", filepath.Join(dir, "run"),
		"--vcard", harness.Program(t, "./firmware/cmd/vcard"), "--lenient-sandbox", "--local-disk", "local",
	}}
	c.start()
	t.Cleanup(func() {
		c.kill()
		if v := c.vcard(); v != nil {
			_ = v.Signal(syscall.SIGKILL)
			<-v.Done()
		}
	})
	return c
}

func (c *card) start() {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, "davitd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	c.cmd = exec.Command(harness.Program(c.t, "./firmware/cmd/davitd"), c.args...)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	harness.Eventually(c.t, 20*time.Second, func() error {
		_, err := os.Stat(filepath.Join(c.dir, "run", "disks", "local.sock"))
		return err
	})
}

// kill ends davitd as kill -9 does; its vcard goes on.
func (c *card) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait() // killed: the only outcome
}

// vcard is the vcard of this moment; nil if there is none.
func (c *card) vcard() *supervise.Adopted {
	text, err := os.ReadFile(filepath.Join(c.dir, "run", "vcard", "0", "identity.json"))
	if err != nil {
		return nil
	}
	var id supervise.Identity
	if err := json.Unmarshal(text, &id); err != nil {
		c.t.Fatal(err)
	}
	v, err := supervise.Adopt(id)
	if err != nil {
		return nil
	}
	return v
}

// An unmodified QEMU on this machine drives a volume of a loopback card through
// a local vhost-user socket, while the card's two processes are killed.
func TestLocalDiskOfALoopbackCard(t *testing.T) {
	dir, err := os.MkdirTemp("", "davit-block-") // short enough for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := newLinux(t, dir)
	c := newCard(t, dir, randomVolume(t, dir))
	volume := filepath.Join(dir, "state", "volumes", "local.img")
	if err := os.Symlink(filepath.Join(dir, "run", "disks", "local.sock"), filepath.Join(dir, "sock")); err != nil {
		t.Fatal(err)
	}
	v := l.start(t, dir, "churn davit.ops=0", "")
	v.until("ready")
	for range 2 {
		v.progress()
		c.kill()
		v.progress() // nobody but the vcard serves it now
		c.start()
		old := c.vcard()
		if old == nil {
			t.Fatal("the vcard did not outlive davitd")
		}
		if err := old.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-old.Done()
		v.progress() // served by the next vcard
		if now := c.vcard(); now == nil || now.Identity() == old.Identity() {
			t.Fatal("the vcard was not replaced")
		}
	}
	if _, err := io.WriteString(v.in, "stop\n"); err != nil {
		v.fail(err.Error())
	}
	digest := v.until("digest ")
	v.until("done")
	v.end()
	checkDigest(t, v, volume, digest)
}
