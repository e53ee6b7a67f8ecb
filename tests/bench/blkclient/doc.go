// SPDX-License-Identifier: Apache-2.0

// Command blkclient drives a vhost-user block device without a virtual machine:
// it is front end and driver in one, and keeps a number of requests in flight.
// It prints what came of it as JSON.
//
//	blkclient --socket PATH --op randread --block 4096 --depth 32 --seconds 5
//
// It is made not to be the bottleneck. It has one queue and one goroutine. Each
// request in flight has its own chain of three descriptors (header, data, status),
// which is written once; a request costs its sector, its status and an entry of the available
// ring, and allocates nothing. What is found completed is offered again at once and
// published together. It polls the used ring, never asks for a call, and kicks
// only when the device asks for it. With --sleep it waits for calls instead, as most drivers do.
//
// Every status is checked. Latency is that of one request in sampleEvery.
//
// --op idle connects, moves one block so that the device has begun, and then
// leaves it alone.
package main
