// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/uio/llog"
)

const coreCommands = "github.com/u-root/u-root/cmds/core/"

// gosh is the shell itself, from its home: the one among u-root's commands is
// built on the same interpreter, but brings twenty modules of line editing along.
const gosh = "mvdan.cc/sh/v3/cmd/gosh"

// shellCommands are u-root's commands in the rescue shell. The file
// shell_deps.go must name the same, so that go.mod keeps what they need.
var shellCommands = []string{
	"cat", "chmod", "cp", "date", "df", "dmesg", "du", "echo", "find", "free", "grep", "gzip", "head",
	"hexdump", "id", "insmod", "ip", "kill", "ln", "losetup", "ls", "lsmod", "mkdir", "more", "mount",
	"mv", "netstat", "pidof", "ping", "ps", "rm", "sleep", "sort", "strace", "stty", "sync", "tail",
	"tar", "tee", "touch", "umount", "uname", "uptime", "wc",
}

// shellPackages are the Go packages of a rescue shell with these commands.
func shellPackages(commands []string) []string {
	list := []string{gosh}
	for _, name := range commands {
		list = append(list, coreCommands+name)
	}
	return list
}

// shell gives the archive of the rescue shell: u-root's commands as one program
// with a link for each, and gosh as /bin/sh. It takes half a minute to build,
// so it is kept under a key of all that decides about it: the versions of all
// modules, the toolchain, the commands.
func (o *Options) shell(ctx context.Context, c *cache) ([]byte, error) {
	packages := shellPackages(o.shellCommands)
	key, err := o.shellKey(ctx, c, packages)
	if err != nil {
		return nil, err
	}
	if archive, ok := c.get(key); ok {
		return archive, nil
	}
	o.Log.Info("building rescue shell", "arch", o.Arch, "commands", len(packages))
	env, err := o.uRootEnv(ctx)
	if err != nil {
		return nil, err
	}
	tmp, err := c.scratch()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	var out memory
	var said strings.Builder
	// mkuimage knows no context: a cancelled build ends when this step does.
	err = uimage.Create(llog.New(slog.LevelInfo, llog.WritePrintf(&said)),
		uimage.WithReplaceEnv(env),
		uimage.WithBusyboxCommands(packages...),
		// Without it a cache inside a working tree gets stamped with its commit.
		uimage.WithBusyboxBuildOpts(&golang.BuildOpts{ExtraArgs: []string{"-buildvcs=false"}}),
		uimage.WithShell("gosh"),
		uimage.WithSkipLDD(),
		uimage.WithTempDir(tmp),
		uimage.WithOutput(&out))
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, strings.TrimSpace(said.String()))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return out.Bytes(), c.put(key, out.Bytes())
}

func (o *Options) shellKey(ctx context.Context, c *cache, packages []string) (string, error) {
	version, err := o.goTool(ctx, "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	parts := [][]byte{[]byte(version), []byte(o.Arch), []byte(strings.Join(packages, " "))}
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(o.Source, name))
		if err != nil {
			return "", err
		}
		parts = append(parts, b)
	}
	return c.key("shell", parts...), nil
}

// uRootEnv is the Go environment of mkuimage's builds. It asks the go command
// for what build.Default would guess, wrongly so in programs built with -trimpath.
func (o *Options) uRootEnv(ctx context.Context) (*golang.Environ, error) {
	out, err := o.goTool(ctx, "env", "-json", "GOROOT", "GOPATH")
	if err != nil {
		return nil, err
	}
	var v struct{ GOROOT, GOPATH string }
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return nil, fmt.Errorf("read go env: %w", err)
	}
	return golang.Default(
		golang.DisableCGO(), golang.WithGOOS("linux"), golang.WithGOARCH(o.Arch),
		golang.WithGOROOT(v.GOROOT), golang.WithGOPATH(v.GOPATH),
		golang.WithGO111MODULE("on"), golang.WithMod(golang.ModReadonly),
		golang.WithWorkingDir(o.Source),
	), nil
}
