// SPDX-License-Identifier: Apache-2.0

// Command davitd is the card's agent: see firmware/agent.
//
// On a card it is started by init, without flags. On any Linux machine it plays
// a card with
//
//	davitd --board loopback --config FILE --state DIR --run DIR --pool FILE --vcard PROGRAM
//
// and, for an ordinary user, who cannot confine the vcard fully,
// --lenient-sandbox. --local-disk offers a volume to any VMM on the machine;
// davitd --help lists the rest.
//
// It ends with exit code 0 on SIGTERM or SIGINT, with 1 when it cannot begin.
package main
