// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

func testOrder() spec.VMMOrder {
	return spec.VMMOrder{
		Instance: "web", Generation: testGeneration, VCPUs: 2, Memory: 256 * spec.MiB, PoolOffset: 2 * spec.MiB,
		Kernel: &spec.Blob{Offset: 4 * spec.MiB, Length: 99, SHA256: make([]byte, 32)}, Cmdline: "console=ttyS0",
		Disks: []spec.VMMDisk{{Device: "root", Queues: 2}},
	}
}

// fakeVMMs remembers orders.
type fakeVMMs struct {
	started []spec.VMMOrder
	killed  []VMMRef
	err     error
	hold    chan struct{} // a start takes until it is closed, if there is one
	busy    int           // calls under way; no lock: they are made one at a time
}

func (f *fakeVMMs) Start(_ context.Context, o spec.VMMOrder) (spec.VMMStatus, error) {
	if f.err != nil {
		return spec.VMMStatus{}, f.err
	}
	f.busy++
	if f.hold != nil {
		<-f.hold
	}
	f.busy--
	f.started = append(f.started, o)
	return spec.VMMStatus{Instance: o.Instance, Generation: o.Generation, State: spec.VMMRunning}, nil
}

func (f *fakeVMMs) Kill(_ context.Context, r VMMRef) error {
	f.killed = append(f.killed, r)
	return f.err
}

func (f *fakeVMMs) List() []spec.VMMStatus {
	return []spec.VMMStatus{{Instance: "old", Generation: testGeneration, State: spec.VMMExited, Reason: "exit\x1b status 1"}}
}

func TestOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		vmms, states := &fakeVMMs{}, make(chan spec.VMMStatus)
		served := make(chan error, 1)
		go func() { served <- ServeOrders(t.Context(), host, vmms, states) }()
		events := make(chan spec.VMMStatus, 1)
		orders := NewOrders(card, func(st spec.VMMStatus) { events <- st })
		ran := make(chan error, 1)
		go func() { ran <- orders.Run(t.Context()) }()

		st, err := orders.Start(t.Context(), testOrder())
		if err != nil || st.State != spec.VMMRunning || !reflect.DeepEqual(vmms.started, []spec.VMMOrder{testOrder()}) {
			t.Errorf("start: %+v, %v; the host saw %+v", st, err, vmms.started)
		}
		if err := orders.Kill(t.Context(), VMMRef{"web", testGeneration}); err != nil || len(vmms.killed) != 1 {
			t.Errorf("kill: %v", err)
		}
		list, err := orders.List(t.Context())
		if err != nil || len(list) != 1 || list[0].Reason != "exit? status 1" {
			t.Errorf("list: %+v, %v", list, err)
		}
		states <- spec.VMMStatus{Instance: "web", Generation: testGeneration, State: spec.VMMExited, Reason: "signal: killed"}
		if ev := <-events; ev.Reason != "signal: killed" {
			t.Errorf("event %+v", ev)
		}
		vmms.err = errors.New("no\nroom")
		var refused *HostError
		if _, err := orders.Start(t.Context(), testOrder()); !errors.As(err, &refused) || refused.Reason != "no?room" {
			t.Errorf("refused start: %v", err)
		}
		host.Close("restart")
		if err := <-ran; !errors.Is(err, ErrPeerBye) {
			t.Errorf("orders ended with %v", err)
		}
		if err := <-served; err == nil {
			t.Error("serving ended without a reason")
		}
		if _, err := orders.List(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("list after the end: %v", err)
		}
	})
}

// TestOrdersOfManyAtOnce: numbers rise on the wire, or the host ends the session.
func TestOrdersOfManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		go func() { host.Close(fmt.Sprint(ServeOrders(t.Context(), host, &fakeVMMs{}, nil))) }()
		orders := NewOrders(card, func(spec.VMMStatus) {})
		go func() { _ = orders.Run(t.Context()) }()
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if _, err := orders.List(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// TestSlowOrderHoldsUpNoEvent: the end of a VMM is told while another is being
// started, and the orders behind it wait for their turn.
func TestSlowOrderHoldsUpNoEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		vmms, states := &fakeVMMs{hold: make(chan struct{})}, make(chan spec.VMMStatus)
		go func() { _ = ServeOrders(t.Context(), host, vmms, states) }()
		events := make(chan spec.VMMStatus, 1)
		orders := NewOrders(card, func(st spec.VMMStatus) { events <- st })
		go func() { _ = orders.Run(t.Context()) }()
		answered := make(chan error, 2)
		go func() {
			_, err := orders.Start(t.Context(), testOrder())
			answered <- err
		}()
		synctest.Wait()
		go func() { answered <- orders.Kill(t.Context(), VMMRef{"db", testGeneration}) }()
		synctest.Wait()
		select {
		case states <- spec.VMMStatus{Instance: "db", Generation: testGeneration, State: spec.VMMExited, Reason: "signal: killed"}:
		case <-time.After(time.Minute):
			t.Fatal("nobody takes an event while an order is carried out")
		}
		synctest.Wait()
		if len(events) != 1 || len(answered) != 0 || len(vmms.killed) != 0 {
			t.Errorf("while the start takes its time: %d events, %d answers, killed %v", len(events), len(answered), vmms.killed)
		}
		close(vmms.hold)
		if err := errors.Join(<-answered, <-answered); err != nil || len(vmms.killed) != 1 {
			t.Errorf("afterwards: %v, killed %v", err, vmms.killed)
		}
	})
}

