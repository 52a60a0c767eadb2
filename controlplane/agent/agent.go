// SPDX-License-Identifier: Apache-2.0

// Package agent is plait's control plane: it brings configuration and host into the maps, sends
// probes, and decides when a path that fell comes back. Nothing in the packet or failover path waits
// for it; when it ends, the data plane stays as it is.
package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"

	"github.com/plait-net/plait/controlplane/config"
	"github.com/plait-net/plait/controlplane/hostnet"
	"github.com/plait-net/plait/controlplane/keys"
	"github.com/plait-net/plait/controlplane/probe"
	"github.com/plait-net/plait/controlplane/state"
	"github.com/plait-net/plait/loader"
	"github.com/plait-net/plait/maps"
)

// Options of an Agent.
type Options struct {
	Config  *config.Config
	BPFFS   string
	RunDir  string
	Version string
	Log     *slog.Logger

	// Before, if set, is called once all that can be checked is right and nothing has been changed
	// yet. Its error stops Start.
	Before func() error
}

// Agent is a running control plane.
type Agent struct {
	opt    Options
	cfg    *config.Config
	log    *slog.Logger
	lock   *state.Lock
	host   *hostnet.Host
	loader *loader.Loader
	set    *maps.Set
	plait0 hostnet.Plait0
	sender *probe.Sender
	rings  []keys.Ring // by peer
	number map[string]uint8

	started time.Duration // CLOCK_MONOTONIC

	byIfindex atomic.Pointer[map[int]uint8] // uplink numbers, for the carrier callback

	mu      sync.Mutex // everything below
	tables  tables
	st      *state.State
	written state.State
	hooks   map[string]attached
	locs    map[string][]netip.Addr
}

// attached is the ingress hook of an uplink.
type attached struct {
	ifindex int
	hook    loader.Hook
}

// Start brings the data plane up, or takes over the one that is there. When it fails, a data plane
// that was running before goes on as it was.
func Start(opt Options) (_ *Agent, err error) {
	a := &Agent{opt: opt, cfg: opt.Config, log: opt.Log, hooks: map[string]attached{}, locs: map[string][]netip.Addr{}, started: monotonic()}
	first := false
	defer func() {
		if err != nil {
			if first {
				err = errors.Join(err, a.abandon())
			}
			err = errors.Join(err, a.Close())
		}
	}()
	if a.lock, err = state.Acquire(opt.RunDir); err != nil {
		return nil, err
	}
	old, err := state.Read(opt.RunDir)
	first = errors.Is(err, state.ErrNone)
	if err != nil && !first {
		return nil, fmt.Errorf("%w; `plait down` removes it", err)
	}
	if a.host, err = hostnet.New(a.log); err != nil {
		return nil, err
	}
	if err = CheckHost(a.host); err != nil {
		return nil, err
	}
	if a.rings, err = a.cfg.LoadKeys(); err != nil {
		return nil, err
	}
	if err = loader.CheckKernel(); err != nil {
		return nil, err
	}
	if err = loader.CheckBPFFS(opt.BPFFS); err != nil {
		return nil, err
	}
	if opt.Before != nil {
		if err = opt.Before(); err != nil {
			return nil, err
		}
	}
	a.number = numberUplinks(a.cfg, old)
	if a.loader, err = loader.Open(opt.BPFFS, maps.DefaultSizes, a.log); err != nil {
		return nil, err
	}
	a.set = a.loader.Set
	if a.set.Settings.Epoch == 0 {
		// Epochs grow with the wall clock: a peer refuses what was recorded under an older one. The
		// programs compare its bytes on the wire, so it is stored in wire order.
		a.set.Settings.Epoch = bits.ReverseBytes64(uint64(time.Now().UnixNano()))
	}
	a.st = &state.State{
		Version: opt.Version, PID: os.Getpid(), Started: time.Now(), Config: a.cfg.File, Host: a.cfg.Host,
		Metrics: a.cfg.MetricsListen, Identities: a.cfg.Identity.All(),
		IdleIntervalMS: float64(a.cfg.Liveness.IdleInterval) / 1e6, HoldDownMS: float64(a.cfg.Liveness.HoldDown) / 1e6,
	}
	if old != nil {
		a.st.Undo = old.Undo
		for _, u := range old.Uplinks {
			a.locs[u.Name] = u.Locators
		}
	}
	a.tables = tables{set: a.set, multiplier: uint32(a.cfg.Liveness.Multiplier), keys: a.pathKeys}
	a.setNativePorts()
	if err = a.bringUp(); err != nil {
		return nil, err
	}
	return a, nil
}

