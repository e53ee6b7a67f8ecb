// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// aptGrace is how long apt gets to stop after it was asked to.
const aptGrace = 5 * time.Second

// errForeign says that an archive is somebody else's than the distribution's.
var errForeign = errors.New("not the distribution's own archive")

// aptTree is a private apt: own lists, own configuration, own (empty) status
// file, so that a plan never depends on what is installed.
type aptTree struct {
	sys      aptSystem
	dir      string
	codename string
	// backports is the suite to take new versions from, or empty.
	backports string
}

// aptSystem is where the system's apt is found; tests point it elsewhere.
type aptSystem struct {
	etc   string   // /etc/apt
	archs []string // this machine's first
	bin   string   // folder of apt's and dpkg's programs; empty: PATH
}

// program is the path, or the name to find on PATH, of one of apt's programs.
func (sys aptSystem) program(name string) string {
	if sys.bin == "" {
		return name
	}
	return filepath.Join(sys.bin, name)
}

// openApt writes a private tree below dir for the distribution's own archive,
// and updates its lists. It tries the likely sources in turn, and takes the
// first whose verified metadata says that it is Debian's.
func openApt(ctx context.Context, dir string, d distribution, sys aptSystem) (*aptTree, error) {
	sources, err := readSources(sys.etc)
	if err != nil {
		return nil, err
	}
	tries := candidates(sources, d.codename)
	if len(tries) == 0 {
		return nil, fmt.Errorf("%s has no source with suite %s and component main: %w", sys.etc, d.codename, ErrNoArchive)
	}
	t := &aptTree{sys: sys, dir: dir, codename: d.codename}
	if backportsOf[d.codename] {
		t.backports = d.codename + "-backports"
	}
	var errs []error
	foreign := 0
	for _, a := range tries {
		if err := t.write(ctx, a); err != nil {
			return nil, err
		}
		err := t.update(ctx)
		if err == nil {
			return t, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("update package lists: %w", ctx.Err())
		}
		if errors.Is(err, errForeign) {
			foreign++
		}
		errs = append(errs, fmt.Errorf("archive %s: %w", strings.Join(a.main.uris, " "), err))
	}
	if foreign == len(tries) {
		errs = append(errs, ErrNoArchive)
	}
	return nil, errors.Join(errs...)
}

