// SPDX-License-Identifier: Apache-2.0

// Command plait makes a host with several uplinks use all of them at once and keep its sessions when
// one dies.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// version is set by the build.
var version = ""

// env is what a command takes from and gives to the world.
type env struct {
	stdout, stderr io.Writer
	getenv         func(string) string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, env{os.Stdout, os.Stderr, os.Getenv}, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "plait:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, e env, args []string) error {
	cmd := newRootCommand(e)
	cmd.SetArgs(args)
	return cmd.ExecuteContext(ctx)
}

// buildVersion is the version that the build set, else what the module system knows.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
