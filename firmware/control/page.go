// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"slices"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Page cuts the page that req asks for out of a snapshot of Status with the
// given number, not 0. It sorts st's lists.
func Page(st *Status, snapshot uint64, req *StatusRequest) *StatusReply {
	slices.SortFunc(st.Devices, func(a, b Device) int { return cmp.Compare(a.Key(), b.Key()) })
	slices.SortFunc(st.VMMs, func(a, b spec.VMMStatus) int { return cmp.Compare(VMMKey(&a), VMMKey(&b)) })
	out := &StatusReply{Snapshot: snapshot, Status: Status{Host: st.Host, Doors: st.Doors}}
	for i := range st.Devices {
		if st.Devices[i].Key() <= req.AfterDevice {
			continue
		}
		if len(out.Devices) == pageSize {
			out.More = true
			break
		}
		out.Devices = append(out.Devices, st.Devices[i])
	}
	for i := range st.VMMs {
		if VMMKey(&st.VMMs[i]) <= req.AfterVMM {
			continue
		}
		if len(out.VMMs) == pageSize {
			out.More = true
			break
		}
		out.VMMs = append(out.VMMs, st.VMMs[i])
	}
	return out
}
