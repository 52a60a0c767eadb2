// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab/bpf"
)

// Counters count what passed one end of a veth pair, in the direction out of the cable. In the virtual
// form a super-packet counts as one.
type Counters struct {
	Packets uint64 `json:"packets"` // passed on
	Bytes   uint64 `json:"bytes"`   // of those, Ethernet header included
	Cut     uint64 `json:"cut"`     // dropped by a cut
	Lost    uint64 `json:"lost"`    // dropped at random, see Impairment.Loss
	Longest int    `json:"longest"` // bytes of the longest frame, Ethernet header included
}

// maps are the lab's maps. The configuration is written through shared memory: one aligned 64-bit
// word at a time, so that a program sees the old value or the new one, at once.
type maps struct {
	counters   *ebpf.Map
	fabricsMap *ebpf.Map
	portsMap   *ebpf.Map
	fabricsMem []byte
	portsMem   []byte
	fabrics    []bpf.PortFabric
	ports      []bpf.PortPort
}

// portIndex is the number of the fabric's port to host; hostIndex that of the other end.
func (l *Lab) portIndex(f *Fabric, h *Host) int { return (f.Number-1)*len(l.Hosts) + h.Number - 1 }
func (l *Lab) hostIndex(f *Fabric, h *Host) int {
	return len(l.Fabrics)*len(l.Hosts) + l.portIndex(f, h)
}

// createMaps makes and pins the lab's maps.
func (l *Lab) createMaps() (*maps, error) {
	spec, err := bpf.LoadPort()
	if err != nil {
		return nil, err
	}
	ends := uint32(2 * len(l.Fabrics) * len(l.Hosts))
	spec.Maps[bpf.PortMapLabFabrics].MaxEntries = uint32(len(l.Fabrics))
	spec.Maps[bpf.PortMapLabPorts].MaxEntries = ends
	spec.Maps[bpf.PortMapLabCounters].MaxEntries = ends
	for _, m := range []string{bpf.PortMapLabFabrics, bpf.PortMapLabPorts, bpf.PortMapLabCounters} {
		created, err := ebpf.NewMap(spec.Maps[m])
		if err != nil {
			return nil, fmt.Errorf("creating map %s: %w", m, err)
		}
		err = created.Pin(filepath.Join(l.bpffs(), m))
		_ = created.Close()
		if err != nil {
			return nil, fmt.Errorf("pinning map %s: %w", m, err)
		}
	}
	return l.openMaps()
}

// openMaps opens the pinned maps.
func (l *Lab) openMaps() (_ *maps, err error) {
	m := &maps{}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	for name, dst := range map[string]**ebpf.Map{
		bpf.PortMapLabFabrics: &m.fabricsMap, bpf.PortMapLabPorts: &m.portsMap, bpf.PortMapLabCounters: &m.counters,
	} {
		if *dst, err = ebpf.LoadPinnedMap(filepath.Join(l.bpffs(), name), nil); err != nil {
			return nil, fmt.Errorf("opening map %s of lab %s: %w", name, l.Name, err)
		}
	}
	if m.fabricsMem, m.fabrics, err = mapMemory[bpf.PortFabric](m.fabricsMap); err != nil {
		return nil, err
	}
	if m.portsMem, m.ports, err = mapMemory[bpf.PortPort](m.portsMap); err != nil {
		return nil, err
	}
	return m, nil
}

// mapMemory maps the values of an array of T into memory.
func mapMemory[T any](m *ebpf.Map) ([]byte, []T, error) {
	var zero T
	n := int(m.MaxEntries())
	page := unix.Getpagesize()
	size := (n*int(unsafe.Sizeof(zero)) + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mapping %s into memory: %w", m, err)
	}
	return mem, unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), n), nil
}

func (m *maps) close() {
	for _, c := range []*ebpf.Map{m.counters, m.fabricsMap, m.portsMap} {
		if c != nil {
			_ = c.Close()
		}
	}
	for _, mem := range [][]byte{m.fabricsMem, m.portsMem} {
		if mem != nil {
			_ = unix.Munmap(mem)
		}
	}
}

