// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/initramfs/kernel"
)

// ErrOptions says that a build was asked for with unusable options.
var ErrOptions = errors.New("unusable image options")

// Command is a Go program of the image.
type Command struct {
	Path    string // in the image, relative to its root: "davit/davitd"
	Package string // Go package, as `go build` takes it in Options.Source; last elements must differ
}

// DefaultCommands are the programs of a card.
func DefaultCommands() []Command {
	const module = "github.com/davit-dpu/davit/"
	return []Command{
		{Path: "init", Package: module + "initramfs/init"},
		{Path: "davit/davitd", Package: module + "firmware/cmd/davitd"},
		{Path: "davit/vcard", Package: module + "firmware/cmd/vcard"},
	}
}

// Options say what Build builds.
type Options struct {
	// Source is the folder of the Go module whose commands are built.
	Source string
	// Arch is the card's GOARCH: "arm64" or "amd64".
	Arch string
	// Board and Version are written into the release file.
	Board, Version string
	// Commands are the programs; nil: DefaultCommands.
	Commands []Command
	// Kernel and Modules: the kernel package, and the names of the modules that
	// the board wants, in load order. What they depend on is found.
	Kernel  *kernel.Kernel
	Modules []string
	// Config is the card's configuration, stored as it is.
	Config []byte
	// Cmdline is the kernel's command line.
	Cmdline string
	// Lifecycle is written into the release file, and must be that of Config and
	// Cmdline. Empty: production.
	Lifecycle spec.Lifecycle
	// Development adds the rescue shell, in lifecycle development only.
	Development bool
	// CacheDir keeps what is costly to make: linked programs, the shell, the
	// compressed archive. It may be shared by builds that run at the same time.
	// Empty: nothing is kept.
	CacheDir string
	// Log gets a line for each costly step. Nil: silence.
	Log *slog.Logger

	shellCommands []string // of the rescue shell; nil: all
}

var words = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~_-]*$`)

// complete checks the options and fills in what is left out.
func (o *Options) complete() error {
	switch {
	case o.Source == "":
		return fmt.Errorf("%w: no source folder", ErrOptions)
	case o.Arch != "arm64" && o.Arch != "amd64":
		return fmt.Errorf("%w: arch %q, want arm64 or amd64", ErrOptions, o.Arch)
	case !words.MatchString(o.Board):
		return fmt.Errorf("%w: board %q", ErrOptions, o.Board)
	case !words.MatchString(o.Version):
		return fmt.Errorf("%w: version %q", ErrOptions, o.Version)
	case o.Kernel == nil:
		return fmt.Errorf("%w: no kernel", ErrOptions)
	case len(o.Config) == 0:
		return fmt.Errorf("%w: no configuration", ErrOptions)
	}
	if err := o.completeLifecycle(); err != nil {
		return err
	}
	source, err := filepath.Abs(o.Source)
	if err != nil {
		return fmt.Errorf("%w: source folder: %w", ErrOptions, err)
	}
	o.Source = source
	if o.Commands == nil {
		o.Commands = DefaultCommands()
	}
	if o.shellCommands == nil {
		o.shellCommands = shellCommands
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return checkCommands(o.Commands)
}

func (o *Options) completeLifecycle() error {
	switch o.Lifecycle {
	case "":
		o.Lifecycle = spec.Production
	case spec.Development, spec.Production, spec.RMA:
	default:
		return fmt.Errorf("%w: lifecycle %q", ErrOptions, o.Lifecycle)
	}
	if o.Development && o.Lifecycle != spec.Development {
		return fmt.Errorf("%w: a rescue shell in lifecycle %s", ErrOptions, o.Lifecycle)
	}
	return nil
}

func checkCommands(list []Command) error {
	bases := make(map[string]string)
	for _, c := range list {
		if c.Path != path.Clean(c.Path) || path.IsAbs(c.Path) || strings.HasPrefix(c.Path, "..") || c.Path == "." {
			return fmt.Errorf("%w: command path %q", ErrOptions, c.Path)
		}
		base := path.Base(c.Package)
		if other, ok := bases[base]; ok || !words.MatchString(base) {
			return fmt.Errorf("%w: commands %q and %q have the same or an unusable last element", ErrOptions, other, c.Package)
		}
		bases[base] = c.Package
	}
	return nil
}

// release is the text of /etc/os-release, os-release(5).
func (o *Options) release() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "ID=davit\nNAME=\"Davit\"\nVERSION_ID=%s\n", o.Version)
	fmt.Fprintf(&b, "PRETTY_NAME=\"Davit %s (%s, %s)\"\n", o.Version, o.Board, o.Lifecycle)
	fmt.Fprintf(&b, "DAVIT_BOARD=%s\nDAVIT_LIFECYCLE=%s\n", o.Board, o.Lifecycle)
	return []byte(b.String())
}