// write makes the tree's folders, configuration and source file.
func (t *aptTree) write(ctx context.Context, a archives) error {
	for _, d := range []string{"etc", "state/lists/partial", "cache/archives/partial", "log"} {
		if err := os.MkdirAll(filepath.Join(t.dir, d), 0o755); err != nil {
			return fmt.Errorf("make apt tree: %w", err)
		}
	}
	carried, err := t.sys.transferOptions(ctx)
	if err != nil {
		return err
	}
	files := map[string]string{
		"status":           "",
		"etc/none":         "",
		"etc/main.sources": a.render(t.sys.archs, t.backports != ""),
		"apt.conf":         t.config(carried, os.Geteuid() == 0),
	}
	for name, content := range files {
		// 0600: the carried options may hold a proxy's password.
		if err := os.WriteFile(filepath.Join(t.dir, name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("make apt tree: %w", err)
		}
	}
	return nil
}

// config is the private apt.conf. Nothing of the system's own configuration is
// read by apt after it, so hooks meant for the system don't run here.
func (t *aptTree) config(carried []aptOption, root bool) string {
	options := append(t.folders(), policy(t.sys.archs[0])...)
	if root {
		// apt would drop to a user who may not be able to write to this cache.
		options = append(options, aptOption{"APT::Sandbox::User", "root"})
	}
	var b strings.Builder
	for _, o := range append(options, carried...) {
		fmt.Fprintf(&b, "%s \"%s\";\n", o.key, o.value)
	}
	for _, a := range t.sys.archs {
		fmt.Fprintf(&b, "APT::Architectures:: %q;\n", a)
	}
	return b.String()
}

// folders says where the private apt finds and keeps everything.
func (t *aptTree) folders() []aptOption {
	path := func(s string) string { return filepath.Join(t.dir, s) }
	return []aptOption{
		{"Dir::Etc", path("etc")},
		{"Dir::Etc::main", path("etc/none")},
		{"Dir::Etc::parts", "/dev/null"},
		{"Dir::Etc::sourcelist", path("etc/main.sources")},
		{"Dir::Etc::sourceparts", "/dev/null"},
		{"Dir::Etc::preferences", path("etc/none")},
		{"Dir::Etc::preferencesparts", "/dev/null"},
		{"Dir::Etc::netrc", filepath.Join(t.sys.etc, "auth.conf")},
		{"Dir::Etc::netrcparts", filepath.Join(t.sys.etc, "auth.conf.d")},
		{"Dir::Etc::trusted", filepath.Join(t.sys.etc, "trusted.gpg")},
		{"Dir::Etc::trustedparts", filepath.Join(t.sys.etc, "trusted.gpg.d")},
		{"Dir::State", path("state")},
		{"Dir::State::status", path("status")},
		{"Dir::Cache", path("cache")},
		{"Dir::Cache::srcpkgcache", ""},
		{"Dir::Log", path("log")},
	}
}

// policy says what the private apt accepts: signed content only.
func policy(arch string) []aptOption {
	return []aptOption{
		{"APT::Architecture", arch},
		{"APT::Install-Recommends", "false"},
		{"APT::Get::AllowUnauthenticated", "false"},
		{"Acquire::AllowInsecureRepositories", "false"},
		{"Acquire::AllowWeakRepositories", "false"},
		{"Acquire::AllowDowngradeToInsecureRepositories", "false"},
		{"Acquire::ForceHash", "SHA256"},
		{"Acquire::GzipIndexes", "true"},
		{"Acquire::Languages", "none"},
		// A list that could not be fetched is an error, not a warning.
		{"APT::Update::Error-Mode", "any"},
		// This package holds its own lock, and apt's wants a system's folders.
		{"Debug::NoLocking", "true"},
	}
}

// transferOptions asks the system's apt how it reaches its mirrors.
func (sys aptSystem) transferOptions(ctx context.Context) ([]aptOption, error) {
	out, err := run(exec.CommandContext(ctx, sys.program("apt-config"), "dump"))
	if err != nil {
		return nil, fmt.Errorf("read the system's apt configuration: %w", err)
	}
	all, err := parseAptDump(out)
	if err != nil {
		return nil, err
	}
	return transferOptions(all), nil
}

// forArch is the option that makes apt work as on a machine of arch. Each has
// its own digest of the lists: apt would rebuild a shared one at each change.
func forArch(arch string) []string {
	return []string{"-o", "APT::Architecture=" + arch, "-o", "Dir::Cache::pkgcache=lists-" + arch + ".bin"}
}

// close removes what only speeds up a fetch under way.
func (t *aptTree) close() error {
	if err := os.RemoveAll(filepath.Join(t.dir, "cache")); err != nil {
		return fmt.Errorf("clean the apt tree: %w", err)
	}
	return nil
}

// update fetches the lists, and checks that their signed metadata names the
// release and the distribution.
func (t *aptTree) update(ctx context.Context) error {
	if _, err := t.run(ctx, "apt-get", "update", "-qq"); err != nil {
		return fmt.Errorf("update package lists: %w", err)
	}
	out, err := t.run(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(CREATED_BY)")
	if err != nil {
		return fmt.Errorf("read package lists: %w", err)
	}
	if !slices.Contains(strings.Split(out, "\n"), "Debian|"+t.codename+"|Packages") {
		return fmt.Errorf("the signed metadata doesn't say Origin Debian, Codename %s: %w", t.codename, errForeign)
	}
	return nil
}

// command prepares a program of apt's, working on the private tree.
func (t *aptTree) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := child(ctx, t.sys.program(name), args...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(t.dir, "apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	return cmd
}

// child prepares a program that may start others: they go with it, also when
// this process is killed.
func child(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = aptGrace
	return cmd
}

func (t *aptTree) run(ctx context.Context, name string, args ...string) (string, error) {
	return run(t.command(ctx, name, args...))
}

// run gives what cmd prints; its error holds what cmd complained of.
func run(cmd *exec.Cmd) (string, error) {
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: %w", ErrNoArchive, err)
	}
	return "", fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, summary(complaint.String()))
}

// summary keeps the errors that apt reported, or the last lines of whatever
// was printed.
func summary(complaint string) string {
	const most = 5
	var all, errs []string
	for line := range strings.Lines(complaint) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		all = append(all, line)
		if strings.HasPrefix(line, "E: ") {
			errs = append(errs, strings.TrimPrefix(line, "E: "))
		}
	}
	if len(errs) == 0 {
		errs = all[max(0, len(all)-most):]
	}
	return strings.Join(errs[:min(len(errs), most)], "; ")
}
