// SPDX-License-Identifier: Apache-2.0

// Package vm is the harness of whole-system tests: it starts an emulated
// server, or parts of one, in a private folder with private ports, collects
// every console and log when the test fails, and leaves nothing behind, which
// it checks.
//
//	func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }
//
//	env := vm.Start(t, vm.Options{})
//	env.Operator.Do(ctx, "instance.start", ...)
//	env.Server.Host.Kill()
//
// Packages and the image are made once and kept in the user's cache and in the
// checkout's .davit folder, as davit up keeps them; programs and the
// demonstration's files are made once for each test program.
//
// A test waits for what it wants to see (Eventually, Console.Advance), never
// for a time.
package vm
