// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	gomaps "maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/maps"
)

var sizes = maps.Sizes{Groups: 8, Paths: 64}

// host is a network namespace with a BPF file system, for one test.
type host struct {
	t     *testing.T
	bpffs string
	spare int // makes names of other ends
}

// newHost puts the calling test into a network and a mount namespace without names, for good: its thread ends with the
// test, and with it both. A subtest would be another goroutine and not be there.
func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes namespaces and has to run as root")
	}
	runtime.LockOSThread() // and never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Fatalf("making namespaces: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, bpffs: t.TempDir()}
	h.mount()
	t.Cleanup(func() {
		if err := unix.Unmount(h.bpffs, 0); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *host) mount() {
	h.t.Helper()
	if err := unix.Mount("bpf", h.bpffs, "bpf", 0, ""); err != nil {
		h.t.Fatalf("mounting a BPF file system: %v", err)
	}
}

// remount makes the file system read-only or writable again.
func (h *host) remount(readOnly bool) {
	h.t.Helper()
	var flags uintptr = unix.MS_REMOUNT
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("bpf", h.bpffs, "bpf", flags, ""); err != nil {
		h.t.Fatal(err)
	}
}

// open is Open. The Loader is closed with the test, if it has not been before.
func (h *host) open() *Loader {
	h.t.Helper()
	l, err := Open(h.bpffs, sizes, slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = l.Close() })
	return l
}

// veth makes an interface that is up and returns its index.
func (h *host) veth(name string) int {
	h.t.Helper()
	h.spare++
	a := netlink.NewLinkAttrs()
	a.Name = name
	peer := fmt.Sprintf("other%d", h.spare)
	h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: peer}))
	index := 0
	for _, n := range []string{peer, name} {
		l, err := netlink.LinkByName(n)
		h.must(err)
		h.must(netlink.LinkSetUp(l))
		index = l.Attrs().Index
	}
	return index
}

func (h *host) remove(name string) {
	h.t.Helper()
	l, err := netlink.LinkByName(name)
	h.must(err)
	h.must(netlink.LinkDel(l))
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// attach is AttachUplink, which must succeed with that hook.
func (h *host) attach(l *Loader, name string, index int, driver string, want Want, expect Hook) {
	h.t.Helper()
	got, err := l.AttachUplink(name, index, driver, want)
	h.must(err)
	if got != expect {
		h.t.Errorf("the hook of %s is %+v, want %+v", name, got, expect)
	}
}

// tcx returns the programs at a hook of an interface, first the first.
func (h *host) tcx(index int, at ebpf.AttachType) (ids []ebpf.ProgramID) {
	h.t.Helper()
	q, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
	h.must(err)
	for _, p := range q.Programs {
		ids = append(ids, p.ID)
	}
	return ids
}

// xdp returns the XDP program of an interface, 0 if there is none.
func (h *host) xdp(index int) ebpf.ProgramID {
	h.t.Helper()
	l, err := netlink.LinkByIndex(index)
	h.must(err)
	if x := l.Attrs().Xdp; x != nil && x.Attached {
		if x.AttachMode != 1 { // XDP_ATTACHED_DRV
			h.t.Errorf("XDP of %s is attached in mode %d, want native", l.Attrs().Name, x.AttachMode)
		}
		return ebpf.ProgramID(x.ProgId)
	}
	return 0
}

// attached wants exactly these programs on an interface, in the tc ingress hook and in XDP.
func (h *host) attached(index int, tc, xdp *ebpf.Program) {
	h.t.Helper()
	var want []ebpf.ProgramID
	if tc != nil {
		want = append(want, programID(h.t, tc))
	}
	if got := h.tcx(index, ebpf.AttachTCXIngress); !slices.Equal(got, want) {
		h.t.Errorf("programs %v at tc ingress of interface %d, want %v", got, index, want)
	}
	var wantXDP ebpf.ProgramID
	if xdp != nil {
		wantXDP = programID(h.t, xdp)
	}
	if got := h.xdp(index); got != wantXDP {
		h.t.Errorf("XDP program %d on interface %d, want %d", got, index, wantXDP)
	}
}

func programID(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := info.ID()
	if !ok {
		t.Fatal("the kernel tells no program ids")
	}
	return id
}

// mapIDs returns the ids of the maps by name.
func mapIDs(t *testing.T, l *Loader) map[string]ebpf.MapID {
	t.Helper()
	ids := map[string]ebpf.MapID{}
	for name, m := range l.Set.Maps {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids[name], _ = info.ID()
	}
	return ids
}

// linkIDs returns the ids of the pinned links by pin, and the ids of their programs.
func (h *host) linkIDs() (links map[string]link.ID, programs map[string]ebpf.ProgramID) {
	h.t.Helper()
	links, programs = map[string]link.ID{}, map[string]ebpf.ProgramID{}
	entries, err := os.ReadDir(linksDir(h.bpffs))
	h.must(err)
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(linksDir(h.bpffs), e.Name()), nil)
		h.must(err)
		info, err := l.Info()
		h.must(err)
		h.must(l.Close())
		links[e.Name()], programs[e.Name()] = info.ID, info.Program
	}
	return links, programs
}

