// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dchest/siphash"
	"golang.org/x/sys/unix"

	"github.com/plait-net/plait/controlplane/keys"
	"github.com/plait-net/plait/controlplane/status"
	"github.com/plait-net/plait/test/lab"
)

// Of docs/wire.md, offsets in the UDP payload.
const (
	sbfdPort  = 7784
	probePort = 61784
	bfdLen    = 64

	offVersion   = 0
	offState     = 1
	offLength    = 3
	offMyDiscr   = 4
	offAuth      = 24
	offKeyID     = 26
	offFlags     = 27
	offEpoch     = 32
	offRound     = 40
	offReflector = 48
	offTag       = 56
)

// TestProbesDecode has tshark decode the probes that cross a fabric: BFD as the RFCs want it, hop limit
// 255 and DSCP CS6 at the sender, with the values that docs/wire.md gives.
func TestProbesDecode(t *testing.T) {
	t.Parallel()
	p := upPair(t, lab.Options{Form: lab.Wire, TxChecksum: true})
	c := startCapture(t, p.Fabric("f1").Namespace, "a", "udp port 7784", "-c", "400")
	if code := c.p.wait(t); code != 0 {
		t.Fatalf("tcpdump ends with %d: %s", code, c.p.out)
	}
	fields := []string{
		"ip.src", "ipv6.src", "ip.ttl", "ipv6.hlim", "ip.dsfield.dscp", "ipv6.tclass.dscp", "ip.flags.df",
		"udp.srcport", "udp.dstport", "udp.checksum.status", "bfd.version", "bfd.diag", "bfd.sta", "bfd.flags", "bfd.message_length",
		"bfd.my_discriminator", "bfd.your_discriminator", "bfd.auth.type", "bfd.auth.len",
	}
	args := []string{"-o", "udp.check_checksum:TRUE", "-T", "fields", "-E", "separator=;"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	seen := map[string]int{}
	for _, line := range c.tshark(t, args...) {
		values := strings.Split(line, ";")
		if len(values) != len(fields) {
			t.Fatalf("tshark printed %q", line)
		}
		f := map[string]string{}
		for i, name := range fields {
			f[name] = values[i]
		}
		family := 4
		if f["ipv6.src"] != "" {
			family = 6
		}
		src := netip.MustParseAddr(f["ip.src"] + f["ipv6.src"])
		kind, hops := "request", "255" // as they leave host a
		if f["udp.srcport"] == strconv.Itoa(sbfdPort) {
			kind = "reply"
		}
		if src != p.a.locator("f1", family) {
			hops = "254" // a router further
			if src != p.b.locator("f1", family) {
				t.Fatalf("a probe from %s: %s", src, line)
			}
		}
		seen[fmt.Sprintf("%s IPv%d from %s", kind, family, src)]++
		want := map[string]string{
			"ip.ttl": hops, "ip.dsfield.dscp": "48", "ip.flags.df": "1",
			"udp.srcport": "61784", "udp.dstport": "7784", "udp.checksum.status": "1",
			"bfd.version": "1", "bfd.diag": "0x00", "bfd.sta": "0x03", "bfd.flags": "0xc6", "bfd.message_length": "64",
			"bfd.your_discriminator": "0x504c4149", "bfd.auth.type": "250", "bfd.auth.len": "40",
		}
		if family == 6 {
			want["ipv6.hlim"], want["ipv6.tclass.dscp"] = hops, "48"
			delete(want, "ip.ttl")
			delete(want, "ip.dsfield.dscp")
			delete(want, "ip.flags.df")
		}
		if kind == "reply" {
			want["udp.srcport"], want["udp.dstport"] = want["udp.dstport"], want["udp.srcport"]
			want["bfd.my_discriminator"] = want["bfd.your_discriminator"]
			delete(want, "bfd.your_discriminator")
			want["bfd.flags"] = "0xc4"
		}
		for name, value := range want {
			if f[name] != value {
				t.Errorf("%s: %s is %q, want %q", kind, name, f[name], value)
			}
		}
		if t.Failed() {
			t.Fatalf("tshark printed %q", line)
		}
	}
	if len(seen) != 8 {
		t.Errorf("captured %v, want requests and replies of both hosts and families", seen)
	}
}

// tap is a raw socket on a fabric's port to a host.
type tap struct {
	fd   int
	port *net.Interface
}

// openTap opens one in both directions; what the port sends to the host is seen too.
func openTap(t *testing.T, p *pair, fabric, host string) *tap {
	t.Helper()
	x := &tap{}
	err := p.Fabric(fabric).Do(func() (err error) {
		if x.port, err = net.InterfaceByName(host); err != nil {
			return err
		}
		if x.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		limit := unix.NsecToTimeval(int64(deadline))
		if err := unix.SetsockoptTimeval(x.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL)
		return unix.Bind(x.fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: x.port.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(x.fd) })
	return x
}

// probe waits for a request or a reply from one locator to another and returns its frame.
func (x *tap) probe(t *testing.T, src, dst netip.Addr, reply bool) frame {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		buf := make([]byte, 2000)
		n, _, err := unix.Recvfrom(x.fd, buf, 0)
		if err != nil {
			t.Fatal(err)
		}
		if f := frame(buf[:n]); f.isProbe() && f.src() == src && f.dst() == dst && (f.bfd()[offFlags]&1 != 0) == reply {
			return f
		}
	}
	t.Fatalf("no probe from %s to %s", src, dst)
	return nil
}

// send sends a frame out of the port, n times.
func (x *tap) send(t *testing.T, f frame, n int) {
	t.Helper()
	for range n {
		if err := unix.Sendto(x.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: x.port.Index}); err != nil {
			t.Fatal(err)
		}
	}
}

