// SPDX-License-Identifier: Apache-2.0

// Command davit is the one tool of operators and field engineers: it runs the
// emulated server, builds images, sends signed commands, attests cards, and
// joins consoles.
//
// Exit codes: 0 done, 1 it failed or the card refused, 2 wrong usage.
//
// Everything that it knows of a card is in one file, written by davit up or
// davit enrol: .davit/run/card.json, or what --card names.
package main