// names lists what lies in a directory.
func (h *host) names(dir string) (out []string) {
	h.t.Helper()
	entries, err := os.ReadDir(dir)
	h.must(err)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// layout is everything under plait's directory when all is well.
func (h *host) layout(links ...string) {
	h.t.Helper()
	if got := h.names(Root(h.bpffs)); !slices.Equal(got, []string{"v1"}) {
		h.t.Errorf("plait's directory holds %v, want v1", got)
	}
	want := append(maps.Names(), "links")
	slices.Sort(want)
	if got := h.names(dir(h.bpffs)); !slices.Equal(got, want) {
		h.t.Errorf("pinned are %v, want %v", got, want)
	}
	slices.Sort(links)
	if got := h.names(linksDir(h.bpffs)); !slices.Equal(got, links) {
		h.t.Errorf("pinned links are %v, want %v", got, links)
	}
	for _, d := range []string{Root(h.bpffs), dir(h.bpffs), linksDir(h.bpffs)} {
		info, err := os.Stat(d)
		h.must(err)
		if info.Mode().Perm() != 0o700 {
			h.t.Errorf("%s has mode %04o, want 0700", d, info.Mode().Perm())
		}
	}
}

// The pins of plait0, and hooks as AttachUplink reports them.
var (
	plait0Pins = []string{"egress", "far-end"}
	byVeth     = Hook{"tc", "driver veth"}
	byConfig   = Hook{"tc", "configured"}
	byXDP      = Hook{Kind: "xdp"}
	byForeign  = Hook{"tc", "another XDP program is attached"}
)

// TestLayoutVersion: the directory's version is that of the shared types.
func TestLayoutVersion(t *testing.T) {
	text, err := os.ReadFile("../headers/types.h")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`#define PLAIT_LAYOUT_VERSION[\s\\]+(\d+)`).FindSubmatch(text)
	if m == nil || string(m[1]) != fmt.Sprint(layoutVersion) {
		t.Errorf("%s, want %d", m, layoutVersion)
	}
}

// TestCreate: the first Open makes all maps in the sizes asked for, and attaches nothing.
func TestCreate(t *testing.T) {
	h := newHost(t)
	index := h.veth("up1")
	l := h.open()
	if !l.Created || l.Set.Sizes() != sizes {
		t.Errorf("created %v, sizes %+v, want new maps of %+v", l.Created, l.Set.Sizes(), sizes)
	}
	h.layout()
	h.attached(index, nil, nil)
}