// frame is an Ethernet frame of a probe: IPv4 without options or IPv6 without extension headers.
type frame []byte

const etherLen = 14

func (f frame) six() bool { return binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 }

func (f frame) ipLen() int {
	if f.six() {
		return 40
	}
	return 20
}

func (f frame) udp() []byte { return f[etherLen+f.ipLen():] }
func (f frame) bfd() []byte { return f.udp()[8:] }

func (f frame) isProbe() bool {
	if len(f) != etherLen+f.ipLen()+8+bfdLen {
		return false
	}
	src, dst := binary.BigEndian.Uint16(f.udp()), binary.BigEndian.Uint16(f.udp()[2:])
	return src == sbfdPort && dst == probePort || src == probePort && dst == sbfdPort
}

func (f frame) addrs() (src, dst []byte) {
	if f.six() {
		return f[etherLen+8 : etherLen+24], f[etherLen+24 : etherLen+40]
	}
	return f[etherLen+12 : etherLen+16], f[etherLen+16 : etherLen+20]
}

func (f frame) src() netip.Addr {
	b, _ := f.addrs()
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (f frame) dst() netip.Addr {
	_, b := f.addrs()
	a, _ := netip.AddrFromSlice(b)
	return a
}

// changed returns a copy that change was applied to, with its lengths and checksums put right.
func (f frame) changed(change func(frame) frame) frame {
	g := change(bytes.Clone(f))
	udpLen := len(g) - etherLen - g.ipLen()
	binary.BigEndian.PutUint16(g.udp()[4:], uint16(udpLen))
	src, dst := g.addrs()
	if g.six() {
		binary.BigEndian.PutUint16(g[etherLen+4:], uint16(udpLen))
	} else {
		ip := g[etherLen : etherLen+20]
		binary.BigEndian.PutUint16(ip[2:], uint16(20+udpLen))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip)))
	}
	u := g.udp()
	u[6], u[7] = 0, 0
	s, _ := netip.AddrFromSlice(src)
	d, _ := netip.AddrFromSlice(dst)
	binary.BigEndian.PutUint16(u[6:], ^checksum(s, d, unix.IPPROTO_UDP, u))
	return g
}

// set writes bytes into the BFD packet.
func set(off int, b ...byte) func(frame) frame {
	return func(f frame) frame {
		copy(f.bfd()[off:], b)
		return f
	}
}

// flip inverts a bit of the BFD packet.
func flip(off int) func(frame) frame {
	return func(f frame) frame {
		f.bfd()[off] ^= 1
		return f
	}
}

