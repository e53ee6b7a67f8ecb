// SPDX-License-Identifier: Apache-2.0

// Package board says what a kind of card is to the software: which kernel
// modules it needs, where its TPM, consoles, bus and storage are. A Board is a
// struct of facts; it opens nothing and imports nothing of ours. The folders
// below hold one board each, and board/detect the one list of them.
package board
