// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/disk"
)

// Magic numbers (proto.md, "Protocol phases"). All numbers are big endian.
const (
	magicServer      = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply = 0x0003e889045565a9
	magicRequest     = 0x25609513
	magicReply       = 0x67446698
)

// Handshake flags, of server and client alike ("Handshake flags", "Client flags").
const (
	fixedNewstyle = 1 << 0
	noZeroes      = 1 << 1
)

// Options, and the replies to them ("Option types", "Option reply types").
const (
	optGo = 7

	replyAck   = 1
	replyInfo  = 3
	replyError = 1 << 31 // and a number

	infoExport    = 0
	infoBlockSize = 3
)

// Transmission flags ("Transmission flags").
const (
	hasFlags        = 1 << 0
	readOnly        = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	sendTrim        = 1 << 5
	sendWriteZeroes = 1 << 6

	knownFlags = hasFlags | readOnly | sendFlush | sendFUA | sendTrim | sendWriteZeroes
)

// Commands and their flags ("Request types", "Command flags").
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	flagFUA    = 1 << 0
	flagNoHole = 1 << 1
)

// Lengths in bytes.
const (
	helloLen       = 18
	optionReplyLen = 20
	requestLen     = 28
	replyLen       = 16

	maxExportName  = 4096
	maxOptionReply = 16 << 10 // the protocol's strings have at most 4096
	maxReplies     = 64       // to one option
)

// Sizes in bytes that hold when the server says nothing else ("Block size constraints").
const (
	defaultMinBlock = 512
	maxPayload      = 32 << 20
)

// Export is what a server offers: constant while a volume is open, whatever
// server it comes to.
type Export struct {
	Size       int64  // bytes, a multiple of disk.SectorSize
	flags      uint16 // those of knownFlags
	minBlock   uint32 // offsets and lengths are multiples of it; a power of two up to disk.SectorSize
	maxPayload uint32 // bytes of one read or write, a multiple of minBlock
}

// String describes an export for errors.
func (e Export) String() string {
	return fmt.Sprintf("%d bytes, flags %#x, blocks of %d, at most %d bytes at a time", e.Size, e.flags, e.minBlock, e.maxPayload)
}

func (e Export) has(flag uint16) bool { return e.flags&flag != 0 }

// parseHello reads the server's first message and returns its handshake flags.
func parseHello(b [helloLen]byte) (uint16, error) {
	if got := binary.BigEndian.Uint64(b[0:]); got != magicServer {
		return 0, fmt.Errorf("server begins with %#x: it does not speak NBD", got)
	}
	if got := binary.BigEndian.Uint64(b[8:]); got != magicOption {
		return 0, errors.New("server speaks the old handshake only")
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if flags&fixedNewstyle == 0 {
		return 0, fmt.Errorf("handshake flags %#x: server does not speak the fixed newstyle handshake", flags)
	}
	return flags, nil
}

// encodeGo is the client's flags and NBD_OPT_GO for an export, with a request for block sizes.
func encodeGo(name string, serverFlags uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(serverFlags&(fixedNewstyle|noZeroes)))
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(name)+2+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint16(b, 1)
	return binary.BigEndian.AppendUint16(b, infoBlockSize)
}

// optionReply is the header of a reply to NBD_OPT_GO.
type optionReply struct {
	kind   uint32
	length uint32 // of the data that follows, at most maxOptionReply
}

func parseOptionReply(b [optionReplyLen]byte) (optionReply, error) {
	if got := binary.BigEndian.Uint64(b[0:]); got != magicOptionReply {
		return optionReply{}, fmt.Errorf("option reply begins with %#x", got)
	}
	if got := binary.BigEndian.Uint32(b[8:]); got != optGo {
		return optionReply{}, fmt.Errorf("reply to option %d, which was not asked for", got)
	}
	r := optionReply{kind: binary.BigEndian.Uint32(b[12:]), length: binary.BigEndian.Uint32(b[16:])}
	if r.length > maxOptionReply {
		return optionReply{}, fmt.Errorf("option reply of %d bytes, at most %d", r.length, maxOptionReply)
	}
	if r.kind == 0 {
		return optionReply{}, errors.New("option reply of type 0")
	}
	return r, nil
}

