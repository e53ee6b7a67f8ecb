// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// space is what a file takes on the disk, in bytes.
func space(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// logBound is what a log may take between two looks at it, with whole blocks.
const logBound = logHead + logTail + logSlack + 64<<10

func TestPunchLogKeepsBothEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	qemu, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	hostd, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hostd.Close()
	var all bytes.Buffer
	done := int64(logHead)
	for i := range 200 {
		if i%50 == 0 {
			done = logHead // a new hostd does not know what was done
		}
		text := bytes.Repeat([]byte{'a' + byte(i%26)}, rand.IntN(2*logSlack))
		all.Write(text)
		if _, err := qemu.Write(text); err != nil {
			t.Fatal(err)
		}
		if done, err = punchLog(hostd, done); err != nil {
			t.Fatal(err)
		}
		if got := space(t, path); got > logBound {
			t.Fatalf("%d bytes take %d on the disk", all.Len(), got)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || len(got) != all.Len() {
		t.Fatalf("%d bytes, want %d: %v", len(got), all.Len(), err)
	}
	if !bytes.Equal(got[:logHead], all.Bytes()[:logHead]) || !bytes.Equal(got[len(got)-logTail:], all.Bytes()[all.Len()-logTail:]) {
		t.Error("an end was lost")
	}
}

func TestKeepLog(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, logHead + logTail + logSlack - 1, logHead + logTail + logSlack, 4 << 20} {
		from, to := filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "kept")
		text := []byte(strings.Repeat("0123456789abcde\n", size/16+1)[:size])
		if err := os.WriteFile(from, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, make([]byte, 8<<20), 0o600); err != nil { // of an earlier start
			t.Fatal(err)
		}
		if err := keepLog(to, from); err != nil {
			t.Fatal(err)
		}
		want := text
		if size >= logHead+logTail+logSlack {
			want = fmt.Appendf(nil, "%s\n[%d bytes were not kept]\n%s", text[:logHead], size-logHead-logTail, text[size-logTail:])
		}
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
			t.Errorf("of %d bytes %d are kept, want %d: %v", size, len(got), len(want), err)
		}
	}
}

// TestBoundLogGoesOn: a look that fails, here for want of the file, is told once
// and ends nothing.
func TestBoundLogGoesOn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithCancel(t.Context())
	warned, done := make(chan error, 8), make(chan struct{})
	go func() {
		defer close(done)
		boundLog(ctx, path, func(err error) { warned <- err })
	}()
	if err := <-warned; !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("warned of %v", err)
	}
	if err := os.WriteFile(path+".new", make([]byte, babble), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	await(t, "the middle is gone", func() bool { return space(t, path) <= logBound })
	cancel()
	<-done
	if len(warned) != 0 {
		t.Errorf("warned again, of %v", <-warned)
	}
}

// TestChattyVMM: what a VMM says takes bounded space, also when another hostd has
// come meanwhile, and its last words are told to the card.
func TestChattyVMM(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.KillOnExit = true
	h := openHost(t, cfg)
	defer h.Close()
	if _, err := h.Start(t.Context(), named("babble", 0)); err != nil {
		t.Fatal(err)
	}
	awaitBounded(t, h, "babble")
	if err := unix.Kill(h.lookup("babble", testGeneration).proc.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, h, "babble"); st.Reason != "exit status 3: qemu: cannot" {
		t.Errorf("reported %+v", st)
	}
	checkKept(t, h, "babble")
}

func TestChattyVMMOfAnEarlierHostd(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	h := openHost(t, cfg)
	if _, err := h.Start(t.Context(), named("babbler", 0)); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(h.dir.vmm("babbler"), logFile)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "all is said", func() bool { st, err := os.Stat(log); return err == nil && st.Size() > babble })
	f, err := os.OpenFile(log, os.O_WRONLY, 0) // as if nobody had looked at it
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte("x"), babble/2), logHead)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	cfg.KillOnExit = true
	h = openHost(t, cfg)
	defer h.Close()
	awaitBounded(t, h, "babbler")
	if err := unix.Kill(h.lookup("babbler", testGeneration).proc.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitExit(t, h, "babbler")
	checkKept(t, h, "babbler")
}

// await polls what gives no event of its own: the state of a file.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		if !sleep(ctx, 5*time.Millisecond) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func awaitBounded(t *testing.T, h *Host, instance string) {
	t.Helper()
	log := filepath.Join(h.dir.vmm(instance), logFile)
	await(t, "all is said, and its middle is gone", func() bool {
		st, err := os.Stat(log)
		return err == nil && st.Size() > babble && space(t, log) <= logBound
	})
}

func checkKept(t *testing.T, h *Host, instance string) {
	t.Helper()
	b, err := os.ReadFile(h.dir.log(instance))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if len(b) > logBound || !strings.HasPrefix(text, "qemu: first\n") || !strings.HasSuffix(text, "\nqemu: cannot\n") || !strings.Contains(text, "bytes were not kept]") {
		t.Errorf("%d bytes are kept, from %.40q to %q", len(b), text, text[max(0, len(text)-40):])
	}
}