// abandon takes back what a first start that failed has made, so that a refusal changes nothing.
func (a *Agent) abandon() error {
	var errs []error
	if a.loader != nil {
		if !a.loader.Created {
			return nil // pins of an earlier data plane, whatever became of its state
		}
		var undo hostnet.Undo
		if a.st != nil {
			undo = a.st.Undo
		}
		if err := a.host.Remove(undo); !errors.Is(err, hostnet.ErrForeignLink) { // which is why it failed
			errs = append(errs, err)
		}
		errs = append(errs, a.loader.Discard())
	}
	return errors.Join(append(errs, state.Remove(a.opt.RunDir))...)
}

// bringUp does the first pass.
func (a *Agent) bringUp() error {
	ups, err := a.host.Uplinks(a.uplinkNames())
	if err != nil {
		return err
	}
	if err := a.makePlait0(ups); err != nil {
		return err
	}
	return a.reconcile()
}

// makePlait0 makes plait0 with its programs, and has the sender use it, unless it is there; it follows
// the uplinks' MTU. It gets addresses and routes from openPlait0, once there are paths.
func (a *Agent) makePlait0(ups map[string]hostnet.Uplink) error {
	p, err := a.host.CreatePlait0(smallestMTU(ups))
	if err != nil {
		return fmt.Errorf("creating plait0: %w", err)
	}
	if p == a.plait0 {
		return nil
	}
	if err := a.loader.AttachPlait0(p.Near, p.Far); err != nil {
		return err
	}
	if a.sender == nil {
		a.sender, err = probe.New(probe.Config{
			Set: a.set, Plait0: p.Near, Fast: a.cfg.Liveness.Interval, Idle: a.cfg.Liveness.IdleInterval,
			Budget: a.cfg.Liveness.Budget, Log: a.log,
		})
	} else { // somebody removed the one we had
		err = a.sender.Rebind(p.Near)
	}
	if err != nil {
		return err
	}
	a.plait0 = p
	return nil
}

// openPlait0 gives plait0 the identities and the routes to the peers, also those that somebody took away.
func (a *Agent) openPlait0() error {
	if err := a.host.BringUpPlait0(a.plait0, a.cfg.Identity.All()); err != nil {
		return fmt.Errorf("bringing up plait0: %w", err)
	}
	var peers []netip.Addr
	for _, p := range a.cfg.Peers {
		peers = append(peers, p.Identity.All()...)
	}
	if err := a.host.SyncPeerRoutes(a.plait0, peers, a.cfg.Identity.All()); err != nil {
		return fmt.Errorf("adding routes to peers: %w", err)
	}
	return nil
}

// Run watches, probes and decides until ctx ends. The data plane is left as it is.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.sender.Run(ctx) })
	group.Go(func() error { return a.watch(ctx) })
	group.Go(func() error { return a.readEvents(ctx) })
	group.Go(func() error { return a.keepTime(ctx) })
	return group.Wait()
}

// Close releases what the agent holds. The data plane stays.
func (a *Agent) Close() error {
	var errs []error
	if a.sender != nil {
		errs = append(errs, a.sender.Close())
	}
	if a.loader != nil {
		errs = append(errs, a.loader.Close())
	}
	if a.host != nil {
		a.host.Close()
	}
	if a.lock != nil {
		errs = append(errs, a.lock.Release())
	}
	return errors.Join(errs...)
}

// Set is the maps, State a copy of the state and Sender the probe sender, for metrics.
func (a *Agent) Set() *maps.Set { return a.set }

// State returns what the state file says.
func (a *Agent) State() *state.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.written
	return &s
}

// Sender returns the probe sender.
func (a *Agent) Sender() *probe.Sender { return a.sender }

