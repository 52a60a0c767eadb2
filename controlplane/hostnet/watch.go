// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// settle is how long Watch collects changes before it reports them: one act of an administrator
	// or a daemon is a burst of messages.
	settle = 5 * time.Millisecond
	// settleMax bounds how far a slow Changed stretches that.
	settleMax = 2 * time.Second
	// resync is how often everything is reported as changed, in case that a message was never sent.
	resync = 30 * time.Second
	// resubscribe is the least time between two subscriptions.
	resubscribe = 100 * time.Millisecond
)

// Events are what Watch reports. The two functions are called from different goroutines; neither is
// called while it still runs, nor after Watch returned.
type Events struct {
	// Changed says that links, addresses, routes, nexthop objects, or neighbour entries of plait's
	// changed or may have changed: read again what you need. It is called once after the
	// subscription, about 5 ms after the first of a burst of changes, and every 30 s. While changes
	// never end, it is given at most a fifth of the time.
	Changed func()

	// Carrier says that an interface gained or lost its carrier (see Uplink), without delay. It is
	// called once for every interface that exists, and with false for one that vanished. Between the
	// event itself and the notification lies the kernel's own delay (net/core/link_watch.c): none for
	// an interface that is linked to another one and for a port of a bond; for a physical one none
	// either, unless any interface of the machine changed within the last second: then up to the rest
	// of that second. A veth counts as physical if both its ends happen to have the same index.
	Carrier func(ifindex int, up bool)
}

// Watch reports changes of the host's network until ctx ends, and then returns nil. It returns an
// error only if it cannot subscribe at first; later it subscribes again after any error, and reports
// everything as changed, because messages were lost.
func (h *Host) Watch(ctx context.Context, e Events) error {
	links, err := h.subscribe(unix.RTNLGRP_LINK)
	if err != nil {
		return err
	}
	// A socket of its own for all else, so that a routing daemon that loads a table neither delays
	// nor displaces the loss of a carrier.
	groups := []uint{
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_NEXTHOP, unix.RTNLGRP_NEIGH,
	}
	others, err := h.subscribe(groups...)
	if err != nil {
		links.Close()
		return err
	}

	w := &watcher{h: h, e: e, dirty: make(chan struct{}, 1), carrier: make(map[int]bool)}
	w.touch()
	var wg sync.WaitGroup
	wg.Go(func() { w.receive(ctx, links, w.link, w.readLinks, unix.RTNLGRP_LINK) })
	wg.Go(func() { w.receive(ctx, others, w.other, func() error { return nil }, groups...) })
	w.report(ctx)
	wg.Wait()
	return nil
}

// subscribe opens a socket that receives the given groups. Its Receive gives up after h.resync.
func (h *Host) subscribe(groups ...uint) (*nl.NetlinkSocket, error) {
	var s *nl.NetlinkSocket
	err := h.in(func() (err error) {
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, groups...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribing to network changes: %w", err)
	}
	// Beyond rmem_max where we may; a small buffer costs a resync now and then, so no error.
	if s.SetReceiveBufferSize(h.watchBuffer, true) != nil {
		_ = s.SetReceiveBufferSize(h.watchBuffer, false)
	}
	tv := unix.NsecToTimeval(int64(h.resync))
	if err := s.SetReceiveTimeout(&tv); err != nil {
		s.Close()
		return nil, fmt.Errorf("setting the netlink timeout: %w", err)
	}
	return s, nil
}

type watcher struct {
	h       *Host
	e       Events
	dirty   chan struct{} // holds a token while there is something to report
	carrier map[int]bool  // last reported, by interface; of the goroutine that receives links
}

// touch notes that something changed.
func (w *watcher) touch() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// report calls Changed as Events promises, until ctx ends.
func (w *watcher) report(ctx context.Context) {
	tick := time.NewTicker(w.h.resync)
	defer tick.Stop()
	pause := settle
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.dirty:
		case <-tick.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		select {
		case <-w.dirty: // what came during the pause is part of this report
		default:
		}
		start := time.Now()
		w.e.Changed()
		pause = min(max(settle, 4*time.Since(start)), settleMax)
	}
}

