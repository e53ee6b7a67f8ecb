// SPDX-License-Identifier: Apache-2.0

// Package nbd is a disk.Volume on a server that speaks NBD, the Network Block
// Device protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md), as its client.
//
//	caller ─► request ─► pending ─┬─► conn ─────► server       sent by the caller
//	              ▲               └─► next conn ─► server       sent again, in order
//	              └───── reader ◄──── simple replies
//
// The handshake is the fixed newstyle one with NBD_OPT_GO; replies are simple ones. There is
// no TLS here: a stream that Config.Dial returns may be one of TLS.
//
// # Lost connections
//
// A request that has no reply yet is sent again on the next connection, as often as
// it takes, until the volume is closed. All requests may be executed twice: nobody has seen them
// complete. The export must be the same in size and abilities, or the connection is
// dropped. A server that breaks the protocol is dropped the same way, with the reason in the log.
//
// A server must not execute a request of a lost connection after it has replied on a
// later one: it would undo newer writes. No client can prevent that.
//
// # What survives
//
// The client can not know whether a server that it comes back to is the one it lost,
// or one that was started again and lost its cache. So changes that a server has acknowledged, and
// that were not flushed, must be taken for lost, and the guest that wrote them can not be told. There are
// three cases:
//
//	server has no NBD_FLAG_SEND_FLUSH   it has nothing that could be flushed: nothing is lost
//	server has NBD_FLAG_SEND_FUA        each change is sent with NBD_CMD_FLAG_FUA: nothing is lost
//	it has not, or Config.WriteBack     if there was an unflushed change when the connection was
//	                                    lost, Flush fails from then on, for ever
//
// The last is what disk.File does after a failed write-back. NBD_FLAG_CAN_MULTI_CONN does not
// help: it says that the connections to one server share a cache, not that the cache outlives the server.
//
// # Trust
//
// What the server sends is bounded and checked; a reply fills the buffers of a request
// that was sent in full, and nothing else. What it stores is its word: nothing is authenticated or encrypted.
//
// The package does not know where servers are, who may use a volume, or virtio.
package nbd