// TestAdopt: the next Open takes over maps and links with what they hold, and replaces programs in their links.
func TestAdopt(t *testing.T) {
	h := newHost(t)
	near, far, up1, up2 := h.veth("plait0"), h.veth("far"), h.veth("up1"), h.veth("up2")
	attach := func(l *Loader) {
		t.Helper()
		h.must(l.AttachPlait0(near, far))
		h.attach(l, "up1", up1, "veth", Auto, byVeth)
		h.attach(l, "up2", up2, "veth", XDP, byXDP)
	}
	first := h.open()
	attach(first)
	first.Set.Settings.Epoch, first.Set.GroupStates.At(7).Sent = 42, 99
	ids := mapIDs(t, first)
	links, programs := h.linkIDs()
	pins := append([]string{"uplink-up1-tc", "uplink-up2-xdp"}, plait0Pins...)
	h.layout(pins...)
	h.must(first.Close())

	// What is pinned works on without the process that made it.
	if got := h.tcx(near, ebpf.AttachTCXEgress); !slices.Equal(got, []ebpf.ProgramID{programs["egress"]}) {
		t.Errorf("programs %v at egress of plait0, want %d", got, programs["egress"])
	}
	if got := h.xdp(up2); got != programs["uplink-up2-xdp"] {
		t.Errorf("XDP program %d, want %d", got, programs["uplink-up2-xdp"])
	}

	second, err := Open(h.bpffs, maps.Sizes{Groups: 16, Paths: 16}, slog.New(slog.DiscardHandler))
	h.must(err)
	t.Cleanup(func() { _ = second.Close() })
	if second.Created || second.Set.Sizes() != sizes {
		t.Errorf("created %v, sizes %+v, want the maps that are there, of %+v", second.Created, second.Set.Sizes(), sizes)
	}
	if got := mapIDs(t, second); !gomaps.Equal(got, ids) {
		t.Errorf("maps %v, want %v", got, ids)
	}
	if e, s := second.Set.Settings.Epoch, second.Set.GroupStates.At(7).Sent; e != 42 || s != 99 {
		t.Errorf("the maps hold %d and %d, want 42 and 99", e, s)
	}
	if _, same := h.linkIDs(); !gomaps.Equal(same, programs) {
		t.Errorf("Open alone changed programs: %v, were %v", same, programs)
	}
	attach(second)
	again, replaced := h.linkIDs()
	if !gomaps.Equal(again, links) {
		t.Errorf("links %v, want the same as before, %v", again, links)
	}
	want := map[string]ebpf.ProgramID{
		"egress": programID(t, second.egress.PlaitEgress), "far-end": programID(t, second.egress.PlaitFarEnd),
		"uplink-up1-tc": programID(t, second.ingressT.PlaitIngressTc), "uplink-up2-xdp": programID(t, second.ingressX.PlaitIngressXdp),
	}
	if !gomaps.Equal(replaced, want) {
		t.Errorf("programs %v, want the new ones, %v", replaced, want)
	}
	h.layout(pins...)
}

// TestPlait0: egress and far end are where they belong.
func TestPlait0(t *testing.T) {
	h := newHost(t)
	near, far := h.veth("plait0"), h.veth("far")
	l := h.open()
	h.must(l.AttachPlait0(near, far))
	for _, c := range []struct {
		index   int
		at      ebpf.AttachType
		program *ebpf.Program
	}{
		{near, ebpf.AttachTCXEgress, l.egress.PlaitEgress},
		{near, ebpf.AttachTCXIngress, nil},
		{far, ebpf.AttachTCXIngress, l.egress.PlaitFarEnd},
		{far, ebpf.AttachTCXEgress, nil},
	} {
		var want []ebpf.ProgramID
		if c.program != nil {
			want = append(want, programID(t, c.program))
		}
		if got := h.tcx(c.index, c.at); !slices.Equal(got, want) {
			t.Errorf("programs %v at %v of interface %d, want %v", got, c.at, c.index, want)
		}
	}
	// A pair that is made anew gets programs again.
	h.remove("plait0")
	near = h.veth("plait0")
	h.must(l.AttachPlait0(near, far))
	if got := h.tcx(near, ebpf.AttachTCXEgress); !slices.Equal(got, []ebpf.ProgramID{programID(t, l.egress.PlaitEgress)}) {
		t.Errorf("programs %v at egress of the new plait0", got)
	}
	if err := l.AttachPlait0(1<<20, far); err == nil {
		t.Error("attached to an interface that does not exist")
	}
}

