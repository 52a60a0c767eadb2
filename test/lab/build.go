// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/test/lab/bpf"
)

const bridgeName = "br"

// linkTimeout is how long both ends of a veth pair may take to come up.
const linkTimeout = 10 * time.Second

// errCrash makes up return without cleaning up, as if the process had died there. Tests use it.
var errCrash = errors.New("crash")

// up is Up with a hook before each step, in which a test can fail.
func up(ctx context.Context, o Options, before func(step string) error) (_ *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("building a lab: not root")
	}
	if _, err := exec.LookPath("nsenter"); err != nil {
		return nil, fmt.Errorf("building a lab: %w (it is part of util-linux)", err)
	}
	l, err := plan(o)
	if err != nil {
		return nil, fmt.Errorf("building a lab: %w", err)
	}
	// Looked at before anything is made: cleaning up would remove what belongs to another directory's lab.
	for _, ns := range l.namespaces() {
		if _, err := os.Lstat(ns.Path()); err == nil {
			return nil, fmt.Errorf("building lab %s: namespace %s: %w", l.Name, ns.Netns, ErrExists)
		}
	}
	unlock, err := l.claim()
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer func() {
		if err == nil || errors.Is(err, errCrash) {
			return
		}
		if l.maps != nil {
			l.maps.close()
		}
		err = fmt.Errorf("building lab %s: %w", l.Name, errors.Join(err, l.teardown()))
	}()

	b := &builder{Lab: l, ctx: ctx, before: before}
	for _, h := range l.Hosts {
		b.step("namespace of host "+h.Name, h.create)
		b.step("settings of host "+h.Name, func() error { return h.Do(hostSysctls) })
		b.step("directories of host "+h.Name, h.makeDirs)
	}
	for _, f := range l.Fabrics {
		b.step("namespace of fabric "+f.Name, f.create)
		b.step("settings of fabric "+f.Name, func() error { return f.Do(b.fabricSysctls) })
		if l.Flat {
			b.step("bridge of fabric "+f.Name, func() error { return f.Do(b.addBridge) })
		}
	}
	b.step("file system of the lab", func() error { return mountBPF(l.bpffs()) })
	b.step("key", l.createKey)
	b.step("maps", func() error {
		l.maps, err = l.createMaps()
		return err
	})
	for _, h := range l.Hosts {
		for _, f := range l.Fabrics {
			where := fmt.Sprintf(" between host %s and fabric %s", h.Name, f.Name)
			b.step("veth pair"+where, func() error { return b.addVeth(h, f) })
			b.step("port"+where, func() error { return f.Do(func() error { return b.setUpPort(h, f) }) })
			b.step("uplink"+where, func() error { return h.Do(func() error { return b.setUpUplink(h, f) }) })
		}
	}
	for _, h := range l.Hosts {
		for _, f := range l.Fabrics {
			where := fmt.Sprintf(" between host %s and fabric %s", h.Name, f.Name)
			b.step("carrier"+where, func() error { return b.finishVeth(h, f) })
		}
	}
	b.step("the end", func() error { return nil })
	if b.err != nil {
		return nil, b.err
	}
	return l, nil
}

