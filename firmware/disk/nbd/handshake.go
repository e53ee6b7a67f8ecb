// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"errors"
	"fmt"
	"io"
)

// negotiate goes through the handshake on a fresh connection, up to where
// requests may be sent. An error leaves the connection of no use.
func negotiate(rw io.ReadWriter, name string) (Export, error) {
	var hello [helloLen]byte
	if _, err := io.ReadFull(rw, hello[:]); err != nil {
		return Export{}, fmt.Errorf("read greeting: %w", err)
	}
	flags, err := parseHello(hello)
	if err != nil {
		return Export{}, err
	}
	if _, err := rw.Write(encodeGo(name, flags)); err != nil {
		return Export{}, fmt.Errorf("ask for export %q: %w", name, err)
	}
	e, err := readExport(rw)
	if err != nil {
		return Export{}, fmt.Errorf("ask for export %q: %w", name, err)
	}
	return e, nil
}

// readExport reads the replies to NBD_OPT_GO.
func readExport(r io.Reader) (Export, error) {
	e := Export{minBlock: defaultMinBlock, maxPayload: maxPayload}
	for range maxReplies {
		var head [optionReplyLen]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return Export{}, err
		}
		reply, err := parseOptionReply(head)
		if err != nil {
			return Export{}, err
		}
		data := make([]byte, reply.length)
		if _, err := io.ReadFull(r, data); err != nil {
			return Export{}, err
		}
		switch {
		case reply.kind == replyInfo:
			if err := e.add(data); err != nil {
				return Export{}, err
			}
		case reply.kind == replyAck && e.Size == 0:
			return Export{}, errors.New("server does not say how large the export is")
		case reply.kind == replyAck:
			return e, nil
		case reply.kind&replyError != 0:
			return Export{}, refusal(reply.kind, data)
		default:
			return Export{}, fmt.Errorf("option reply of type %d", reply.kind)
		}
	}
	return Export{}, fmt.Errorf("more than %d replies to one option", maxReplies)
}