// TestCrashWhileCreating: what a crash half-way through left behind is cleared away.
func TestCrashWhileCreating(t *testing.T) {
	h := newHost(t)
	left := filepath.Join(Root(h.bpffs), "v1-new")
	h.must(os.MkdirAll(filepath.Join(left, "links"), 0o700))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	h.must(err)
	h.must(m.Pin(filepath.Join(left, "groups")))
	h.must(m.Close())
	if l := h.open(); !l.Created {
		t.Error("half-made pins were adopted")
	}
	h.layout()
}

// TestHalfMade: an empty directory is not a data plane.
func TestHalfMade(t *testing.T) {
	h := newHost(t)
	h.must(os.MkdirAll(linksDir(h.bpffs), 0o700))
	if _, err := Maps(h.bpffs, false); !errors.Is(err, ErrNotRunning) {
		t.Errorf("%v, want ErrNotRunning", err)
	}
	if l := h.open(); !l.Created {
		t.Error("an empty directory was adopted")
	}
	h.layout()
}

// TestIncompletePins: where one map is missing nothing can be adopted. What is attached goes on and is refused, until Remove;
// pins without programs are replaced.
func TestIncompletePins(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	all := maps.Names()
	for _, name := range []string{all[0], all[len(all)/2], all[len(all)-1]} {
		h.must(Remove(h.bpffs))
		first := h.open()
		h.attach(first, "up1", up1, "veth", Auto, byVeth)
		h.must(os.Remove(filepath.Join(dir(h.bpffs), name)))
		if _, err := Maps(h.bpffs, true); !errors.Is(err, ErrNotRunning) {
			t.Errorf("without %s: %v, want ErrNotRunning", name, err)
		}
		if _, err := Open(h.bpffs, sizes, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "incomplete") {
			t.Errorf("without %s: %v, want a refusal", name, err)
		}
		h.attached(up1, first.ingressT.PlaitIngressTc, nil)
		h.must(first.DetachUplink("up1"))
		h.must(first.Close())
		second := h.open()
		if !second.Created {
			t.Errorf("without %s: pins were adopted", name)
		}
		h.attach(second, "up1", up1, "veth", Auto, byVeth)
		h.attached(up1, second.ingressT.PlaitIngressTc, nil)
		h.layout("uplink-up1-tc")
		h.must(second.Close())
	}
}

// TestCrashBetweenAttachAndPin: an attached program whose link could not be pinned does not stay, and a retry succeeds.
func TestCrashBetweenAttachAndPin(t *testing.T) {
	h := newHost(t)
	near, far, up1 := h.veth("plait0"), h.veth("far"), h.veth("up1")
	l := h.open()
	h.remount(true)
	for _, want := range []Want{TC, XDP} {
		if hook, err := l.AttachUplink("up1", up1, "e1000", want); !errors.Is(err, unix.EROFS) {
			t.Errorf("%+v, %v, want a read-only file system", hook, err)
		}
	}
	if err := l.AttachPlait0(near, far); !errors.Is(err, unix.EROFS) {
		t.Errorf("%v, want a read-only file system", err)
	}
	h.attached(up1, nil, nil)
	h.attached(far, nil, nil)
	h.remount(false)
	h.attach(l, "up1", up1, "e1000", TC, byConfig)
	h.must(l.AttachPlait0(near, far))
	h.attached(up1, l.ingressT.PlaitIngressTc, nil)
	h.layout(append([]string{"uplink-up1-tc"}, plait0Pins...)...)
}

