// SPDX-License-Identifier: Apache-2.0

// Package layers keeps the rules of the house: which package may import which,
// which modules of others are guests, where unsafe may be, and that every
// package says what it is. The tables in floors.go are the rules; a new package
// gets its row there, and a new guest its reason.
package layers
