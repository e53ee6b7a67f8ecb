// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
)

// blockCase is one thing that both back ends are measured at.
type blockCase struct {
	name   string // of the sub-benchmark
	title  string // in the table
	stored bool   // in a file on tmpfs; else nowhere
	work   workload
	bar    float64 // the least that ours is to reach, as a multiple of the other; 0: there is none
}

// blockCases are the rows of the table.
func blockCases() []blockCase {
	const small, large = 4 << 10, 128 << 10
	return []blockCase{
		{"null-randread-32", "no store, random 4 KiB reads, 32 in flight", false, workload{op: "randread", block: small, depth: 32}, 1.2},
		{"null-randread-1", "no store, random 4 KiB reads, 1 in flight", false, workload{op: "randread", block: small, depth: 1}, 3},
		{"null-randread-1-sleep", "no store, random 4 KiB reads, 1 in flight, the driver sleeps", false, workload{"randread", small, 1, true}, 0},
		{"tmpfs-randread-32", "tmpfs file, random 4 KiB reads, 32 in flight", true, workload{op: "randread", block: small, depth: 32}, 3},
		{"tmpfs-randwrite-32", "tmpfs file, random 4 KiB writes, 32 in flight", true, workload{op: "randwrite", block: small, depth: 32}, 3},
		{"tmpfs-randread-1", "tmpfs file, random 4 KiB reads, 1 in flight", true, workload{op: "randread", block: small, depth: 1}, 3},
		{"tmpfs-randread-1-sleep", "tmpfs file, random 4 KiB reads, 1 in flight, the driver sleeps", true, workload{"randread", small, 1, true}, 0},
		{"tmpfs-randwrite-1", "tmpfs file, random 4 KiB writes, 1 in flight", true, workload{op: "randwrite", block: small, depth: 1}, 3},
		{"tmpfs-seqread-32", "tmpfs file, sequential 128 KiB reads, 32 in flight", true, workload{op: "seqread", block: large, depth: 32}, 1},
		{"tmpfs-seqwrite-32", "tmpfs file, sequential 128 KiB writes, 32 in flight", true, workload{op: "seqwrite", block: large, depth: 32}, 1},
	}
}

// idleTime is the least that an idle back end is watched: times of processes
// come in hundredths of a second.
const idleTime = 5 * time.Second

// blockQuietWait is how long it waits for a quiet machine in all.
const blockQuietWait = 5 * time.Minute

// BenchmarkBlock compares our vhost-user-blk back end with that of
// qemu-storage-daemon, and prints a table for docs/performance.md. It takes no
// side: a bar that is missed is a line of the table.
func BenchmarkBlock(b *testing.B) {
	places := placements(b)
	set := vm.Need(b, packages.QEMU)
	aio := cmp.Or(os.Getenv("DAVIT_BENCH_BLOCK_AIO"), "threads")
	ourBackend, theirs := ours(b), storageDaemon(set, aio)
	s := stand{dir: shortDir(b, ""), client: vm.Program(b, "./tests/bench/blkclient"), time: seconds(b)}
	file := fill(b, filepath.Join(shortDir(b, "/dev/shm"), "volume"))
	_, version, err := set.Where(packages.QEMU)
	if err != nil {
		b.Fatal(err)
	}
	say("\n%s; qemu-storage-daemon %s, files by aio=%s; %v for each run; %s, then %s\n",
		machine(b), version, aio, s.time, places[0], places[1])
	q := &quiet{blockQuietWait}
	var rows []row
	for _, c := range blockCases() {
		b.Run(c.name, func(b *testing.B) {
			from := ""
			if c.stored {
				from = file
			}
			r := row{blockCase: c}
			r.turns = s.turns(b, q, places, func(at placement, first bool) turn {
				return s.turn(b, ourBackend, theirs, from, c.work, at, first)
			})
			say("%s", r.detail())
			rows = append(rows, r)
			b.ReportMetric(r.ratio(), "ratio")
			b.ReportMetric(0, "ns/op") // of no meaning here
		})
	}
	b.Run("idle", func(b *testing.B) {
		s.time = max(s.time, idleTime)
		t := s.turn(b, ourBackend, theirs, "", workload{op: "idle", block: 4 << 10, depth: 1}, places[0], true)
		share := func(f figures) float64 { return 100 * f.server.Seconds() / s.time.Seconds() }
		say("Processor use for %v with a front end that is connected and idle: %s %.1f%% of one, %s %.1f%%.\n",
			s.time, ourBackend.name, share(t.ours), theirs.name, share(t.theirs))
		b.ReportMetric(0, "ns/op")
	})
	say("\n%s", table(rows))
}

// turn is one run of each back end, one right after the other, in one place.
type turn struct {
	ours, theirs figures
	at           placement
}

func (t turn) others() float64 { return max(t.ours.others, t.theirs.others) }

func (s stand) turn(b *testing.B, ours, theirs backend, file string, w workload, at placement, oursFirst bool) turn {
	b.Helper()
	t := turn{at: at}
	if oursFirst {
		t.ours = s.measure(b, ours, file, w, at)
	}
	t.theirs = s.measure(b, theirs, file, w, at)
	if !oursFirst {
		t.ours = s.measure(b, ours, file, w, at)
	}
	return t
}

// turns takes turns until there are enough in which nobody else used much of
// the machine. When there are too few in three times as many, those count in which
// others used it least. Places and who is first change from turn to turn.
func (s stand) turns(b *testing.B, q *quiet, places []placement, take func(at placement, first bool) turn) []turn {
	b.Helper()
	enough := rounds(b) * len(places)
	var all []turn
	undisturbed := 0
	for i := 0; undisturbed < enough && i < 3*enough; i++ {
		q.await(b)
		t := take(places[i%len(places)], i/len(places)%2 == 0)
		all = append(all, t)
		if t.others() <= disturbance {
			undisturbed++
		}
	}
	slices.SortStableFunc(all, func(x, y turn) int { return cmp.Compare(x.others(), y.others()) })
	if undisturbed < enough {
		say("the machine was not quiet: others used more than %.0f%% of it in %d of %d turns\n",
			100*disturbance, len(all)-undisturbed, len(all))
	}
	return all[:enough]
}

// shortDir makes a folder that is removed afterwards, with a path that is short
// enough for a socket's, below parent or that of temporary files.
func shortDir(b *testing.B, parent string) string {
	b.Helper()
	dir, err := os.MkdirTemp(parent, "davit-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// fill makes a volume's file, all of it there and none of it zero.
func fill(b *testing.B, path string) string {
	b.Helper()
	chunk := make([]byte, 1<<20)
	rand.Read(chunk) // never returns an error
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	_, err = f.Write(bytes.Repeat(chunk, volumeSize/len(chunk)))
	if err := errors.Join(err, f.Close()); err != nil {
		b.Fatal(err)
	}
	return path
}

// seconds is how long one run takes.
func seconds(b *testing.B) time.Duration {
	b.Helper()
	text := cmp.Or(os.Getenv("DAVIT_BENCH_BLOCK_SECONDS"), "2")
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || v <= 0 || v > 3600 {
		b.Fatalf("DAVIT_BENCH_BLOCK_SECONDS: %q is no number of seconds", text)
	}
	return time.Duration(v * float64(time.Second))
}

// rounds is how often each case is measured in each placement.
func rounds(b *testing.B) int {
	b.Helper()
	text := cmp.Or(os.Getenv("DAVIT_BENCH_BLOCK_ROUNDS"), "3")
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("DAVIT_BENCH_BLOCK_ROUNDS: %q is no number of rounds", text)
	}
	return n
}