// TestReadOnly: a read-only file system is refused with what to do, and a data plane on it works on.
func TestReadOnly(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	first := h.open()
	h.attach(first, "up1", up1, "veth", Auto, byVeth)
	h.must(first.Close())
	links, programs := h.linkIDs()
	h.remount(true)
	l, err := Open(h.bpffs, sizes, slog.New(slog.DiscardHandler))
	if !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "mount -o remount,rw "+h.bpffs) || l != nil {
		t.Errorf("%v, want ErrNoBPFFS with the command that mends it", err)
	}
	if got := h.tcx(up1, ebpf.AttachTCXIngress); !slices.Equal(got, []ebpf.ProgramID{programs["uplink-up1-tc"]}) {
		t.Errorf("programs %v, want %d", got, programs["uplink-up1-tc"])
	}
	h.remount(false)
	sameLinks, samePrograms := h.linkIDs()
	if !gomaps.Equal(sameLinks, links) || !gomaps.Equal(samePrograms, programs) {
		t.Error("links changed")
	}
	if l := h.open(); l.Created {
		t.Error("pins were not adopted")
	}
}

// TestNoBPFFS: where there is none it is said how to mount one, and nothing is made.
func TestNoBPFFS(t *testing.T) {
	plain := t.TempDir()
	file := filepath.Join(plain, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{plain, file, filepath.Join(plain, "missing")} {
		l, err := Open(place, sizes, slog.New(slog.DiscardHandler))
		if !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "mount -t bpf bpf "+place) || l != nil {
			t.Errorf("%s: %v, want ErrNoBPFFS with the command that mends it", place, err)
		}
		if place == file {
			continue
		}
		if _, err := Maps(place, false); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v, want ErrNotRunning", place, err)
		}
		if err := Remove(place); err != nil {
			t.Errorf("%s: %v", place, err)
		}
	}
	if entries, err := os.ReadDir(plain); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: something was made", entries, err)
	}
}

// TestNames: interfaces may have names that a BPF file system does not take, or that look like our pins.
func TestNames(t *testing.T) {
	h := newHost(t)
	l := h.open()
	var want, pins []string
	for _, name := range []string{"up.100", "a..b", "x-tc", "x-xdp", "x", "uplink-y", "egress"} {
		index := h.veth(name)
		hook, w := byVeth, Auto
		if strings.HasPrefix(name, "x-tc") || name == "up.100" {
			hook, w = byXDP, XDP
		}
		h.attach(l, name, index, "veth", w, hook)
		want = append(want, name)
		pins = append(pins, "uplink-"+strings.ReplaceAll(name, ".", ":")+"-"+hook.Kind)
	}
	h.layout(pins...)
	got, err := l.Uplinks()
	h.must(err)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("uplinks %v, want %v", got, want)
	}
	for _, name := range want {
		h.must(l.DetachUplink(name))
		link, err := netlink.LinkByName(name)
		h.must(err)
		h.attached(link.Attrs().Index, nil, nil)
	}
	h.must(l.DetachUplink("never-there"))
	h.layout()
}

// TestInterfaceRemovedAndAdded: an interface that comes back is attached to again; the link of the old one is dead.
func TestInterfaceRemovedAndAdded(t *testing.T) {
	h := newHost(t)
	l := h.open()
	for _, c := range []struct {
		want Want
		hook Hook
		pin  string
	}{{TC, byConfig, "uplink-up1-tc"}, {XDP, byXDP, "uplink-up1-xdp"}} {
		first := h.veth("up1")
		h.attach(l, "up1", first, "veth", c.want, c.hook)
		links, _ := h.linkIDs()
		h.remove("up1")
		second := h.veth("up1")
		if second == first {
			t.Fatal("the new interface has the old one's index")
		}
		h.attach(l, "up1", second, "veth", c.want, c.hook)
		again, _ := h.linkIDs()
		if again[c.pin] == links[c.pin] {
			t.Errorf("%s: the link is still the one of the interface that is gone", c.pin)
		}
		if c.want == TC {
			h.attached(second, l.ingressT.PlaitIngressTc, nil)
		} else {
			h.attached(second, nil, l.ingressX.PlaitIngressXdp)
		}
		h.layout(c.pin)
		h.must(l.DetachUplink("up1"))
		h.remove("up1")
	}
	if hook, err := l.AttachUplink("gone", 1<<20, "veth", Auto); err == nil {
		t.Errorf("%+v on an interface that does not exist", hook)
	}
	h.layout()
}

