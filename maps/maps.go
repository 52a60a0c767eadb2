// SPDX-License-Identifier: Apache-2.0

// Package maps wraps the BPF maps that the agent and the kernel programs share in netip and Go
// types; no raw bytes above it. The maps' comments are in headers/maps.h.
package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/plait-net/plait/bpf"
)

// Names of the maps, in the programs and as pins.
const (
	nameIdentities  = "identities"
	namePairs4      = "pairs4"
	namePairs6      = "pairs6"
	nameGroups      = "groups"
	nameGroupStates = "group_states"
	namePaths       = "paths"
	namePathStates  = "path_states"
	namePathKeys    = "path_key_sets"
	nameTraffic     = "path_traffic"
	nameTagPrefixes = "tag_prefixes"
	nameReasons     = "reasons"
	nameSettings    = "settings_map"
	nameNative      = "native"
	nameEvents      = "events"
)

// Names lists every map of a Set.
func Names() []string {
	return []string{
		nameIdentities, namePairs4, namePairs6, nameGroups, nameGroupStates, namePaths,
		namePathStates, namePathKeys, nameTraffic, nameTagPrefixes, nameReasons, nameSettings, nameNative, nameEvents,
	}
}

// Sizes are the capacities of a Set.
type Sizes struct {
	Groups uint32 // peers times families
	Paths  uint32
}

// DefaultSizes hold 2,048 peers of both families with four paths each, and room to build changed
// groups beside the old ones.
var DefaultSizes = Sizes{Groups: 4096 + 256, Paths: 16384 + 1024}

// Apply sets the capacities in the maps of a program's specification.
func (s Sizes) Apply(spec *ebpf.CollectionSpec) {
	for name, n := range map[string]uint32{
		nameIdentities: s.Groups, nameGroups: s.Groups, nameGroupStates: s.Groups,
		namePairs4: s.Paths, namePairs6: s.Paths, namePaths: s.Paths, namePathStates: s.Paths,
		namePathKeys: s.Paths, nameTraffic: s.Paths,
	} {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = n
		}
	}
}

// Set is all the maps of one data plane.
type Set struct {
	// Maps by name, for loading programs. Owned by the Set.
	Maps map[string]*ebpf.Map

	Groups      *Array[Group]
	GroupStates *Array[GroupState]
	PathStates  *Array[PathState]
	Settings    *Settings
	Native      *NativePorts

	paths    *Array[bpf.EgressPath]
	settings *Array[Settings]
	native   *Array[NativePorts]
}

// New wraps open maps. It takes ownership of them, also when it fails.
func New(m map[string]*ebpf.Map, writable bool) (_ *Set, err error) {
	s := &Set{Maps: m}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, name := range Names() {
		if m[name] == nil {
			return nil, fmt.Errorf("map %s is missing", name)
		}
	}
	if s.Groups, err = newArray[Group](m[nameGroups], writable); err != nil {
		return nil, fmt.Errorf("%s: %w", nameGroups, err)
	}
	if s.GroupStates, err = newArray[GroupState](m[nameGroupStates], writable); err != nil {
		return nil, fmt.Errorf("%s: %w", nameGroupStates, err)
	}
	if s.paths, err = newArray[bpf.EgressPath](m[namePaths], writable); err != nil {
		return nil, fmt.Errorf("%s: %w", namePaths, err)
	}
	if s.PathStates, err = newArray[PathState](m[namePathStates], writable); err != nil {
		return nil, fmt.Errorf("%s: %w", namePathStates, err)
	}
	if s.settings, err = newArray[Settings](m[nameSettings], writable); err != nil {
		return nil, fmt.Errorf("%s: %w", nameSettings, err)
	}
	if s.native, err = newArray[NativePorts](m[nameNative], writable); err != nil {
		return nil, fmt.Errorf("%s: %w", nameNative, err)
	}
	s.Settings, s.Native = s.settings.At(0), s.native.At(0)
	return s, nil
}