// claim takes the lab's name by making its directory, with the plan in it, in one step, and locks it.
func (l *Lab) claim() (unlock func(), err error) {
	if err := os.MkdirAll(l.base, 0o755); err != nil {
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	tmp, err := os.MkdirTemp(l.base, ".up-")
	if err != nil {
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	state, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	if err := os.WriteFile(filepath.Join(tmp, stateFile), state, 0o644); err != nil {
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	lock, err := os.OpenFile(filepath.Join(tmp, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	if err := flock(lock); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	if err := os.Rename(tmp, l.Dir()); err != nil {
		_ = lock.Close()
		if errors.Is(err, os.ErrExist) {
			err = ErrExists
		}
		return nil, fmt.Errorf("building lab %s: %w", l.Name, err)
	}
	return func() { _ = lock.Close() }, nil
}

// builder runs steps until one fails.
type builder struct {
	*Lab
	ctx    context.Context
	before func(string) error
	err    error
}

func (b *builder) step(name string, fn func() error) {
	if b.err == nil {
		b.err = b.ctx.Err()
	}
	if b.err == nil {
		b.err = b.before(name)
	}
	if b.err != nil {
		return
	}
	if err := fn(); err != nil {
		b.err = fmt.Errorf("%s: %w", name, err)
	}
}

func (h *Host) makeDirs() error {
	if err := os.MkdirAll(h.RunDir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(h.RunDir, 0o700); err != nil {
		return err
	}
	return mountBPF(h.BPFFS)
}

func mountBPF(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mounting a bpf file system at %s: %w", dir, err)
	}
	return nil
}

type sysctl struct{ name, value string }

func writeSysctls(all []sysctl) error {
	for _, s := range all {
		if err := writeSysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return loopbackUp()
}

// commonSysctls are set before any interface exists, so that all inherit them.
var commonSysctls = []sysctl{
	{"net/ipv6/conf/default/accept_dad", "0"}, // addresses are usable at once
	{"net/ipv6/conf/all/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"net/ipv6/conf/default/router_solicitations", "0"},
	{"net/ipv6/conf/all/keep_addr_on_down", "1"}, // a port that comes back has its addresses
	{"net/ipv6/conf/default/keep_addr_on_down", "1"},
}

func hostSysctls() error {
	// bbr without fq, the default on some machines, makes throughput meaningless.
	return writeSysctls(append(commonSysctls[:len(commonSysctls):len(commonSysctls)],
		sysctl{"net/ipv4/tcp_congestion_control", "reno"}))
}

func (b *builder) fabricSysctls() error {
	all := append(commonSysctls[:len(commonSysctls):len(commonSysctls)],
		sysctl{"net/ipv4/conf/all/rp_filter", "0"},
		sysctl{"net/ipv4/conf/default/rp_filter", "0"},
		sysctl{"net/ipv4/icmp_ratelimit", "0"}, // ms between errors to one destination, 0 for no limit
		sysctl{"net/ipv6/icmp/ratelimit", "0"},
		sysctl{"net/ipv4/icmp_msgs_per_sec", "1000000"},
		sysctl{"net/ipv4/icmp_msgs_burst", "1000000"})
	if !b.Flat {
		all = append(all,
			sysctl{"net/ipv4/ip_forward", "1"},
			sysctl{"net/ipv6/conf/all/forwarding", "1"},
			sysctl{"net/ipv6/conf/default/forwarding", "1"})
	}
	return writeSysctls(all)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("starting the loopback interface: %w", err)
	}
	return nil
}

func (b *builder) addBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	attrs.MTU = b.MTU
	snooping := false // a querier would be needed
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("adding bridge: %w", err)
	}
	if err := writeSysctl("net/ipv6/conf/"+bridgeName+"/disable_ipv6", "1"); err != nil {
		return err
	}
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("finding bridge: %w", err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("starting bridge: %w", err)
	}
	return nil
}

// addVeth makes the pair with each end in its namespace from the start: no other has ever seen it.
func (b *builder) addVeth(h *Host, f *Fabric) error {
	peer, err := os.Open(f.Path())
	if err != nil {
		return err
	}
	defer func() { _ = peer.Close() }()
	return h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = h.Uplink(f.Name).Name
		attrs.MTU = b.MTU
		// Not the port's: a pair whose ends have the same index in their namespaces looks like a
		// physical interface to the kernel, which then delays the news of a lost carrier by a second.
		attrs.Index = 1000 + b.hostIndex(f, h)
		veth := netlink.NewVeth(attrs)
		veth.PeerName = h.Name
		veth.PeerNamespace = netlink.NsFd(peer.Fd())
		veth.PeerMTU = uint32(b.MTU)
		return netlink.LinkAdd(veth)
	})
}

// setUpPort runs inside the fabric.
func (b *builder) setUpPort(h *Host, f *Fabric) error {
	port, err := netlink.LinkByName(h.Name)
	if err != nil {
		return err
	}
	u := h.Uplink(f.Name)
	if b.Flat {
		br, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(port, br); err != nil {
			return fmt.Errorf("adding port to bridge: %w", err)
		}
		if err := writeSysctl("net/ipv6/conf/"+h.Name+"/disable_ipv6", "1"); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(port); err != nil {
		return fmt.Errorf("starting port: %w", err)
	}
	if !b.Flat {
		if err := addAddresses(port, netip.PrefixFrom(u.Gateway4, 24), netip.PrefixFrom(u.Gateway6, 64)); err != nil {
			return err
		}
	}
	program := bpf.PortProgLabPortTc
	if b.Form == Wire {
		program = bpf.PortProgLabPortXdp
	}
	return b.attach(program, f, b.portIndex(f, h), port.Attrs().Index, b.maps)
}

// setUpUplink runs inside the host.
func (b *builder) setUpUplink(h *Host, f *Fabric) error {
	u := h.Uplink(f.Name)
	uplink, err := netlink.LinkByName(u.Name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(uplink); err != nil {
		return fmt.Errorf("starting uplink: %w", err)
	}
	if err := addAddresses(uplink, netip.PrefixFrom(u.Addr4, 24), netip.PrefixFrom(u.Addr6, 64)); err != nil {
		return err
	}
	if !b.Flat {
		routes := []struct {
			to  netip.Prefix
			via netip.Addr
		}{
			{netip.PrefixFrom(addr("10.%d.0.0", f.Number), 16), u.Gateway4},
			{netip.PrefixFrom(addr("fd00:%x::", f.Number), 32), u.Gateway6},
		}
		for _, r := range routes {
			route := &netlink.Route{LinkIndex: uplink.Attrs().Index, Dst: ipNet(r.to), Gw: r.via.AsSlice()}
			if err := netlink.RouteAdd(route); err != nil {
				return fmt.Errorf("adding route to %s via %s: %w", r.to, r.via, err)
			}
		}
	}
	if b.Form == Wire && !b.FreeUplinks {
		return b.attach(bpf.PortProgLabUplinkXdp, f, b.hostIndex(f, h), uplink.Attrs().Index, b.maps)
	}
	return nil
}

// finishVeth sets offloads, which depend on the programs at both ends, and waits for the carrier.
func (b *builder) finishVeth(h *Host, f *Fabric) error {
	u := h.Uplink(f.Name)
	err := h.Do(func() error {
		features := make(map[string]bool)
		if b.FreeUplinks {
			features["rx-gro"] = true
		}
		if b.TxChecksum {
			features["tx-checksum-ip-generic"] = false
		}
		if err := setFeatures(u.Name, features); err != nil {
			return err
		}
		return waitUp(b.ctx, u.Name)
	})
	if err != nil {
		return err
	}
	return f.Do(func() error {
		if b.Form == Wire {
			// The port's GRO may have merged segments. What leaves must be packets again, also where
			// the uplink has no XDP program that would see to it.
			features, err := segmentation(h.Name)
			if err != nil {
				return err
			}
			if b.TxChecksum {
				features["tx-checksum-ip-generic"] = false
			}
			if err := setFeatures(h.Name, features); err != nil {
				return err
			}
		}
		return waitUp(b.ctx, h.Name)
	})
}

// segmentation returns the interface's segmentation offloads, all to be switched off.
func segmentation(name string) (map[string]bool, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("opening ethtool: %w", err)
	}
	defer e.Close()
	state, err := e.FeaturesWithState(name)
	if err != nil {
		return nil, fmt.Errorf("reading features of %s: %w", name, err)
	}
	off := make(map[string]bool)
	for feature, s := range state {
		if strings.HasPrefix(feature, "tx-") && strings.HasSuffix(feature, "-segmentation") && s.Available {
			off[feature] = false
		}
	}
	return off, nil
}

func setFeatures(name string, features map[string]bool) error {
	if len(features) == 0 {
		return nil
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("opening ethtool: %w", err)
	}
	defer e.Close()
	if err := e.Change(name, features); err != nil {
		return fmt.Errorf("setting features of %s: %w", name, err)
	}
	now, err := e.Features(name)
	if err != nil {
		return fmt.Errorf("reading features of %s: %w", name, err)
	}
	for feature, want := range features {
		if now[feature] != want {
			return fmt.Errorf("feature %s of %s stays %t", feature, name, now[feature])
		}
	}
	return nil
}

func addAddresses(on netlink.Link, prefixes ...netip.Prefix) error {
	for _, p := range prefixes {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(on, a); err != nil {
			return fmt.Errorf("adding address %s: %w", p, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// waitUp waits until the interface is operational.
func waitUp(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	for {
		ln, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", name, err)
		}
		if ln.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is %s: %w", name, ln.Attrs().OperState, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// removeUplinks removes the host's veth pairs, if they and the namespace still exist.
func removeUplinks(h *Host) error {
	if id, err := namespaceID(h.Path()); err != nil || !isNamespace(h.Path()) || id == (nsID{}) {
		return nil
	}
	return h.Do(func() error {
		var errs []error
		for _, u := range h.Uplinks {
			ln, err := netlink.LinkByName(u.Name)
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue
			}
			if err == nil {
				err = netlink.LinkDel(ln)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("removing %s of host %s: %w", u.Name, h.Name, err))
			}
		}
		return errors.Join(errs...)
	})
}

// isNamespace returns whether a namespace, and not a bare file, is at path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
