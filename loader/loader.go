// SPDX-License-Identifier: Apache-2.0

// Package loader loads plait's kernel programs, attaches them, and pins links and maps, so that the
// data plane lives on when the agent dies and the next agent takes it over.
//
// Everything lies under <bpffs>/plait/v<layout>: maps by name, links under links/. The layout's
// version is part of the path, so an agent of another layout never meets maps it cannot read.
package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/bpf"
	"github.com/plait-net/plait/maps"
)

// layoutVersion is PLAIT_LAYOUT_VERSION of headers/types.h.
const layoutVersion = 1

// ErrNoBPFFS says that no BPF file system is mounted where pins should go.
var ErrNoBPFFS = errors.New("no BPF file system")

// ErrNotRunning says that no data plane is pinned here.
var ErrNotRunning = errors.New("no data plane is loaded")

// Root is plait's directory in a BPF file system.
func Root(bpffs string) string { return filepath.Join(bpffs, "plait") }

func dir(bpffs string) string      { return filepath.Join(Root(bpffs), fmt.Sprintf("v%d", layoutVersion)) }
func linksDir(bpffs string) string { return filepath.Join(dir(bpffs), "links") }

// CheckBPFFS returns ErrNoBPFFS, with the fix, unless bpffs is a writable BPF file system.
func CheckBPFFS(bpffs string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(bpffs, &st); err != nil {
		return fmt.Errorf("%w at %s: %w; mount one: mount -t bpf bpf %s", ErrNoBPFFS, bpffs, err, bpffs)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%w at %s; mount one: mount -t bpf bpf %s", ErrNoBPFFS, bpffs, bpffs)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("%w that can be written at %s: it is mounted read-only; mount -o remount,rw %s", ErrNoBPFFS, bpffs, bpffs)
	}
	return nil
}

// Maps opens the pinned maps; read-only callers (status) leave writable false. It returns
// ErrNotRunning if there are none.
func Maps(bpffs string, writable bool) (*maps.Set, error) {
	opened := map[string]*ebpf.Map{}
	for _, name := range maps.Names() {
		// Never read-only: such a map cannot be mapped into memory.
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir(bpffs), name), nil)
		if err != nil {
			for _, o := range opened {
				o.Close()
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%w: %s", ErrNotRunning, dir(bpffs))
			}
			return nil, fmt.Errorf("opening pinned map %s: %w", name, err)
		}
		opened[name] = m
	}
	return maps.New(opened, writable)
}

// Loader holds loaded programs and knows where their links are pinned.
type Loader struct {
	Set     *maps.Set
	Created bool // the maps are new, not adopted

	bpffs    string
	log      *slog.Logger
	egress   bpf.EgressPrograms
	ingressT bpf.IngressTCPrograms
	ingressX bpf.IngressXDPPrograms
}

// Open adopts the pinned maps, or creates and pins them with the given sizes, and loads the
// programs onto them. Nothing is attached yet. The error of a kernel that lacks something names it.
func Open(bpffs string, sizes maps.Sizes, log *slog.Logger) (_ *Loader, err error) {
	if err := CheckBPFFS(bpffs); err != nil {
		return nil, err
	}
	l := &Loader{bpffs: bpffs, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Discard(), l.Close())
		}
	}()
	l.Set, err = Maps(bpffs, true)
	if errors.Is(err, ErrNotRunning) {
		if err = create(bpffs, sizes); err == nil {
			l.Created = true
			l.Set, err = Maps(bpffs, true)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := l.load(bpf.LoadEgress, &l.egress); err != nil {
		return nil, err
	}
	if err := l.load(bpf.LoadIngressTC, &l.ingressT); err != nil {
		return nil, err
	}
	if err := l.load(bpf.LoadIngressXDP, &l.ingressX); err != nil {
		return nil, err
	}
	return l, nil
}

// load loads the programs of one object onto the shared maps.
func (l *Loader) load(spec func() (*ebpf.CollectionSpec, error), into any) error {
	s, err := spec()
	if err != nil {
		return err
	}
	l.Set.Sizes().Apply(s)
	replace := map[string]*ebpf.Map{}
	for name := range s.Maps {
		if m := l.Set.Maps[name]; m != nil {
			replace[name] = m
		}
	}
	if err := s.LoadAndAssign(into, &ebpf.CollectionOptions{MapReplacements: replace}); err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			return fmt.Errorf("the kernel's verifier refused a program (plait needs Linux 6.6 or newer): %w", err)
		}
		return fmt.Errorf("loading kernel programs: %w", err)
	}
	return nil
}