// foreign attaches another program's XDP.
func (h *host) foreign(index int) (*ebpf.Program, link.Link) {
	h.t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	h.must(err)
	h.t.Cleanup(func() { _ = p.Close() })
	l, err := link.AttachXDP(link.XDPOptions{Interface: index, Program: p, Flags: link.XDPDriverMode})
	h.must(err)
	h.t.Cleanup(func() { _ = l.Close() })
	return p, l
}

// TestForeignXDP: another program's XDP stays; tc is used and the reason is said. Once it is gone XDP is used.
func TestForeignXDP(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	theirs, lnk := h.foreign(up1)
	l := h.open()
	for _, want := range []Want{Auto, XDP} {
		h.attach(l, "up1", up1, "e1000", want, byForeign)
		h.attached(up1, l.ingressT.PlaitIngressTc, theirs)
		h.layout("uplink-up1-tc")
	}
	h.must(lnk.Close())
	h.attach(l, "up1", up1, "e1000", Auto, byXDP)
	h.attached(up1, nil, l.ingressX.PlaitIngressXdp)
	h.layout("uplink-up1-xdp")
}

// TestForeignXDPByNetlink: so does one that was attached the older way, as ip link does.
func TestForeignXDPByNetlink(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	theirs, lnk := h.foreign(up1)
	h.must(lnk.Close())
	nl, err := netlink.LinkByIndex(up1)
	h.must(err)
	h.must(netlink.LinkSetXdpFdWithFlags(nl, theirs.FD(), 1<<2)) // XDP_FLAGS_DRV_MODE
	l := h.open()
	for _, want := range []Want{Auto, XDP} {
		h.attach(l, "up1", up1, "e1000", want, byForeign)
		h.attached(up1, l.ingressT.PlaitIngressTc, theirs)
	}
}

// TestNoNativeXDP: an interface whose driver has none gets tc, or an error if XDP was asked for.
func TestNoNativeXDP(t *testing.T) {
	h := newHost(t)
	l := h.open()
	const lo = 1
	h.attach(l, "lo", lo, "", Auto, Hook{"tc", "driver has no native XDP"})
	h.attached(lo, l.ingressT.PlaitIngressTc, nil)
	if hook, err := l.AttachUplink("lo", lo, "", XDP); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("%+v, %v, want that it is not supported", hook, err)
	}
}

// TestLargeMTU: XDP with frags takes any MTU of the other end, or says why not.
func TestLargeMTU(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	for _, index := range []int{up1, up1 - 1, up1 + 1} { // both ends
		if nl, err := netlink.LinkByIndex(index); err == nil && nl.Type() == "veth" {
			h.must(netlink.LinkSetMTU(nl, 9000))
		}
	}
	l := h.open()
	h.attach(l, "up1", up1, "e1000", Auto, byXDP)
	h.attached(up1, nil, l.ingressX.PlaitIngressXdp)
}

// TestOtherTCPrograms: ours runs first, and others stay.
func TestOtherTCPrograms(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	theirs, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, // TCX_PASS
	})
	h.must(err)
	t.Cleanup(func() { _ = theirs.Close() })
	lnk, err := link.AttachTCX(link.TCXOptions{Interface: up1, Program: theirs, Attach: ebpf.AttachTCXIngress})
	h.must(err)
	t.Cleanup(func() { _ = lnk.Close() })
	l := h.open()
	h.attach(l, "up1", up1, "veth", Auto, byVeth)
	want := []ebpf.ProgramID{programID(t, l.ingressT.PlaitIngressTc), programID(t, theirs)}
	if got := h.tcx(up1, ebpf.AttachTCXIngress); !slices.Equal(got, want) {
		t.Errorf("programs %v, want ours before theirs, %v", got, want)
	}
	h.must(Remove(h.bpffs))
	if got := h.tcx(up1, ebpf.AttachTCXIngress); !slices.Equal(got, want[1:]) {
		t.Errorf("programs %v after Remove, want theirs, %v", got, want[1:])
	}
}

