// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/pflag"
)

func main() {
	var j job
	socket := pflag.String("socket", "", "unix socket of the back end")
	seconds := pflag.Float64("seconds", 2, "how long to go on")
	pflag.StringVar(&j.op, "op", "randread", "randread, randwrite, seqread, seqwrite or idle")
	pflag.IntVar(&j.block, "block", 4096, "bytes of each request, a multiple of 512")
	pflag.IntVar(&j.depth, "depth", 32, "requests in flight")
	pflag.Int64Var(&j.span, "span", 0, "use only so many bytes of the volume; 0: all")
	pflag.BoolVar(&j.sleep, "sleep", false, "wait for calls instead of polling")
	pflag.Parse()
	j.duration = time.Duration(*seconds * float64(time.Second))
	debug.SetGCPercent(-1) // nothing is allocated while it counts
	if err := run(*socket, j); err != nil {
		fmt.Fprintln(os.Stderr, "blkclient:", err)
		os.Exit(1)
	}
}

func run(socket string, j job) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	r, err := drive(conn, j)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// dial connects to a back end, which may still be about to listen.
func dial(socket string) (*net.UnixConn, error) {
	const patience = 5 * time.Second
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		if err == nil || time.Since(begin) > patience {
			return conn, err
		}
	}
}