// TestOrdersEndWithTheirSession: the one under way is seen to its end, so that
// the next session finds nothing in motion; those behind it are not begun.
func TestOrdersEndWithTheirSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		vmms := &fakeVMMs{hold: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- ServeOrders(t.Context(), host, vmms, nil) }()
		orders := NewOrders(card, func(spec.VMMStatus) {})
		go func() { _ = orders.Run(t.Context()) }()
		for range 3 {
			go func() {
				if st, err := orders.Start(t.Context(), testOrder()); err == nil {
					t.Errorf("answered %+v after the end", st)
				}
			}()
		}
		synctest.Wait()
		card.Close("restart")
		synctest.Wait()
		if len(served) != 0 || vmms.busy != 1 {
			t.Errorf("serving ended with %d orders under way", vmms.busy)
		}
		close(vmms.hold)
		if err := <-served; !errors.Is(err, ErrPeerBye) {
			t.Errorf("serving ended with %v", err)
		}
		if vmms.busy != 0 || len(vmms.started) != 1 {
			t.Errorf("%d orders are under way, %d were carried out", vmms.busy, len(vmms.started))
		}
	})
}

func TestOrdersDistrustTheHost(t *testing.T) {
	good := spec.VMMStatus{Instance: "web", Generation: testGeneration, State: spec.VMMRunning}
	for name, m := range map[string]controlMessage{
		"an order":             {ID: 1, List: true},
		"an answer to nothing": {ID: 7},
		"an empty event":       {},
		"two in an event":      {VMMs: []spec.VMMStatus{good, good}},
		"a bad name":           {ID: 1, VMMs: []spec.VMMStatus{{Instance: "../x", Generation: testGeneration, State: spec.VMMRunning}}},
		"a bad state":          {ID: 1, VMMs: []spec.VMMStatus{{Instance: "x", Generation: testGeneration, State: "fine"}}},
		"too many":             {ID: 1, VMMs: make([]spec.VMMStatus, MaxVMMs+1)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				card, host := pair(t)
				orders := NewOrders(card, func(spec.VMMStatus) { t.Error("an event was believed") })
				ran := make(chan error, 1)
				go func() { ran <- orders.Run(t.Context()) }()
				go func() { _, _ = orders.List(contextOf(t, time.Minute)) }()
				synctest.Wait()
				b, err := marshal(&m)
				if err != nil {
					t.Fatal(err)
				}
				if err := host.Control().WriteRecord(t.Context(), b); err != nil {
					t.Fatal(err)
				}
				if err := <-ran; !errors.Is(err, ErrProtocol) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestOrderAnsweredForSomethingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		orders := NewOrders(card, func(spec.VMMStatus) {})
		go func() { _ = orders.Run(t.Context()) }()
		go func() {
			b, err := marshal(&controlMessage{ID: 1, VMMs: []spec.VMMStatus{{Instance: "other", Generation: testGeneration, State: spec.VMMRunning}}})
			if err == nil {
				_, err = host.Control().ReadRecord(t.Context(), MaxRecord)
			}
			if err == nil {
				err = host.Control().WriteRecord(t.Context(), b)
			}
			if err != nil {
				t.Error(err)
			}
		}()
		if st, err := orders.Start(t.Context(), testOrder()); err == nil || st != (spec.VMMStatus{}) || !strings.Contains(err.Error(), "something else") {
			t.Errorf("got %+v, %v", st, err)
		}
		card.Close("")
		synctest.Wait()
	})
}

func FuzzControl(f *testing.F) {
	order := testOrder()
	for _, m := range []controlMessage{{ID: 1, Start: &order}, {ID: 2, Kill: &VMMRef{"a", testGeneration}}, {ID: 3, List: true}, {VMMs: (&fakeVMMs{}).List()}} {
		b, err := marshal(&m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseControl(b)
		if (err == nil) == (m == nil) {
			t.Fatalf("message %v with error %v", m, err)
		}
		if err != nil {
			return
		}
		again, err := marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseControl(again); err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("round trip of %+v: %+v, %v", m, back, err)
		}
		_ = m.checkReport()
	})
}

func FuzzOpen(f *testing.F) {
	for _, o := range []Open{testDisk, {Kind: KindDoor}} {
		b, err := marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOpen(b, Host)
		if err != nil {
			if o != (Open{}) {
				t.Fatal("an open together with an error")
			}
			return
		}
		again, err := marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseOpen(again, Host); err != nil || back != o {
			t.Fatalf("round trip of %+v: %+v, %v", o, back, err)
		}
	})
}
