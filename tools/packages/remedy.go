// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"fmt"
	"runtime"
)

// installers are the commands that install packages, by os-release ID.
var installers = []struct{ id, command string }{
	{"debian", "sudo apt-get install "},
	{"ubuntu", "sudo apt-get install "},
	{"fedora", "sudo dnf install "},
	{"arch", "sudo pacman -S --needed "},
}

// remedy is the exact command that brings the need to this system, or the
// next best thing where no package of the system would.
func (c *Cache) remedy(s spec) string {
	for _, i := range installers {
		if !c.distro.is(i.id) {
			continue
		}
		names := s.install[i.id]
		if i.id == "ubuntu" {
			names = s.install["debian"]
		}
		if names != "" {
			return i.command + names
		}
	}
	arch := s.arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	return fmt.Sprintf("unpack an %s package like Debian's %s there: dpkg -x PACKAGE.deb %s", arch, s.roots[0], c.localDir(s.need))
}