// TestSwitchHook: from one hook to the other and back, exactly one program is attached each time.
func TestSwitchHook(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	l := h.open()
	for range 2 {
		h.attach(l, "up1", up1, "veth", XDP, byXDP)
		h.attached(up1, nil, l.ingressX.PlaitIngressXdp)
		h.layout("uplink-up1-xdp")
		h.attach(l, "up1", up1, "veth", TC, byConfig)
		h.attached(up1, l.ingressT.PlaitIngressTc, nil)
		h.layout("uplink-up1-tc")
	}
	got, err := l.Uplinks()
	h.must(err)
	if !slices.Equal(got, []string{"up1"}) {
		t.Errorf("uplinks %v", got)
	}
}

// TestRemove: everything goes, other layouts' pins included, and it can be repeated. The next start begins anew.
func TestRemove(t *testing.T) {
	h := newHost(t)
	near, far, up1 := h.veth("plait0"), h.veth("far"), h.veth("up1")
	for range 2 {
		l := h.open()
		if !l.Created {
			t.Error("adopted what was removed")
		}
		h.must(l.AttachPlait0(near, far))
		h.attach(l, "up1", up1, "veth", XDP, byXDP)
		h.must(os.MkdirAll(filepath.Join(Root(h.bpffs), "v0", "links"), 0o700))
		h.must(l.Close())
		for range 2 {
			h.must(Remove(h.bpffs))
			if _, err := os.Stat(Root(h.bpffs)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("plait's directory is still there: %v", err)
			}
		}
		h.attached(up1, nil, nil)
		h.attached(far, nil, nil)
		if got := h.tcx(near, ebpf.AttachTCXEgress); len(got) != 0 {
			t.Errorf("programs %v are still on plait0", got)
		}
	}
}

// TestDiscard: a start that failed takes back what it created, and never what it adopted.
func TestDiscard(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	first := h.open()
	h.attach(first, "up1", up1, "veth", Auto, byVeth)
	second := h.open()
	h.must(second.Discard())
	h.layout("uplink-up1-tc")
	h.attached(up1, first.ingressT.PlaitIngressTc, nil)
	h.must(second.Close())

	other := filepath.Join(Root(h.bpffs), "v0")
	h.must(os.Mkdir(other, 0o700))
	h.must(first.Discard())
	h.must(first.Close())
	h.attached(up1, nil, nil)
	if got := h.names(Root(h.bpffs)); !slices.Equal(got, []string{"v0"}) {
		t.Errorf("plait's directory holds %v, want another layout's alone", got)
	}
	h.must(os.Remove(other))
	third := h.open()
	h.must(third.Discard())
	if _, err := os.Stat(Root(h.bpffs)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("plait's directory is still there: %v", err)
	}
	h.must(third.Discard())
}

// TestNoLeaks: opening and closing, failing too, leaves no descriptor behind.
func TestNoLeaks(t *testing.T) {
	h := newHost(t)
	up1 := h.veth("up1")
	count := func() int {
		t.Helper()
		return len(h.names("/proc/thread-self/fd"))
	}
	once := func() {
		t.Helper()
		l, err := Open(h.bpffs, sizes, slog.New(slog.DiscardHandler))
		h.must(err)
		h.attach(l, "up1", up1, "veth", XDP, byXDP)
		h.attach(l, "up1", up1, "veth", TC, byConfig)
		h.must(l.Close())
		h.remount(true)
		if _, err := Open(h.bpffs, sizes, slog.New(slog.DiscardHandler)); err == nil {
			t.Error("opened on a read-only file system")
		}
		h.remount(false)
		if _, err := Maps(t.TempDir(), true); err == nil {
			t.Error("maps where there are none")
		}
	}
	once()
	before := count()
	for range 3 {
		once()
	}
	if n := count(); n != before {
		t.Errorf("%d descriptors are open, %d were before", n, before)
	}
}