func (a *Agent) watch(ctx context.Context) error {
	return a.host.Watch(ctx, hostnet.Events{
		Changed: func() {
			if err := a.reconcile(); err != nil {
				a.log.Error("bringing configuration and host together", "error", err)
			}
		},
		Carrier: a.carrier,
	})
}

// carrier moves all peers off an uplink that lost its carrier, at once, and back. Whoever clears the
// uplink's bit, this or a reconcile, does the rest.
func (a *Agent) carrier(ifindex int, up bool) {
	numbers := a.byIfindex.Load()
	if numbers == nil {
		return
	}
	n, ok := (*numbers)[ifindex]
	if !ok {
		return
	}
	bit := uint64(1) << n
	switch {
	case up && atomic.OrUint64(&a.set.Settings.Uplinks, bit)&bit == 0:
		a.log.Info("uplink has carrier", "uplink", a.uplinkName(n))
	case !up && atomic.AndUint64(&a.set.Settings.Uplinks, ^bit)&bit != 0:
		a.mu.Lock()
		defer a.mu.Unlock()
		a.uplinkLost(n, ifindex)
	}
}

func (a *Agent) readEvents(ctx context.Context) error {
	r, err := ringbuf.NewReader(a.set.EventMap())
	if err != nil {
		return fmt.Errorf("opening the event ring: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	var rec ringbuf.Record
	var ev maps.Event
	for {
		if err := r.ReadInto(&rec); err != nil {
			if errors.Is(err, ringbuf.ErrClosed) {
				return nil
			}
			return fmt.Errorf("reading events: %w", err)
		}
		if _, err := binary.Decode(rec.RawSample, binary.NativeEndian, &ev); err != nil {
			a.log.Error("event of unknown layout", "error", err)
			continue
		}
		a.event(&ev)
	}
}

func (a *Agent) keepTime(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	nextSecond := monotonic() + second
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := monotonic()
		a.everyTick(now)
		if now >= nextSecond {
			a.everySecond(now)
			nextSecond += second
			if nextSecond <= now {
				nextSecond = now + second
			}
		}
	}
}

// reconcile brings configuration and host into maps, hooks, neighbours and settings, and writes down
// what others must know, in an order in which nothing is ever half there: programs before addresses,
// paths before traffic. It changes only what differs.
func (a *Agent) reconcile() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := a.uplinkNames()
	ups, err := a.host.Uplinks(names)
	if err != nil {
		return err
	}
	var errs []error
	undo, err := a.host.PlanSysctls(ups, a.st.Undo)
	if err != nil {
		errs = append(errs, err)
	} else {
		a.st.Undo = undo
	}
	a.st.Uplinks = a.st.Uplinks[:0:0]
	var indices []int
	for i := range a.cfg.Uplinks {
		u := a.uplinkState(&a.cfg.Uplinks[i], ups)
		a.st.Uplinks = append(a.st.Uplinks, u)
		if u.Ifindex != 0 {
			indices = append(indices, u.Ifindex)
		}
	}
	// Before anything is changed, so that down can put it back whatever happens next.
	if err := a.writeState(); err != nil {
		return err
	}
	errs = append(errs, a.makePlait0(ups))
	routes, err := a.host.Routes(indices...)
	if err != nil {
		return err
	}
	changed, err := a.tables.apply(desired(a.cfg, a.number, ups, a.locs, routes))
	if err != nil {
		errs = append(errs, err)
	}
	if changed {
		a.sender.Update(probeGroups(a.tables.groups, a.signer))
	}
	errs = append(errs, a.attach(ups)...)
	a.setUplinks(ups)
	errs = append(errs, a.host.ApplySysctls(a.st.Undo), a.syncNeighbours(), a.openPlait0())
	errs = append(errs, a.dropStaleHooks(names), a.writeState())
	return errors.Join(errs...)
}

