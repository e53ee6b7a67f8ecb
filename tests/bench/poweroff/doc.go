// SPDX-License-Identifier: Apache-2.0

// Command poweroff is the init of the baseline that a card's boot is compared
// with: it says that it runs, and ends the machine.
package main
