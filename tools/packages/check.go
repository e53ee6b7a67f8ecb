// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Status is the outcome of one check.
type Status string

// The outcomes. Only StatusMissing keeps the emulated server from running.
const (
	StatusOK      Status = "ok"
	StatusFetch   Status = "fetch"   // not here yet; fetched when first needed
	StatusNote    Status = "note"    // works without; Remedy would improve it
	StatusMissing Status = "missing" // Remedy mends it
)

// Finding is the outcome of one check, for a person to read.
type Finding struct {
	Name    string // the need, or what of the system was checked
	Need    Need   // empty for checks of the system
	Purpose string // what it is for
	Status  Status
	Path    string // where it was found
	Version string // empty when unknown
	Detail  string // a figure or a reason
	Remedy  string // exact command, empty when nothing is to be done
}

// String is the finding as one line, the remedy included.
func (f Finding) String() string {
	words := []string{fmt.Sprintf("%-8s%-16s", f.Status, f.Name)}
	for _, w := range []string{f.Version, f.Path, f.Detail} {
		if w != "" {
			words = append(words, w)
		}
	}
	line := strings.Join(words, " ")
	if f.Status != StatusOK {
		line += " (" + f.Purpose + ")"
	}
	if f.Remedy != "" {
		line += "; " + f.Remedy
	}
	return line
}

// What the system has to offer, in bytes.
const (
	minDisk   = 3 << 30 // a filled cache, an image and the volumes of a run
	minShared = 1 << 30 // the memory pool of one instance
)

// minGo is the Go release that go.mod asks for.
var minGo = Version{1, 26}

// Check looks at the needs and at the system, and changes nothing, but that
// the answer of the KVM probe is kept. It uses no network.
func (c *Cache) Check(ctx context.Context, needs ...Need) []Finding {
	out := []Finding{checkGo(ctx)}
	set := &Set{places: map[Need]place{}}
	for _, n := range needs {
		f := c.checkNeed(ctx, n, set)
		out = append(out, f)
	}
	return append(out, c.checkKVM(ctx, set), c.checkDisk(), checkShared("/dev/shm"), checkUserNamespaces(ctx))
}

// checkNeed looks for one need, and adds it to the set when it is there.
func (c *Cache) checkNeed(ctx context.Context, n Need, set *Set) Finding {
	s, err := specOf(n)
	if err != nil {
		return Finding{Name: string(n), Need: n, Status: StatusMissing, Purpose: "unknown", Detail: err.Error()}
	}
	f := Finding{Name: string(n), Need: n, Purpose: s.purpose}
	p, why := c.find(ctx, s)
	if why == nil {
		set.places[n] = p
		f.Status, f.Path, f.Version, f.Detail = StatusOK, p.where(), p.version, string(p.kind)
		return f
	}
	lacking := StatusMissing
	if s.optional {
		lacking = StatusNote
	}
	if err := c.mayFetch(s, why); err != nil {
		f.Status, f.Detail, f.Remedy = lacking, why.Error(), c.remedy(s, why)
		if errors.Is(why, errNotFound) && s.lowest() != "" {
			f.Detail += ", want " + s.lowest()
		}
		return f
	}
	sources, err := readSources(c.apt.etc)
	if err == nil && len(candidates(sources, c.distro.codename)) == 0 {
		err = fmt.Errorf("%s names no archive of %s", c.apt.etc, c.distro.codename)
	}
	if err != nil {
		f.Status, f.Detail, f.Remedy = lacking, err.Error(), c.remedy(s, why)
		return f
	}
	f.Status = StatusFetch
	f.Detail = "not here yet: Debian package " + strings.Join(s.roots, ", ")
	f.Remedy = c.cfg.FetchCommand
	return f
}

// where is what to show of a place: the first program or file, or the tree.
func (p place) where() string {
	if len(p.spec.commands) > 0 {
		return p.tools[p.spec.commands[0].name]
	}
	if len(p.spec.files) > 0 {
		return p.files[p.spec.files[0].name]
	}
	return p.root
}

func checkGo(ctx context.Context) Finding {
	f := Finding{Name: "go", Purpose: "builds everything", Status: StatusMissing,
		Remedy: "install Go " + minGo.String() + " or later from https://go.dev/dl/"}
	path, err := exec.LookPath("go")
	if err != nil {
		f.Detail = "not on PATH"
		return f
	}
	f.Path = path
	out, err := answer(ctx, path, []string{"env", "GOVERSION"})
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	v, err := ParseToolVersion(strings.TrimPrefix(out, "go"))
	if err != nil {
		f.Detail = "version not understood"
		return f
	}
	f.Version = v.String()
	if v.Less(minGo) {
		f.Detail = "too old"
		return f
	}
	f.Status, f.Remedy = StatusOK, ""
	return f
}

func (c *Cache) checkKVM(ctx context.Context, set *Set) Finding {
	f := Finding{Name: "kvm", Purpose: "makes instances fast; without it they are emulated", Status: StatusNote, Path: "/dev/kvm"}
	err := openKVM()
	if err == nil {
		if _, have := set.places[QEMU]; have {
			err = c.ProbeKVM(ctx, set)
		} else {
			f.Detail = "opens; whether it works is tried once QEMU is here"
			return f
		}
	}
	switch {
	case err == nil:
		f.Status, f.Detail = StatusOK, "boots a stock kernel"
	case errors.Is(err, fs.ErrPermission):
		f.Detail, f.Remedy = "no permission", "sudo usermod -aG kvm $USER, then log in again"
	case errors.Is(err, fs.ErrNotExist):
		f.Detail = "not there"
	default:
		f.Detail = err.Error()
	}
	return f
}

// checkDisk looks at the file system that holds, or will hold, the cache.
func (c *Cache) checkDisk() Finding {
	f := Finding{Name: "disk", Purpose: "packages, images and volumes", Path: c.dir}
	dir := c.dir
	for !isDir(dir) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	return checkSpace(f, dir, minDisk, "free some space, or set XDG_CACHE_HOME to a folder on a larger file system")
}

// checkShared looks at the file system of the instances' memory.
func checkShared(dir string) Finding {
	f := Finding{Name: "shared memory", Purpose: "the memory that instances share with the card", Path: dir}
	return checkSpace(f, dir, minShared, "sudo mount -o remount,size=2G "+dir)
}

func checkSpace(f Finding, dir string, want uint64, remedy string) Finding {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		f.Status, f.Detail, f.Remedy = StatusMissing, err.Error(), remedy
		return f
	}
	free := st.Bavail * uint64(st.Bsize)
	f.Status, f.Detail = StatusOK, fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))
	if free < want {
		f.Status, f.Remedy = StatusMissing, remedy
		f.Detail += fmt.Sprintf(", want %.0f", float64(want)/(1<<30))
	}
	return f
}

// checkUserNamespaces starts a program in a user namespace of its own, where
// the system lets ordinary users do that.
func checkUserNamespaces(ctx context.Context) Finding {
	f := Finding{Name: "user namespaces", Purpose: "a tighter sandbox on this machine", Status: StatusNote}
	program, err := exec.LookPath("true")
	if err != nil {
		f.Detail = "not tried: " + err.Error()
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		f.Detail = "not for this user: " + err.Error()
		return f
	}
	f.Status, f.Detail = StatusOK, "usable"
	return f
}
