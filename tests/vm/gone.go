// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tools/rig"
)

// checkGone fails the test if anything of a closed server is left: a process
// that names one of its places or has a file there open or mapped, its sockets,
// or its memory pool.
func checkGone(t testing.TB, s *rig.Server) {
	t.Helper()
	places := s.Places()
	Eventually(t, 10*time.Second, func() error { // a killed process takes a moment to be gone
		return errors.Join(left(places)...)
	})
	for _, p := range places[1:] { // the first is the test's own folder
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
}

// left describes every other process that has to do with one of the places.
func left(places []string) []error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return []error{err}
	}
	var found []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if trace := traceOf(filepath.Join("/proc", e.Name()), places); trace != "" {
			found = append(found, fmt.Errorf("process %d is left: %s", pid, trace))
		}
	}
	return found
}

// traceOf is what ties a process to one of the places. Processes of others
// cannot be read and are none of ours.
func traceOf(proc string, places []string) string {
	texts := []string{}
	for _, name := range []string{"cmdline", "maps"} {
		text, err := os.ReadFile(filepath.Join(proc, name))
		if err == nil {
			texts = append(texts, string(bytes.ReplaceAll(text, []byte{0}, []byte(" "))))
		}
	}
	links, err := filepath.Glob(filepath.Join(proc, "fd", "*"))
	if err != nil {
		links = nil // only a bad pattern is an error
	}
	for _, l := range append(links, filepath.Join(proc, "cwd")) {
		if target, err := os.Readlink(l); err == nil {
			texts = append(texts, target)
		}
	}
	for _, text := range texts {
		for _, p := range places {
			if at := strings.Index(text, p); at >= 0 {
				line := text[strings.LastIndexByte(text[:at], '\n')+1:]
				line, _, _ = strings.Cut(line, "\n")
				return line[:min(len(line), 300)]
			}
		}
	}
	return ""
}

// VMMs are the process ids of all instances' VMMs on the server's host, by what
// the kernel says of processes, not by what anybody recorded.
func (e *Env) VMMs(t testing.TB) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// A process that has ended meanwhile is none.
		text, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err == nil && bytes.Contains(text, []byte("guest=")) && bytes.Contains(text, []byte(e.Server.Pool())) {
			found = append(found, pid)
		}
	}
	return found
}
