// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"strings"
)

// installer is how a family of systems installs packages, by os-release ID.
type installer struct {
	id      string
	command string
	// names is the ID whose package names it uses.
	names string
	// dpkg installs the program that unpacks Debian's packages, where it is
	// not there already.
	dpkg string
}

var installers = []installer{
	{id: "debian", command: "sudo apt-get install ", names: "debian"},
	{id: "ubuntu", command: "sudo apt-get install ", names: "debian"},
	{id: "fedora", command: "sudo dnf install ", names: "fedora", dpkg: "sudo dnf install dpkg && "},
	{id: "arch", command: "sudo pacman -S --needed ", names: "arch", dpkg: "sudo pacman -S --needed dpkg && "},
}

// installer is that of this system, or one that knows no command.
func (c *Cache) installer() installer {
	for _, i := range installers {
		if c.distro.is(i.id) {
			return i
		}
	}
	return installer{}
}

// remedy is the exact command that brings the need to this system, or the
// next best thing where no package of the system would. found is find's error.
func (c *Cache) remedy(s spec, found error) string {
	i := c.installer()
	switch names := s.install[i.names]; {
	case errors.Is(found, errUnfit) && s.build != "":
		return s.build
	case errors.Is(found, errUnfit):
		return "install " + s.lowest() + " where PATH finds it first"
	case names != "":
		return i.command + names
	case len(s.commands) > 0:
		return "install " + s.programs() + " where PATH finds them"
	}
	return c.unpack(s, i.dpkg)
}

// unpack says which package of Debian's to get, and the command that unpacks
// it: for files that no package of other systems has, or not for this
// architecture. before is what makes dpkg be there.
func (c *Cache) unpack(s spec, before string) string {
	what := s.roots[0]
	if s.keep != nil {
		// The root only names what is wanted; its own tree is empty.
		what = strings.Replace(what, "linux-image-", "linux-image-VERSION-", 1) + ", on which " + what + " depends,"
	}
	dir := shellQuote(c.localDir(s.need))
	// dpkg makes the last folder only.
	return fmt.Sprintf("get Debian's %s for %s from https://packages.debian.org/stable/%s, then: %smkdir -p %s && dpkg -x FILE.deb %s",
		what, cmp.Or(s.arch, runtime.GOARCH), s.roots[0], before, dir, dir)
}

// lowest is the lowest version that serves, in words; empty when any does.
func (s spec) lowest() string {
	if s.min == (Version{}) {
		return ""
	}
	return s.min.String() + " or later"
}

// programs lists the need's programs, in words.
func (s spec) programs() string {
	var names []string
	for _, c := range s.commands {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// shellQuote makes a path one word for the shell.
func shellQuote(s string) string {
	if !strings.ContainsAny(s, " \t'\"$&|;<>()*?[]{}~#!`\\") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