// TestForgedProbes sends probes into hosts that no peer sent, or not now, or not there. Each must be
// counted under its reason, once, and change nothing. The agents are stopped meanwhile, so that no
// true probe is about.
func TestForgedProbes(t *testing.T) {
	for _, f := range forms {
		if f.options.Flat || f.options.Form == lab.Wire && !f.options.FreeUplinks {
			continue // tcx and XDP, once each
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			p := upPair(t, f.options, f.change)
			ring, err := keys.Load(filepath.Join(p.Dir(), "site.key"))
			if err != nil {
				t.Fatal(err)
			}
			tapA, tapB, tapB2 := openTap(t, p, "f1", "a"), openTap(t, p, "f1", "b"), openTap(t, p, "f2", "b")
			for _, family := range families {
				la, lb := p.a.locator("f1", family), p.b.locator("f1", family)
				request := tapB.probe(t, la, lb, false) // as b gets it
				reply := tapB.probe(t, la, lb, true)    // a's answer to b
				other := tapB2.probe(t, p.a.locator("f2", family), p.b.locator("f2", family), false)
				own := tapA.probe(t, lb, la, false) // what a gets from b, for its Ethernet header
				for _, n := range p.nodes() {
					n.agent.signal(t, syscall.SIGSTOP)
				}
				derived := ring[0].Derive("a", "b", la, lb)
				sign := func(change func(frame) frame) func(frame) frame {
					return func(f frame) frame {
						f = change(f)
						b := f.bfd()
						covered := slices.Concat(b[offEpoch:offEpoch+8], b[offReflector:offReflector+8], b[offRound:offRound+8], b[offAuth+1:offEpoch])
						tag := siphash.Hash(binary.LittleEndian.Uint64(derived[:]), binary.LittleEndian.Uint64(derived[8:]), covered)
						binary.LittleEndian.PutUint64(b[offTag:], tag)
						return f
					}
				}
				round := func(f frame, add int64) uint64 { return binary.BigEndian.Uint64(f.bfd()[offRound:]) + uint64(add) }
				setRound := func(add int64) func(frame) frame {
					return func(f frame) frame {
						binary.BigEndian.PutUint64(f.bfd()[offRound:], round(f, add))
						return f
					}
				}
				same := func(f frame) frame { return f }
				if !bytes.Equal(request.changed(sign(same)), request) {
					t.Fatalf("a probe that is signed anew differs:\n%x\n%x", request, request.changed(sign(same)))
				}
				cut := func(n int) func(frame) frame {
					return func(f frame) frame { return f[:len(f)-bfdLen+n] }
				}
				for _, c := range []struct {
					name   string
					to     *node
					tap    *tap
					frame  frame
					reason string // "": passed on, not counted
				}{
					{"an old request", p.b, tapB, request, "probe_replayed"},
					{"an old reply", p.b, tapB, reply, "probe_replayed"},
					{"a request cut to 63 bytes", p.b, tapB, request.changed(cut(63)), "probe_truncated"},
					{"a request cut to nothing", p.b, tapB, request.changed(cut(0)), "probe_truncated"},
					{"a longer request", p.b, tapB, request.changed(func(f frame) frame { return append(f, 0) }), "probe_format"},
					{"another version", p.b, tapB, request.changed(set(offVersion, 0x40)), "probe_format"},
					{"another length", p.b, tapB, request.changed(set(offLength, 63)), "probe_format"},
					{"another state than under the tag", p.b, tapB, request.changed(set(offState, 0x44|2)), "probe_format"},
					{"another discriminator", p.b, tapB, request.changed(flip(offMyDiscr + 3)), "probe_format"},
					{"a request from the reflector's port", p.b, tapB, request.changed(func(f frame) frame {
						binary.BigEndian.PutUint16(f.udp(), sbfdPort)
						binary.BigEndian.PutUint16(f.udp()[2:], probePort)
						return f
					}), "probe_format"},
					{"an unknown key", p.b, tapB, request.changed(set(offKeyID, 77)), "probe_key"},
					{"no key", p.b, tapB, request.changed(set(offKeyID, 0)), "probe_key"},
					{"a newer round under the old tag", p.b, tapB, request.changed(setRound(1000)), "probe_tag"},
					{"another epoch under the old tag", p.b, tapB, request.changed(flip(offEpoch)), "probe_tag"},
					{"another tag", p.b, tapB, request.changed(flip(offTag)), "probe_tag"},
					{"a reply of a newer round under the old tag", p.b, tapB, reply.changed(setRound(1)), "probe_tag"},
					{"a request of another path", p.b, tapB, request.changed(func(f frame) frame {
						copy(f.bfd(), other.bfd())
						return f
					}), "probe_tag"},
					{"our own request sent back", p.a, tapA, own.changed(func(f frame) frame {
						copy(f.bfd(), request.bfd())
						return f
					}), "probe_tag"},
					{"an earlier life of the peer", p.b, tapB, request.changed(sign(func(f frame) frame {
						e := binary.BigEndian.Uint64(f.bfd()[offEpoch:])
						binary.BigEndian.PutUint64(f.bfd()[offEpoch:], e-1)
						return setRound(1000)(f)
					})), "probe_epoch"},
					{"a reply to a later life of ours", p.b, tapB, reply.changed(sign(func(f frame) frame {
						e := binary.BigEndian.Uint64(f.bfd()[offEpoch:])
						binary.BigEndian.PutUint64(f.bfd()[offEpoch:], e+1)
						return setRound(1000)(f)
					})), "probe_epoch"},
					{"a reply to a round that was not sent", p.b, tapB, reply.changed(sign(setRound(1_000_000))), "probe_future"},
					{"from an address that is no locator", p.b, tapB, request.changed(func(f frame) frame {
						src, _ := f.addrs()
						src[len(src)-1] = 77
						return f
					}), "probe_foreign"},
					{"from too far away", p.b, tapB, request.changed(func(f frame) frame {
						if f.six() {
							f[etherLen+7] = 127
						} else {
							f[etherLen+8] = 127
						}
						return f
					}), ""},
				} {
					t.Run(fmt.Sprintf("IPv%d, %s", family, c.name), func(t *testing.T) {
						const n = 3
						before := c.to.status(t)
						c.tap.send(t, c.frame, n)
						var after *status.Status
						want := ""
						if c.reason != "" {
							want = fmt.Sprintf("%s %d", c.reason, n)
						}
						eventually(t, func() error {
							after = c.to.status(t)
							if got := counts(before, after); got != want {
								return fmt.Errorf("counted %q, want %q", got, want)
							}
							return nil
						})
						if d := changedPaths(before, after); d != "" {
							t.Error(d)
						}
					})
				}
				for _, n := range p.nodes() {
					n.agent.signal(t, syscall.SIGCONT)
				}
				p.waitUp(t)
			}
			testOldLife(t, p, tapB)
		})
	}
}