// config returns the lab's maps, opened once. The caller holds l.mu.
func (l *Lab) config() (*maps, error) {
	if l.maps == nil {
		m, err := l.openMaps()
		if err != nil {
			return nil, err
		}
		l.maps = m
	}
	return l.maps, nil
}

// Counters returns what entered the fabric from the host.
func (l *Lab) Counters(fabric, host string) (Counters, error) {
	f, h, err := l.find(fabric, host)
	if err != nil {
		return Counters{}, err
	}
	return l.readCounters(l.portIndex(f, h))
}

// UplinkCounters returns what reached the host's uplink from the fabric. It needs the wire form, and
// that the lab was made without FreeUplinks.
func (l *Lab) UplinkCounters(fabric, host string) (Counters, error) {
	if l.Form != Wire || l.FreeUplinks {
		return Counters{}, errors.New("only the wire form without free uplinks counts at the uplinks")
	}
	f, h, err := l.find(fabric, host)
	if err != nil {
		return Counters{}, err
	}
	return l.readCounters(l.hostIndex(f, h))
}

func (l *Lab) readCounters(index int) (Counters, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, err := l.config()
	if err != nil {
		return Counters{}, err
	}
	var cpus []bpf.PortCounters
	if err := m.counters.Lookup(uint32(index), &cpus); err != nil {
		return Counters{}, fmt.Errorf("reading counters: %w", err)
	}
	var sum Counters
	for _, c := range cpus {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
		sum.Cut += c.Cut
		sum.Lost += c.Lost
		sum.Longest = max(sum.Longest, int(c.Longest))
	}
	return sum, nil
}

func (l *Lab) find(fabric, host string) (*Fabric, *Host, error) {
	f := l.Fabric(fabric)
	if f == nil {
		return nil, nil, fmt.Errorf("lab %s has no fabric %q: want f1 to f%d", l.Name, fabric, len(l.Fabrics))
	}
	h := l.Host(host)
	if h == nil {
		return nil, nil, fmt.Errorf("lab %s has no host %q", l.Name, host)
	}
	return f, h, nil
}

// loadProgram loads one of the lab's programs for one end of a veth pair.
func (l *Lab) loadProgram(name string, f *Fabric, index int, m *maps) (*ebpf.Program, error) {
	spec, err := bpf.LoadPort()
	if err != nil {
		return nil, err
	}
	flat := uint32(0)
	if l.Flat {
		flat = 1
	}
	for v, value := range map[string]uint32{
		bpf.PortVarThisFabric: uint32(f.Number - 1), bpf.PortVarThisPort: uint32(index), bpf.PortVarIsFlat: flat,
	} {
		if err := spec.Variables[v].Set(value); err != nil {
			return nil, fmt.Errorf("setting %s: %w", v, err)
		}
	}
	// The specification's sizes must be those of the maps that take their place.
	replace := map[string]*ebpf.Map{
		bpf.PortMapLabFabrics: m.fabricsMap, bpf.PortMapLabPorts: m.portsMap, bpf.PortMapLabCounters: m.counters,
	}
	for n, r := range replace {
		spec.Maps[n].MaxEntries = r.MaxEntries()
	}
	for n := range spec.Programs {
		if n != name {
			delete(spec.Programs, n)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("loading program %s: %w", name, err)
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// attachPort attaches a program to interface ifindex of the namespace the thread is in, and pins it.
func (l *Lab) attach(name string, f *Fabric, index, ifindex int, m *maps) error {
	prog, err := l.loadProgram(name, f, index, m)
	if err != nil {
		return err
	}
	defer func() { _ = prog.Close() }()
	var ln link.Link
	if prog.Type() == ebpf.XDP {
		ln, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: link.XDPDriverMode})
	} else {
		ln, err = link.AttachTCX(link.TCXOptions{Program: prog, Interface: ifindex, Attach: ebpf.AttachTCXIngress})
	}
	if err != nil {
		return fmt.Errorf("attaching %s: %w", name, err)
	}
	defer func() { _ = ln.Close() }()
	if err := ln.Pin(filepath.Join(l.bpffs(), fmt.Sprintf("link_%d", index))); err != nil {
		return fmt.Errorf("pinning %s: %w", name, err)
	}
	return nil
}

// store writes one word of the configuration.
func store(word *uint64, value uint64) { atomic.StoreUint64(word, value) }
