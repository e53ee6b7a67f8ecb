// SPDX-License-Identifier: Apache-2.0

package control

import (
	"strconv"
	"sync"
)

// maxSubjects bounds what an eventQueue holds: every subject a vcard may have,
// several times over.
const maxSubjects = 4 * (MaxDevices + MaxVMMs + MaxDoors + 1)

// eventQueue keeps the newest event of each subject, in the order in which the
// subjects became due. It never blocks and never grows past its bound.
type eventQueue struct {
	wake chan struct{} // holds one element while there may be something

	mu      sync.Mutex
	waiting map[string]Event // guarded by mu
	order   []string         // guarded by mu
}

func newEventQueue() *eventQueue {
	return &eventQueue{wake: make(chan struct{}, 1), waiting: map[string]Event{}}
}

// put queues e; false when too many subjects wait.
func (q *eventQueue) put(e Event) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	key := e.subject()
	if _, ok := q.waiting[key]; !ok {
		if len(q.order) >= maxSubjects {
			return false
		}
		q.order = append(q.order, key)
	}
	q.waiting[key] = e
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns the event due next.
func (q *eventQueue) take() (Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		return Event{}, false
	}
	key := q.order[0]
	q.order = q.order[1:]
	e := q.waiting[key]
	delete(q.waiting, key)
	return e, true
}

func (m *Event) subject() string {
	switch {
	case m.Host != nil:
		return "host"
	case m.VMM != nil:
		return "vmm " + VMMKey(m.VMM)
	case m.Device != nil:
		return "device " + m.Device.Key()
	case m.Door != nil:
		return "door " + strconv.FormatUint(m.Door.Door, 10)
	}
	return ""
}