// changedPaths says what a host's paths recorded between two looks, if anything.
func changedPaths(before, after *status.Status) string {
	var out []string
	for i := range before.Peers {
		for j := range before.Peers[i].Paths {
			b, a := before.Peers[i].Paths[j], after.Peers[i].Paths[j]
			if a.State != b.State || a.Fresh != b.Fresh || a.Up != b.Up || a.Transitions != b.Transitions ||
				a.Requests != b.Requests || a.Replies != b.Replies || a.RxPackets != b.RxPackets || a.TxPackets != b.TxPackets {
				out = append(out, fmt.Sprintf("path %s was %+v and is %+v", &a, b, a))
			}
		}
	}
	return strings.Join(out, "\n")
}

// testOldLife records probes of host a, has it start anew, and plays them to b.
func testOldLife(t *testing.T, p *pair, tapB *tap) {
	t.Helper()
	var recorded []frame
	for _, family := range families {
		recorded = append(recorded, tapB.probe(t, p.a.locator("f1", family), p.b.locator("f1", family), false))
	}
	const recognised = "peer's data plane recognised"
	known := strings.Count(p.b.agent.out.String(), recognised)
	p.a.takeDown(t)
	p.a.run(t)
	p.waitUp(t)
	eventually(t, func() error {
		if n := strings.Count(p.b.agent.out.String(), recognised) - known; n < len(families) {
			return fmt.Errorf("host b has recognised its new peer in %d families", n)
		}
		return nil
	})
	for _, n := range p.nodes() {
		n.agent.signal(t, syscall.SIGSTOP)
	}
	before := p.b.status(t)
	for _, f := range recorded {
		tapB.send(t, f, 5)
	}
	eventually(t, func() error {
		after := p.b.status(t)
		if got, want := counts(before, after), "probe_epoch 10"; got != want {
			return fmt.Errorf("probes from before a start anew: counted %q, want %q", got, want)
		}
		if d := changedPaths(before, after); d != "" {
			t.Fatal(d)
		}
		return nil
	})
	for _, n := range p.nodes() {
		n.agent.signal(t, syscall.SIGCONT)
	}
	p.waitUp(t)
}
