// SPDX-License-Identifier: Apache-2.0

// Command davit-hostd runs on the host. It starts and kills VMMs as the card
// orders and carries their bytes over the bus; tools/host says how. It holds
// no state and makes no policy: it can be killed and started again at any time
// while its VMMs go on.
package main
