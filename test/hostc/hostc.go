// SPDX-License-Identifier: Apache-2.0

// Package hostc compiles the pure headers of the kernel programs with the host's C compiler, so
// that tests can hold them against slow oracles: the liveness rule, the choice of a bucket's second
// path, SipHash and checksums. It is for tests only; nothing that is shipped imports it.
//
// The headers are symbolic links to headers/: the go command then sees when one changes, and builds
// and tests anew.
package hostc

/*
#cgo CFLAGS: -O2 -g -Wall -Werror -Wno-unknown-pragmas -Wno-unused-function

#include <stdlib.h>
#include <string.h>

#include "types.h"
#include "buckets.h"
#include "csum.h"
#include "liveness.h"
#include "siphash.h"

// Where the group and its paths lie in the maps; not 0, so that a mixed-up index finds nothing.
#define HOST_GROUP 7
#define HOST_FIRST 5
#define HOST_EVENTS 64

struct host {
	struct group_state group;
	struct path_state path[PLAIT_MAX_PATHS];
	struct event event[HOST_EVENTS];
	__u64 now;
	__u32 n_paths;
	__u32 n_events;
};

// A call into the rule runs to its end on one thread.
static __thread struct host *current;

static inline struct group_state *live_group(__u32 group)
{
	return group == HOST_GROUP ? &current->group : NULL;
}

static inline struct path_state *live_path(__u32 first, __u32 number)
{
	__u32 i = first + number - HOST_FIRST;

	return i < PLAIT_MAX_PATHS ? &current->path[i] : NULL;
}

static inline __u64 live_now(void)
{
	return current->now;
}

static inline void live_event(struct event *ev)
{
	if (current->n_events < HOST_EVENTS)
		current->event[current->n_events] = *ev;
	current->n_events++;
}

static int host_reply(struct host *h, __u64 now, __u32 number, __u64 round, __u16 report)
{
	current = h;
	h->now = now;
	return live_reply(&h->group, HOST_GROUP, HOST_FIRST, h->n_paths, number, round, report);
}

static int host_request(struct host *h, __u64 now, __u32 number, __u64 round)
{
	current = h;
	h->now = now;
	return live_request(&h->group, &h->path[number], round);
}

static void host_heard(struct host *h, __u64 now, __u32 number)
{
	current = h;
	h->now = now;
	live_heard(&h->group, &h->path[number]);
}

static __u16 host_report(struct host *h, __u32 window)
{
	current = h;
	return live_report(&h->group, HOST_FIRST, h->n_paths, window);
}

static void host_peer_epoch(struct host *h, __u64 now, __u64 epoch)
{
	current = h;
	h->now = now;
	live_peer_epoch(&h->group, HOST_GROUP, HOST_FIRST, h->n_paths, epoch);
}
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/plait-net/plait/maps"
)

// Where a Host's group and first path lie, as its events name them.
const (
	Group     = uint32(C.HOST_GROUP)
	FirstPath = uint32(C.HOST_FIRST)
)

// Limits of the liveness rule (headers/liveness.h).
const (
	MaxMultiplier = uint32(C.LIVE_MAX_MULTIPLIER) // rounds
	MaxRun        = uint64(C.LIVE_MAX_RUN)        // rounds
	CongestedNs   = uint64(C.LIVE_CONGESTED_NS)   // nanoseconds
)

// Reasons for which the rule refuses a probe (enum reason).
const (
	Recorded = int(C.R_NONE)
	Replayed = int(C.R_PROBE_REPLAYED)
	Future   = int(C.R_PROBE_FUTURE)
)

// Reasons for which a path loses fresh (enum lost_reason).
const (
	LostSilent   = uint32(C.LOST_SILENT)
	LostNotHeard = uint32(C.LOST_NOT_HEARD)
)

// Host is the kernel's memory of one group, and the liveness rule that works on it. The zero value
// has no paths. It is not safe for concurrent use.
type Host struct {
	c C.struct_host
}

// NewHost returns a host with n paths (1 to maps.MaxPaths), all silent, with the given multiplier
// in rounds.
func NewHost(n int, multiplier uint32) *Host {
	if n < 1 || n > maps.MaxPaths {
		panic(fmt.Sprintf("hostc: %d paths", n))
	}
	h := &Host{}
	h.c.n_paths = C.__u32(n)
	for i := range n {
		p := h.Path(i)
		p.Multiplier, p.MinMultiplier = multiplier, multiplier
	}
	return h
}

// Group is the group's state, shared with the rule as the map is with the agent.
func (h *Host) Group() *maps.GroupState {
	return (*maps.GroupState)(unsafe.Pointer(&h.c.group))
}

// Path is the state of path number i, shared with the rule.
func (h *Host) Path(i int) *maps.PathState {
	return (*maps.PathState)(unsafe.Pointer(&h.c.path[i]))
}

// Reply records a verified reply to round on a path at now (ns), with the peer's receive report.
// It returns Recorded, Replayed or Future.
func (h *Host) Reply(now uint64, path int, round uint64, report uint16) int {
	return int(C.host_reply(&h.c, C.__u64(now), C.__u32(path), C.__u64(round), C.__u16(report)))
}

// Request records a verified request of the peer's confirmed epoch. It returns Recorded or
// Replayed.
func (h *Host) Request(now uint64, path int, round uint64) int {
	return int(C.host_request(&h.c, C.__u64(now), C.__u32(path), C.__u64(round)))
}

// Heard records that data arrived on a path.
func (h *Host) Heard(now uint64, path int) { C.host_heard(&h.c, C.__u64(now), C.__u32(path)) }

// Report is the receive report for the peer, over its last window rounds.
func (h *Host) Report(window uint32) uint16 { return uint16(C.host_report(&h.c, C.__u32(window))) }

// PeerEpoch records the boot epoch that a reply proved.
func (h *Host) PeerEpoch(now, epoch uint64) { C.host_peer_epoch(&h.c, C.__u64(now), C.__u64(epoch)) }

// Events returns the events since the last call, and forgets them. It panics if there were more
// than fit.
func (h *Host) Events() []maps.Event {
	n := int(h.c.n_events)
	if n == 0 {
		return nil
	}
	if n > len(h.c.event) {
		panic("hostc: events were lost")
	}
	events := make([]maps.Event, n)
	for i := range events {
		events[i] = *(*maps.Event)(unsafe.Pointer(&h.c.event[i]))
	}
	h.c.n_events = 0
	return events
}

// BucketSecond is the second choice of a bucket among the usable paths, one bit a path number.
func BucketSecond(bucket uint32, usable uint64) uint32 {
	return uint32(C.bucket_second(C.__u32(bucket), C.__u64(usable)))
}

// BucketScore is the rendezvous weight of a path number for a bucket.
func BucketScore(bucket, number uint32) uint32 {
	return uint32(C.bucket_score(C.__u32(bucket), C.__u32(number)))
}

// SipHash is SipHash-2-4 of a message under the key k0, k1, fed word by word.
func SipHash(k0, k1 uint64, message []byte) uint64 {
	var v [4]uint64
	state := (*C.__u64)(unsafe.Pointer(&v[0]))
	C.sip_begin(state, C.__u64(k0), C.__u64(k1))
	last := uint64(len(message)) << 56
	for ; len(message) >= 8; message = message[8:] {
		C.sip_word(state, C.__u64(binary.LittleEndian.Uint64(message)))
	}
	for i, x := range message {
		last |= uint64(x) << (8 * i)
	}
	return uint64(C.sip_end(state, C.__u64(last)))
}

// CsumAdd is the one's complement sum of two 32-bit words (RFC 1071).
func CsumAdd(a, b uint32) uint32 { return uint32(C.csum_add(C.__u32(a), C.__u32(b))) }

// CsumFold folds a 32-bit one's complement sum to 16 bits.
func CsumFold(sum uint32) uint16 { return uint16(C.csum_fold(C.__u32(sum))) }

// CsumApply is the checksum field after the sum of what it covers changed by diff (RFC 1624).
func CsumApply(check uint16, diff uint32) uint16 {
	return uint16(C.csum_apply(C.__u16(check), C.__u32(diff)))
}

// CsumWord is the change of the sum when a 16-bit word changes.
func CsumWord(from, to uint16) uint32 { return uint32(C.csum_word(C.__u16(from), C.__u16(to))) }

// CsumFold64 is the sum of the two halves of a 64-bit word.
func CsumFold64(w uint64) uint32 { return uint32(C.csum_fold64(C.__u64(w))) }

// CsumWords4 is the sum of four 32-bit words.
func CsumWords4(w [4]uint32) uint32 {
	return uint32(C.csum_words4((*C.__u32)(unsafe.Pointer(&w[0]))))
}
