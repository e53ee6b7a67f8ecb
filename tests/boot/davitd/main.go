// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/davit-dpu/davit/firmware/supervise"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

func main() {
	mode := ""
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		fmt.Println("agent:", err)
	}
	for _, word := range strings.Fields(string(cmdline)) {
		if v, ok := strings.CutPrefix(word, "agent="); ok {
			mode = v
		}
	}
	fmt.Println("agent: mode", mode)
	if report, err := initctl.ReadReport(initctl.ReportPath); err != nil {
		fmt.Println("agent: report:", err)
	} else {
		fmt.Println("agent: report lists", len(report.Steps) > 10, "lifecycle", report.Lifecycle)
	}
	if _, err := os.Create("/etc/agent-was-here"); err != nil {
		fmt.Println("agent: root refuses writes")
	}
	if mode == "crash" {
		os.Exit(3)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if err := supervise.NotifyReady(); err != nil {
		fmt.Println("agent: ready:", err)
	}
	act(mode)
	<-term
	if mode == "stubborn" {
		select {}
	}
	fmt.Println("agent: SIGTERM, ends")
}

func act(mode string) {
	var err error
	switch mode {
	case "poweroff", "stubborn":
		err = initctl.Ask(context.Background(), initctl.SocketPath, initctl.PowerOff)
	case "reboot":
		err = initctl.Ask(context.Background(), initctl.SocketPath, initctl.Reboot)
	case "kill":
		err = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if err != nil {
		fmt.Println("agent:", mode, err)
	}
}