// uplinkState describes an uplink for the state file and remembers its locators.
func (a *Agent) uplinkState(u *config.Uplink, ups map[string]hostnet.Uplink) state.Uplink {
	live := ups[u.Name]
	locs, problem := locators(u, live, a.locs[u.Name])
	a.locs[u.Name] = locs
	s := state.Uplink{
		Name: u.Name, Number: a.number[u.Name], Ifindex: live.Index, MTU: live.MTU, Carrier: live.Carrier,
		Locators: locs, Problem: problem,
	}
	switch {
	case live.Index == 0:
		s.Problem = "interface is missing"
	case unsupported(live) != "":
		s.Problem = unsupported(live)
	case !live.AdminUp:
		s.Problem = "interface is set down"
	case !live.Carrier:
		s.Problem = "no carrier"
	}
	if h, ok := a.hooks[u.Name]; ok && h.ifindex == live.Index {
		s.Hook, s.HookWhy = h.hook.Kind, h.hook.Why
	}
	return s
}

// unsupported says why plait cannot use an interface at all, "" if it can.
func unsupported(u hostnet.Uplink) string {
	switch {
	case u.VRF != 0:
		return "interface belongs to a VRF, which plait does not support"
	case u.Type != "ether":
		return "interface is not Ethernet but " + u.Type + ", which plait does not support"
	}
	return ""
}

// attach puts the ingress program on every uplink that exists and does not have it.
func (a *Agent) attach(ups map[string]hostnet.Uplink) (errs []error) {
	for i := range a.cfg.Uplinks {
		u := &a.cfg.Uplinks[i]
		live, ok := ups[u.Name]
		if !ok || unsupported(live) != "" {
			delete(a.hooks, u.Name)
			continue
		}
		if h, ok := a.hooks[u.Name]; ok && h.ifindex == live.Index {
			continue
		}
		want := map[config.IngressHook]loader.Want{
			config.IngressAuto: loader.Auto, config.IngressXDP: loader.XDP, config.IngressTC: loader.TC,
		}[u.Ingress]
		hook, err := a.loader.AttachUplink(u.Name, live.Index, live.Driver, want)
		if err != nil {
			a.st.Uplinks[i].Problem = err.Error()
			errs = append(errs, err)
			continue
		}
		a.hooks[u.Name] = attached{live.Index, hook}
		a.st.Uplinks[i].Hook, a.st.Uplinks[i].HookWhy = hook.Kind, hook.Why
		a.log.Info("uplink attached", "uplink", u.Name, "hook", hook.Kind, "why", hook.Why)
	}
	return errs
}

// dropStaleHooks detaches from interfaces that are uplinks no more.
func (a *Agent) dropStaleHooks(names []string) error {
	pinned, err := a.loader.Uplinks()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range pinned {
		if !slices.Contains(names, name) {
			errs = append(errs, a.loader.DetachUplink(name))
		}
	}
	return errors.Join(errs...)
}

// setUplinks stores which uplinks are usable: those with our program, administratively up, with
// carrier.
func (a *Agent) setUplinks(ups map[string]hostnet.Uplink) {
	var usable uint64
	attached := map[int]uint8{}
	for name, u := range ups {
		if a.hooks[name].ifindex != u.Index {
			continue
		}
		attached[u.Index] = a.number[name]
		if u.AdminUp && u.Carrier {
			usable |= 1 << a.number[name]
		}
	}
	before := a.byIfindex.Swap(&attached)
	old := atomic.AndUint64(&a.set.Settings.Uplinks, usable)
	if before != nil {
		for ifindex, n := range *before {
			if old>>n&1 != 0 && usable>>n&1 == 0 {
				a.uplinkLost(n, ifindex)
			}
		}
	}
	atomic.OrUint64(&a.set.Settings.Uplinks, usable)
}

// uplinkLost takes down the paths of an uplink whose bit has just been cleared. The caller holds mu.
func (a *Agent) uplinkLost(n uint8, ifindex int) {
	a.log.Warn("uplink is lost", "uplink", a.uplinkName(n))
	a.clearUplink(n, monotonic())
	if err := a.host.DropNeighbours(ifindex, a.nextHops(n)); err != nil {
		a.log.Error("forgetting next hops", "uplink", a.uplinkName(n), "error", err)
	}
}