// create makes all maps and publishes their pins in one step.
func create(bpffs string, sizes maps.Sizes) (err error) {
	final := dir(bpffs)
	aside := final + "-new" // bpffs takes no dots in names
	if err := os.MkdirAll(Root(bpffs), 0o700); err != nil {
		return fmt.Errorf("creating pin directory: %w", err)
	}
	if links, err := os.ReadDir(linksDir(bpffs)); err == nil && len(links) > 0 {
		return fmt.Errorf("the pins in %s are incomplete, and programs are attached: left as they are; "+
			"plait down removes them", final)
	}
	for _, left := range []string{final, aside} { // what a crash left half-made
		if err := remove(left); err != nil {
			return fmt.Errorf("removing incomplete pins: %w", err)
		}
	}
	if err := os.Mkdir(aside, 0o700); err != nil {
		return fmt.Errorf("creating pin directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(aside))
		}
	}()
	specs, err := mapSpecs(sizes)
	if err != nil {
		return err
	}
	for name, spec := range specs {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("creating map %s: %w", name, err)
		}
		err = m.Pin(filepath.Join(aside, name))
		m.Close()
		if err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	if err := os.Mkdir(filepath.Join(aside, "links"), 0o700); err != nil {
		return fmt.Errorf("creating pin directory: %w", err)
	}
	if err := os.Rename(aside, final); err != nil {
		return fmt.Errorf("publishing pins: %w", err)
	}
	return nil
}

// mapSpecs collects the maps from all objects; each object holds only those its programs use.
func mapSpecs(sizes maps.Sizes) (map[string]*ebpf.MapSpec, error) {
	all := map[string]*ebpf.MapSpec{}
	for _, spec := range []func() (*ebpf.CollectionSpec, error){bpf.LoadEgress, bpf.LoadIngressTC, bpf.LoadIngressXDP} {
		s, err := spec()
		if err != nil {
			return nil, err
		}
		sizes.Apply(s)
		for _, name := range maps.Names() {
			if m := s.Maps[name]; m != nil {
				all[name] = m
			}
		}
	}
	return all, nil
}

// Close releases programs and maps; what is pinned stays attached.
func (l *Loader) Close() error {
	var errs []error
	if l.Set != nil {
		errs = append(errs, l.Set.Close())
	}
	for _, c := range []interface{ Close() error }{&l.egress, &l.ingressT, &l.ingressX} {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Discard detaches and removes what this Loader pinned, if it created the maps: for a start that
// failed. What it adopted stays.
func (l *Loader) Discard() error {
	if !l.Created {
		return nil
	}
	if err := remove(dir(l.bpffs)); err != nil {
		return fmt.Errorf("removing pins: %w", err)
	}
	// Another layout's data plane may still be there.
	if err := os.Remove(Root(l.bpffs)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("removing pins: %w", err)
	}
	return nil
}

// AttachPlait0 attaches the egress program to plait0 and the far end's to its peer.
func (l *Loader) AttachPlait0(plait0, far int) error {
	if err := l.tcx("far-end", far, l.egress.PlaitFarEnd, ebpf.AttachTCXIngress); err != nil {
		return fmt.Errorf("attaching to the far end of plait0: %w", err)
	}
	if err := l.tcx("egress", plait0, l.egress.PlaitEgress, ebpf.AttachTCXEgress); err != nil {
		return fmt.Errorf("attaching to plait0: %w", err)
	}
	return nil
}

// Hook is where the ingress program of an uplink runs.
type Hook struct {
	Kind string // "xdp" or "tc"
	Why  string // why not native XDP, if that was not asked for
}

// Want is the hook that the configuration asks for.
type Want int

// Hooks to ask for.
const (
	Auto Want = iota // native XDP on NICs, tcx on virtual devices and where XDP cannot be
	XDP              // native XDP or an error, but tcx where another program has it
	TC               // tcx
)

// virtualDrivers have native XDP at best in a form that is slower than tcx: their packets come as
// sk_buffs already.
var virtualDrivers = map[string]bool{
	"veth": true, "tun": true, "bridge": true, "macvlan": true, "macvtap": true, "ipvlan": true,
	"802.1Q VLAN Support": true, "bonding": true, "team": true, "dummy": true, "vxlan": true,
	"geneve": true, "netdevsim": true, "wireguard": true, "ipip": true, "netkit": true,
}

// AttachUplink attaches the ingress program to an uplink, or replaces that of an earlier agent
// without a gap. Another program's XDP is never replaced: then tcx is used.
func (l *Loader) AttachUplink(name string, ifindex int, driver string, want Want) (Hook, error) {
	xdpPin, tcPin := uplinkPins(name)
	hook := Hook{Kind: "xdp"}
	switch {
	case want == TC:
		hook = Hook{Kind: "tc", Why: "configured"}
	case want == Auto && virtualDrivers[driver]:
		hook = Hook{Kind: "tc", Why: "driver " + driver}
	default:
		if err := l.xdp(xdpPin, ifindex); err != nil {
			if want == XDP && !taken(err) {
				return Hook{}, fmt.Errorf("attaching native XDP to %s: %w", name, err)
			}
			hook = Hook{Kind: "tc", Why: xdpRefusal(err)}
		}
	}
	if hook.Kind == "xdp" {
		return hook, l.unpin(tcPin)
	}
	if err := l.tcx(tcPin, ifindex, l.ingressT.PlaitIngressTc, ebpf.AttachTCXIngress); err != nil {
		return Hook{}, fmt.Errorf("attaching to %s: %w", name, err)
	}
	return hook, l.unpin(xdpPin)
}

// taken says that the error of attaching XDP is that another program is there.
func taken(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

// xdpRefusal says in a few words why native XDP could not be attached.
func xdpRefusal(err error) string {
	switch {
	case taken(err):
		return "another XDP program is attached"
	case errors.Is(err, unix.EOPNOTSUPP):
		return "driver has no native XDP"
	case errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
		return "driver refuses native XDP at this MTU or with these offloads"
	}
	return "native XDP: " + err.Error()
}

// DetachUplink removes the ingress program of an uplink. A missing one is no error.
func (l *Loader) DetachUplink(name string) error {
	xdpPin, tcPin := uplinkPins(name)
	return errors.Join(l.unpin(xdpPin), l.unpin(tcPin))
}

// uplinkPins names the pins of an uplink. A BPF file system takes no dots in names, and interfaces
// no colons.
func uplinkPins(name string) (xdp, tc string) {
	pin := "uplink-" + strings.ReplaceAll(name, ".", ":")
	return pin + "-xdp", pin + "-tc"
}

// Uplinks returns the names of the uplinks whose links are pinned.
func (l *Loader) Uplinks() ([]string, error) {
	entries, err := os.ReadDir(linksDir(l.bpffs))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "uplink-")
		if !ok {
			continue
		}
		// One suffix only: an interface's own name may end like one.
		if short, ok := strings.CutSuffix(name, "-xdp"); ok {
			name = short
		} else {
			name = strings.TrimSuffix(name, "-tc")
		}
		names = append(names, strings.ReplaceAll(name, ":", "."))
	}
	return names, nil
}

func (l *Loader) unpin(name string) error { return unpin(filepath.Join(linksDir(l.bpffs), name)) }

// unpin removes a pinned link. It detaches it first, for the kernel does so only some time after the pin is gone, and until
// then its hook is taken. A missing one is no error.
func unpin(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(l.Detach(), l.Close())
	}
	return errors.Join(err, os.Remove(path))
}