// receive hands messages to handle until ctx ends. It calls read after each subscription and every
// resync.
func (w *watcher) receive(ctx context.Context, s *nl.NetlinkSocket, handle func(syscall.NetlinkMessage), read func() error, groups ...uint) {
	var err error
	for {
		start := time.Now()
		if s != nil {
			err = w.drain(ctx, s, handle, read)
		}
		if ctx.Err() != nil {
			return
		}
		w.h.log.Warn("network notifications were interrupted, subscribing again", "error", err)
		// At once after a good while, not in a busy loop where it fails every time.
		select {
		case <-ctx.Done():
			return
		case <-time.After(resubscribe - time.Since(start)):
		}
		s, err = w.h.subscribe(groups...)
		w.touch()
	}
}

// drain receives from s, which it closes in the end, until an error or the end of ctx.
func (w *watcher) drain(ctx context.Context, s *nl.NetlinkSocket, handle func(syscall.NetlinkMessage), read func() error) error {
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	var last time.Time
	for {
		if time.Since(last) >= w.h.resync {
			if err := read(); err != nil {
				return err
			}
			last = time.Now()
		}
		msgs, from, err := s.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN): // quiet for a whole resync period
			continue
		case err != nil:
			return err
		case from.Pid != nl.PidKernel: // any process can send us one
			continue
		}
		for _, m := range msgs {
			handle(m)
		}
	}
}

// link handles a message of RTNLGRP_LINK.
func (w *watcher) link(m syscall.NetlinkMessage) {
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK {
		return
	}
	// AF_BRIDGE messages are about ports: their RTM_DELLINK means that a port left its bridge.
	if i, ok := parseLink(m.Data); ok && i.family == unix.AF_UNSPEC {
		if m.Header.Type == unix.RTM_DELLINK {
			w.gone(i.index)
		} else {
			w.set(i.index, hasCarrier(i.flags))
		}
	}
	w.touch()
}

// readLinks reports the carrier of every link that differs from what was last reported.
func (w *watcher) readLinks() error {
	found, err := dump("links", func() (map[int]bool, error) {
		found := make(map[int]bool)
		err := w.h.request(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.RTM_NEWLINK, func(m []byte) {
			if i, ok := parseLink(m); ok {
				found[i.index] = hasCarrier(i.flags)
			}
		}, nl.NewIfInfomsg(unix.AF_UNSPEC))
		return found, err
	})
	if err != nil {
		return err
	}
	for index := range w.carrier {
		if _, ok := found[index]; !ok {
			w.gone(index)
		}
	}
	for index, up := range found {
		w.set(index, up)
	}
	return nil
}

func (w *watcher) set(index int, up bool) {
	if was, known := w.carrier[index]; !known || was != up {
		w.carrier[index] = up
		w.e.Carrier(index, up)
	}
}

func (w *watcher) gone(index int) {
	if w.carrier[index] {
		w.e.Carrier(index, false)
	}
	delete(w.carrier, index)
}

// other handles a message of any other group.
func (w *watcher) other(m syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH:
		return // states come and go all the time, and change no decision
	case unix.RTM_DELNEIGH:
		if n, ok := parseNeighbour(m.Data); !ok || n.protocol != Protocol {
			return
		}
	}
	w.touch()
}

// linkInfo is what plait needs of an RTM_NEWLINK or RTM_DELLINK message.
type linkInfo struct {
	family uint8
	index  int
	flags  uint32 // IFF_*
}

// parseLink reads the struct ifinfomsg at the start of a link message: family, padding, type, index,
// flags, change.
func parseLink(m []byte) (linkInfo, bool) {
	if len(m) < unix.SizeofIfInfomsg {
		return linkInfo{}, false
	}
	return linkInfo{
		family: m[0],
		index:  int(int32(binary.NativeEndian.Uint32(m[4:]))),
		flags:  binary.NativeEndian.Uint32(m[8:]),
	}, true
}