// refusals names the errors that a server replies to an option ("Option reply types").
var refusals = map[uint32]string{
	1: "option is not supported", 2: "policy forbids it", 3: "option is malformed", 4: "platform does not support it",
	5: "TLS is required", 6: "no such export", 7: "server is shutting down", 8: "block sizes must be negotiated", 9: "request is too large",
}

// refusal is the error that a server's error reply stands for.
func refusal(kind uint32, message []byte) error {
	what, ok := refusals[kind&^replyError]
	if !ok {
		what = fmt.Sprintf("error %d", kind&^replyError)
	}
	if len(message) > 0 {
		return fmt.Errorf("server refuses: %s: %.200q", what, message)
	}
	return fmt.Errorf("server refuses: %s", what)
}

// add reads the data of one information reply; unknown ones are to be ignored.
func (e *Export) add(b []byte) error {
	if len(b) < 2 {
		return fmt.Errorf("information of %d bytes", len(b))
	}
	kind, b := binary.BigEndian.Uint16(b), b[2:]
	switch kind {
	case infoExport:
		if len(b) != 10 {
			return fmt.Errorf("export information of %d bytes", len(b))
		}
		size := binary.BigEndian.Uint64(b)
		if size == 0 || size > math.MaxInt64 || size%disk.SectorSize != 0 {
			return fmt.Errorf("export of %d bytes: size is not a positive multiple of %d", size, disk.SectorSize)
		}
		flags := binary.BigEndian.Uint16(b[8:])
		if flags&hasFlags == 0 {
			return fmt.Errorf("transmission flags %#x say that they are none", flags)
		}
		e.Size, e.flags = int64(size), flags&knownFlags
	case infoBlockSize:
		if len(b) != 12 {
			return fmt.Errorf("block size information of %d bytes", len(b))
		}
		least, most := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[8:])
		if least == 0 || least&(least-1) != 0 || least > disk.SectorSize {
			return fmt.Errorf("blocks of at least %d bytes, sectors have %d", least, disk.SectorSize)
		}
		if most < disk.SectorSize {
			return fmt.Errorf("requests of at most %d bytes, sectors have %d", most, disk.SectorSize)
		}
		e.minBlock, e.maxPayload = least, min(most, maxPayload)/disk.SectorSize*disk.SectorSize
	}
	return nil
}

// encodeRequest is a request's header. Data of a write follows it.
func encodeRequest(flags, cmd uint16, cookie uint64, off int64, n uint32) (b [requestLen]byte) {
	binary.BigEndian.PutUint32(b[0:], magicRequest)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], cmd)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], n)
	return b
}

// reply is a simple reply's header. Data of a read that succeeded follows it.
type reply struct {
	code   uint32 // 0: success
	cookie uint64 // of the request, never 0
}

func parseReply(b [replyLen]byte) (reply, error) {
	if got := binary.BigEndian.Uint32(b[0:]); got != magicReply {
		return reply{}, fmt.Errorf("reply begins with %#x", got)
	}
	r := reply{code: binary.BigEndian.Uint32(b[4:]), cookie: binary.BigEndian.Uint64(b[8:])}
	if r.cookie == 0 {
		return reply{}, errors.New("reply to request 0, which is never sent")
	}
	return r, nil
}

// errorOf is the error of a reply's code ("Error values"), whose numbers are Linux's; nil for 0.
func errorOf(code uint32) error {
	switch e := unix.Errno(code); e {
	case 0:
		return nil
	case unix.ENOTSUP:
		return fmt.Errorf("server: %w: %w", disk.ErrNotSupported, e)
	case unix.EPERM, unix.EIO, unix.ENOMEM, unix.EINVAL, unix.ENOSPC, unix.EOVERFLOW, unix.ESHUTDOWN:
		return fmt.Errorf("server: %w", e)
	}
	return fmt.Errorf("server: error %d", code)
}