// remove removes a directory of pins and detaches the links in it. A missing one is no error.
func remove(dir string) error {
	links := filepath.Join(dir, "links")
	entries, err := os.ReadDir(links)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, unpin(filepath.Join(links, e.Name())))
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// tcx attaches at the head of the chain: another program's verdict there would hide packets.
func (l *Loader) tcx(pin string, ifindex int, prog *ebpf.Program, at ebpf.AttachType) error {
	return l.upsert(pin, ifindex, prog, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: at, Anchor: link.Head()})
	})
}

func (l *Loader) xdp(pin string, ifindex int) error {
	prog := l.ingressX.PlaitIngressXdp
	return l.upsert(pin, ifindex, prog, func() (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Interface: ifindex, Program: prog, Flags: link.XDPDriverMode})
	})
}

// upsert updates the pinned link, or attaches and pins a new one if there is none or its interface
// is gone.
func (l *Loader) upsert(pin string, ifindex int, prog *ebpf.Program, attach func() (link.Link, error)) error {
	path := filepath.Join(linksDir(l.bpffs), pin)
	old, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		err = update(old, ifindex, prog)
		old.Close()
		if !errors.Is(err, unix.ENOLINK) {
			return err
		}
		l.log.Info("interface of a pinned link is gone, attaching anew", "link", pin)
		if err := os.Remove(path); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("opening pinned link: %w", err)
	}
	lnk, err := attach()
	if err != nil {
		return err
	}
	defer lnk.Close()
	if err := lnk.Pin(path); err != nil {
		return fmt.Errorf("pinning link: %w", err)
	}
	return nil
}

// update replaces a link's program; ENOLINK says that the link no longer belongs to ifindex.
func update(l link.Link, ifindex int, prog *ebpf.Program) error {
	info, err := l.Info()
	if err != nil {
		return err
	}
	var now uint32
	switch {
	case info.TCX() != nil:
		now = info.TCX().Ifindex
	case info.XDP() != nil:
		now = info.XDP().Ifindex
	}
	if now != uint32(ifindex) {
		return unix.ENOLINK
	}
	return l.Update(prog)
}

// Remove detaches everything and removes every pin. It can be repeated.
func Remove(bpffs string) error {
	root := Root(bpffs)
	layouts, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range layouts {
		errs = append(errs, remove(filepath.Join(root, e.Name())))
	}
	if err := errors.Join(append(errs, os.RemoveAll(root))...); err != nil {
		return fmt.Errorf("removing pins: %w", err)
	}
	return nil
}
