// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"

	"github.com/davit-dpu/davit/firmware/spec"
)

// go.mod keeps what the shell needs only if shell_deps.go names its commands.
func TestShellDeps(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(token.NewFileSet(), "shell_deps.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range f.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p)
	}
	want := shellPackages(shellCommands)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("shell_deps.go imports %v, the shell has %v", got, want)
	}
}

// TestBuildDevelopment builds a rescue shell twice. mkuimage compiles everything
// anew each time, so it has few commands; all of them are in the image that the
// emulated server boots.
func TestBuildDevelopment(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the standard library twice")
	}
	t.Parallel()
	commands := []string{"cat", "ls"}
	var images []*Image
	for range 2 {
		o := testOptions(t)
		o.Lifecycle, o.Development = spec.Development, true
		o.shellCommands = commands
		images = append(images, mustBuild(t, o))
	}
	img := images[0]
	if !bytes.Equal(img.Payload.Initrd, images[1].Payload.Initrd) {
		t.Error("two builds differ")
	}
	for _, name := range append([]string{"bb", "gosh"}, commands...) {
		if !img.Manifest.Has("/bbin/" + name) {
			t.Errorf("no /bbin/%s", name)
		}
	}
	for _, e := range img.Manifest.Entries {
		if e.Path == "/bin/sh" && e.Target != "../bbin/gosh" {
			t.Errorf("/bin/sh leads to %q", e.Target)
		}
	}
	if !img.Manifest.Has("/bin/sh") || !img.Manifest.Has("/init") {
		t.Error("no /bin/sh or no /init")
	}
	if !bytes.Contains(img.Payload.OSRelease, []byte("DAVIT_LIFECYCLE=development\n")) {
		t.Errorf("release file %q", img.Payload.OSRelease)
	}
}
