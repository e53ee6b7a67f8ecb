// SPDX-License-Identifier: Apache-2.0

// Package testcard is the least that can be called a card: it serves one volume
// to whatever device a host asks for, and echoes on doors. It runs inside a
// test or inside a VM. It checks nothing that a real card must check.
package testcard