// Close unmaps and closes everything; pinned maps live on.
func (s *Set) Close() error {
	errs := []error{
		s.Groups.close(), s.GroupStates.close(), s.paths.close(), s.PathStates.close(),
		s.settings.close(), s.native.close(),
	}
	for _, m := range s.Maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Sizes returns the capacities.
func (s *Set) Sizes() Sizes { return Sizes{Groups: s.Groups.Len(), Paths: s.paths.Len()} }

// Path returns path i.
func (s *Set) Path(i uint32) Path { return decodePath(s.paths.At(i)) }

// SetPath stores path i. Only for a path that is not in use: a reader could see half of it.
func (s *Set) SetPath(i uint32, p Path) { *s.paths.At(i) = p.encode() }

// SetPathLink changes next hop and interface of a path in use, in an order that is safe for a
// reader at any point: the path cannot be sent on until all is written.
func (s *Set) SetPathLink(i uint32, ifindex int, nextHop netip.Addr) {
	e, p := s.paths.At(i), Path{NextHop: nextHop}
	atomic.StoreUint32(&e.Ifindex, 0)
	n := p.encode()
	for w := range e.Nexthop.A {
		atomic.StoreUint32(&e.Nexthop.A[w], n.Nexthop.A[w])
	}
	e.NexthopFamily = n.NexthopFamily // a byte does not tear
	atomic.StoreUint32(&e.Ifindex, uint32(ifindex))
}

// SetKeys stores the keys of path i.
func (s *Set) SetKeys(i uint32, k PathKeys) error {
	return s.Maps[namePathKeys].Put(i, k)
}

// SetIdentity publishes a peer's identity: from now on egress uses its group.
func (s *Set) SetIdentity(a netip.Addr, group uint32) error {
	return s.Maps[nameIdentities].Put(identityKey(a), group)
}

// DeleteIdentity withdraws a peer's identity. A missing one is no error.
func (s *Set) DeleteIdentity(a netip.Addr) error {
	return ignoreMissing(s.Maps[nameIdentities].Delete(identityKey(a)))
}

// Identities returns the published identities and their groups.
func (s *Set) Identities() (map[netip.Addr]uint32, error) {
	out := map[netip.Addr]uint32{}
	var k bpf.EgressIdentityKey
	var group uint32
	it := s.Maps[nameIdentities].Iterate()
	for it.Next(&k, &group) {
		out[addrOf(k.Addr.A, IPv6).Unmap()] = group
	}
	return out, it.Err()
}

// SetPair publishes a locator pair: from now on ingress restores what arrives for it.
func (s *Set) SetPair(local, remote netip.Addr, path uint32) error {
	if local.Is4() {
		return s.Maps[namePairs4].Put(pair4(local, remote), path)
	}
	return s.Maps[namePairs6].Put(pair6(local, remote), path)
}

// DeletePair withdraws a locator pair. A missing one is no error.
func (s *Set) DeletePair(local, remote netip.Addr) error {
	if local.Is4() {
		return ignoreMissing(s.Maps[namePairs4].Delete(pair4(local, remote)))
	}
	return ignoreMissing(s.Maps[namePairs6].Delete(pair6(local, remote)))
}

// Pair is a published locator pair.
type Pair struct{ Local, Remote netip.Addr }

// Pairs returns the published locator pairs and their paths.
func (s *Set) Pairs() (map[Pair]uint32, error) {
	out := map[Pair]uint32{}
	var path uint32
	var k4 bpf.EgressPair4Key
	it := s.Maps[namePairs4].Iterate()
	for it.Next(&k4, &path) {
		out[Pair{addrOf([4]uint32{k4.Local}, IPv4), addrOf([4]uint32{k4.Remote}, IPv4)}] = path
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	var k6 bpf.EgressPair6Key
	it = s.Maps[namePairs6].Iterate()
	for it.Next(&k6, &path) {
		out[Pair{addrOf(k6.Local.A, IPv6), addrOf(k6.Remote.A, IPv6)}] = path
	}
	return out, it.Err()
}

// Traffic returns the traffic of paths 0 to n-1, summed over the CPUs.
func (s *Set) Traffic(n uint32) ([]PathStats, error) {
	m := s.Maps[nameTraffic]
	out := make([]PathStats, 0, n)
	if n == 0 {
		return out, nil
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	var cursor ebpf.MapBatchCursor
	chunk := min(n, 1024)
	keys, values := make([]uint32, chunk), make([]PathStats, int(chunk)*cpus)
	for uint32(len(out)) < n {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("reading traffic: %w", err)
		}
		for i := range got {
			var t PathStats
			for _, v := range values[i*cpus : (i+1)*cpus] {
				t.TxPackets += v.TxPackets
				t.TxBytes += v.TxBytes
				t.RxPackets += v.RxPackets
				t.RxBytes += v.RxBytes
				t.TxMoved += v.TxMoved
				t.Requests += v.Requests
			}
			out = append(out, t)
		}
		if err != nil {
			break
		}
	}
	return out[:min(int(n), len(out))], nil
}

// ResetTraffic zeroes the traffic of path i, before the index is used for another path.
func (s *Set) ResetTraffic(i uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return s.Maps[nameTraffic].Put(i, make([]PathStats, cpus))
}

// Reasons returns how many packets each reason dropped or refused, zeros included.
func (s *Set) Reasons() (map[Reason]uint64, error) {
	out := make(map[Reason]uint64, len(reasonNames))
	var perCPU []uint64
	for r := range reasonNames {
		if err := s.Maps[nameReasons].Lookup(uint32(r), &perCPU); err != nil {
			return nil, fmt.Errorf("reading counter %s: %w", r, err)
		}
		for _, n := range perCPU {
			out[r] += n
		}
	}
	return out, nil
}

// EventMap is the ring buffer of Events.
func (s *Set) EventMap() *ebpf.Map { return s.Maps[nameEvents] }

// SetPort marks or clears a port of a native-port bitmap.
func SetPort(ports *[1024]uint64, port uint16, native bool) {
	if native {
		atomic.OrUint64(&ports[port>>6], 1<<(port&63))
	} else {
		atomic.AndUint64(&ports[port>>6], ^(uint64(1) << (port & 63)))
	}
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
