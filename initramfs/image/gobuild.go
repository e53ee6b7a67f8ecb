// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// goBuild builds the commands and gives the paths of the programs, in the order
// of the commands. Programs stay where go build put them: it links a program
// again only when it changed. For that the build id is left in them, which
// depends on sources, toolchain and flags, and not on paths or times.
func (o *Options) goBuild(ctx context.Context, c *cache) ([]string, error) {
	if len(o.Commands) == 0 {
		return nil, nil
	}
	dir, err := c.dir("bin", o.Arch, o.Source)
	if err != nil {
		return nil, fmt.Errorf("build programs: %w", err)
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}
	var programs []string
	for _, cmd := range o.Commands {
		args = append(args, cmd.Package)
		programs = append(programs, filepath.Join(dir, path.Base(cmd.Package)))
	}
	o.Log.Info("building programs", "arch", o.Arch, "programs", len(programs))
	if _, err := o.goTool(ctx, args...); err != nil {
		return nil, fmt.Errorf("build programs: %w", err)
	}
	return programs, nil
}

// goTool runs the go command in the source folder and gives its output. What it
// complains about is part of the error.
func (o *Options) goTool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = o.Source
	cmd.Env = goEnv(os.Environ(), o.Arch)
	cmd.WaitDelay = 5 * time.Second // compilers that outlive go hold its pipes
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("go %s: %w", args[0], ctx.Err())
		}
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// goEnv is env with what decides about the result of a build set to fixed
// values: a developer's settings must not change an image.
func goEnv(env []string, arch string) []string {
	fixed := []string{
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOARM64=v8.0", "GOAMD64=v1",
		"GOFLAGS=", "GOWORK=off", "GOEXPERIMENT=", "GO111MODULE=on", "GOFIPS140=off",
	}
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return slices.ContainsFunc(fixed, func(f string) bool { return strings.HasPrefix(f, key+"=") })
	})
	return append(out, fixed...)
}
