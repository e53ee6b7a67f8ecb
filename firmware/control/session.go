// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// session is one controller's connection, from the server's side.
type session struct {
	server *Server
	wire   *wire
	events *eventQueue
	build  string
	ctx    context.Context
	cancel context.CancelCauseFunc
	pong   chan struct{} // holds one element when a pong came
	gone   chan struct{} // closed when an admitted session left
	wg     sync.WaitGroup

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc // guarded by mu; of unanswered requests
}

func newSession(ctx context.Context, s *Server, w *wire) *session {
	ctx, cancel := context.WithCancelCause(ctx)
	ses := &session{
		server: s, wire: w, events: newEventQueue(), ctx: ctx, cancel: cancel,
		pong: make(chan struct{}, 1), gone: make(chan struct{}), cancels: map[uint64]context.CancelFunc{},
	}
	context.AfterFunc(ctx, w.close)
	return ses
}

// end closes the connection; the first reason is kept.
func (ses *session) end(why error) { ses.cancel(why) }

// greet reads Hello, settles the version and admits the session.
func (ses *session) greet() error {
	if err := ses.wire.conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	f, files, err := ses.wire.read()
	if err != nil {
		return err
	}
	closeFiles(files)
	if f.Kind != kindRequest || f.Op != "hello" || len(files) != 0 {
		return fmt.Errorf("the first frame is not hello: %w", ErrProtocol)
	}
	req, err := ses.wire.codec.decodeRequest(f)
	if err == nil {
		err = req.check()
	}
	if err != nil {
		return err
	}
	hello := req.(*Hello)
	ses.build = hello.Build
	reply := ses.server.handler.Welcome()
	reply.Version = min(hello.Current, VersionCurrent)
	switch {
	case reply.Version < max(hello.Min, VersionMin):
		err = fmt.Errorf("controller speaks %d to %d, vcard %d to %d: %w", hello.Min, hello.Current, VersionMin, VersionCurrent, ErrVersion)
	default:
		err = ses.server.admit(ses)
	}
	if err != nil {
		return errors.Join(err, ses.reply(f.ID, nil, err))
	}
	if err := errors.Join(ses.reply(f.ID, &reply, nil), ses.wire.conn.SetReadDeadline(time.Time{})); err != nil {
		ses.server.leave(ses)
		return err
	}
	return nil
}

// run serves an admitted session until its connection ends, and says why.
func (ses *session) run() error {
	ses.wg.Go(ses.sendEvents)
	for {
		f, files, err := ses.wire.read()
		if err == nil {
			err = ses.accept(f, files)
		}
		if err != nil {
			ses.end(err)
			break
		}
	}
	// Not after the requests: one that hangs in I/O must not keep the next
	// controller out.
	ses.server.leave(ses)
	ses.wg.Wait()
	if err := context.Cause(ses.ctx); !errors.Is(err, io.EOF) {
		return err
	}
	return errors.New("closed by the controller")
}

// accept takes over files.
func (ses *session) accept(f *frame, files []*os.File) error {
	if f.Kind == kindRequest {
		return ses.acceptRequest(f, files)
	}
	closeFiles(files)
	if len(files) != 0 {
		return fmt.Errorf("file descriptors without a request: %w", ErrProtocol)
	}
	switch f.Kind {
	case kindCancel:
		ses.mu.Lock()
		cancel := ses.cancels[f.ID]
		ses.mu.Unlock()
		if cancel != nil { // else it has just been answered
			cancel()
		}
		return nil
	case kindPong:
		select {
		case ses.pong <- struct{}{}:
		default:
		}
		return nil
	}
	return fmt.Errorf("frame of kind %d from a controller: %w", f.Kind, ErrProtocol)
}

// acceptRequest starts a request; a malformed one ends the connection.
func (ses *session) acceptRequest(f *frame, files []*os.File) error {
	req, err := ses.wire.codec.decodeRequest(f)
	if err == nil && req.files() != len(files) {
		err = fmt.Errorf("%s with %d file descriptors, want %d: %w", f.Op, len(files), req.files(), ErrProtocol)
	}
	if err == nil && f.Op == "hello" {
		err = fmt.Errorf("second hello: %w", ErrProtocol)
	}
	var ctx context.Context
	if err == nil {
		ctx, err = ses.register(f.ID)
	}
	if err != nil {
		closeFiles(files)
		return err
	}
	ses.wg.Go(func() { ses.handle(ctx, f.ID, req, &Files{files: files}) })
	return nil
}

// register makes the context of a request.
func (ses *session) register(id uint64) (context.Context, error) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if _, ok := ses.cancels[id]; ok || len(ses.cancels) >= MaxPending {
		return nil, fmt.Errorf("request %d is asked already, or %d requests wait: %w", id, len(ses.cancels), ErrProtocol)
	}
	ctx, cancel := context.WithCancel(ses.ctx)
	ses.cancels[id] = cancel
	return ctx, nil
}

// handle carries out one request and answers it.
func (ses *session) handle(ctx context.Context, id uint64, req Request, files *Files) {
	var reply Reply
	err := req.check()
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	} else {
		reply, err = ses.server.handler.Handle(ctx, req, files)
	}
	files.close()
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", ErrCancelled, err)
	}
	ses.mu.Lock()
	ses.cancels[id]()
	delete(ses.cancels, id)
	ses.mu.Unlock()
	if ses.ctx.Err() != nil {
		return // the controller sees its connection end, not a made-up answer
	}
	if err := ses.reply(id, reply, err); err != nil {
		ses.end(fmt.Errorf("reply to %s: %w", req.op(), err))
		return
	}
	if _, ok := req.(*Shutdown); ok && err == nil {
		ses.server.shutDown()
	}
}

// reply sends a reply or, when failed is not nil, a refusal.
func (ses *session) reply(id uint64, reply Reply, failed error) error {
	f := frame{Kind: kindReply, ID: id}
	if failed != nil {
		f.Error, reply = wireError(failed), nil
	}
	return ses.send(f, reply)
}

func (ses *session) send(f frame, m message) error {
	ctx, cancel := context.WithTimeout(ses.ctx, writeTimeout)
	defer cancel()
	return ses.wire.write(ctx, f, m, nil)
}

func (ses *session) sendEvents() {
	for {
		select {
		case <-ses.ctx.Done():
			return
		case <-ses.events.wake:
		}
		for e, ok := ses.events.take(); ok; e, ok = ses.events.take() {
			if err := ses.send(frame{Kind: kindEvent}, &e); err != nil {
				ses.end(fmt.Errorf("send event: %w", err))
				return
			}
		}
	}
}

// alive asks the controller for a sign of life.
func (ses *session) alive() bool {
	select {
	case <-ses.pong: // of an earlier question
	default:
	}
	t := time.NewTimer(pongTimeout)
	defer t.Stop()
	ctx, cancel := context.WithTimeout(ses.ctx, pongTimeout)
	defer cancel()
	if err := ses.wire.write(ctx, frame{Kind: kindPing}, nil, nil); err != nil {
		return false
	}
	select {
	case <-ses.pong:
		return true
	case <-ses.ctx.Done():
		return false
	case <-t.C:
		return false
	}
}