// nextHops are those of the paths over an uplink.
func (a *Agent) nextHops(uplink uint8) (hops []netip.Addr) {
	for _, g := range a.tables.groups {
		for _, p := range g.want.paths {
			if p.uplink == uplink && p.nextHop.IsValid() && !slices.Contains(hops, p.nextHop) {
				hops = append(hops, p.nextHop)
			}
		}
	}
	return hops
}

// syncNeighbours has the kernel keep every next hop resolved, so that the first packet that fails
// over does not wait for it.
func (a *Agent) syncNeighbours() error {
	seen := map[hostnet.Neighbour]bool{}
	var want []hostnet.Neighbour
	for _, g := range a.tables.groups {
		for _, p := range g.want.paths {
			n := hostnet.Neighbour{Index: p.ifindex, IP: p.nextHop}
			if p.ifindex != 0 && p.nextHop.IsValid() && !seen[n] {
				seen[n] = true
				want = append(want, n)
			}
		}
	}
	return a.host.SyncNeighbours(want)
}

// writeState stores the state file if it says something new.
func (a *Agent) writeState() error {
	a.st.Peers = a.st.Peers[:0:0]
	for i := range a.cfg.Peers {
		p := state.Peer{Name: a.cfg.Peers[i].Name}
		for _, g := range a.tables.groups {
			if g.want.peer == i {
				p.Groups = append(p.Groups, state.Group{Family: g.want.family, Index: g.index, Identity: g.want.identity})
			}
		}
		a.st.Peers = append(a.st.Peers, p)
	}
	if reflect.DeepEqual(*a.st, a.written) {
		return nil
	}
	if err := a.st.Write(a.opt.RunDir); err != nil {
		return err
	}
	a.written = *a.st
	a.written.Uplinks = slices.Clone(a.st.Uplinks) // attach changes them in place
	return nil
}

func (a *Agent) setNativePorts() {
	for _, list := range []struct {
		bits  *[1024]uint64
		ports []uint16
	}{
		{&a.set.Native.Tcp, a.cfg.NativePorts.TCP},
		{&a.set.Native.Udp, append([]uint16{maps.SBFDPort}, a.cfg.NativePorts.UDP...)},
	} {
		for port := range 65536 {
			maps.SetPort(list.bits, uint16(port), slices.Contains(list.ports, uint16(port)))
		}
	}
}

// pathKeys derives the keys of a path in both directions, for each live key.
func (a *Agent) pathKeys(peer int, local, remote netip.Addr) maps.PathKeys {
	var out maps.PathKeys
	for i, k := range a.rings[peer] {
		tx, rx := k.Derive(a.cfg.Host, a.cfg.Peers[peer].Name, local, remote), k.Derive(a.cfg.Peers[peer].Name, a.cfg.Host, remote, local)
		out.Id[i] = uint32(k.ID)
		out.Tx[i].K0, out.Tx[i].K1 = binary.LittleEndian.Uint64(tx[:]), binary.LittleEndian.Uint64(tx[8:])
		out.Rx[i].K0, out.Rx[i].K1 = binary.LittleEndian.Uint64(rx[:]), binary.LittleEndian.Uint64(rx[8:])
	}
	return out
}

// signer gives the sender the key of a path's requests.
func (a *Agent) signer(g *group, i int) (uint8, probe.Key) {
	k := a.pathKeys(g.want.peer, g.want.paths[i].local, g.want.paths[i].remote)
	return uint8(k.Id[0]), probe.Key{K0: k.Tx[0].K0, K1: k.Tx[0].K1}
}

func (a *Agent) uplinkNames() []string {
	names := make([]string, len(a.cfg.Uplinks))
	for i := range a.cfg.Uplinks {
		names[i] = a.cfg.Uplinks[i].Name
	}
	return names
}

func (a *Agent) uplinkName(number uint8) string {
	for name, n := range a.number {
		if n == number {
			return name
		}
	}
	return fmt.Sprintf("uplink %d", number)
}

// smallestMTU is plait0's: that of the smallest uplink, or Ethernet's while there is none.
func smallestMTU(ups map[string]hostnet.Uplink) int {
	mtu := 0
	for _, u := range ups {
		if mtu == 0 || u.MTU < mtu {
			mtu = u.MTU
		}
	}
	if mtu == 0 {
		mtu = 1500
	}
	return mtu
}
