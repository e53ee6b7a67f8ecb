// SPDX-License-Identifier: Apache-2.0

// Command davitd stands in for the agent in tests of init: it does what the
// word agent= on the kernel's command line says.
//
//	poweroff, reboot   becomes ready, then asks init for it
//	stubborn           the same, for poweroff, and ignores SIGTERM
//	crash              exits with code 3 before it is ready
//	kill               becomes ready, then dies of SIGKILL
package main
