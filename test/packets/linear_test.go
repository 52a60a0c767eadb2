// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// xdpMD is struct xdp_md, the context of an XDP program. Its DataEnd limits the linear part; the rest
// of the frame is in fragments.
type xdpMD struct {
	Data, DataEnd, DataMeta                     uint32
	IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// needLinear skips the test on kernels whose test-run cannot shorten the linear part (Linux 6.18).
func needLinear(t *testing.T, w *world) {
	t.Helper()
	frame := ethernet(0x88cc, pattern(200))
	_, err := w.IngressXDP.Run(&ebpf.RunOptions{Data: frame, Context: &xdpMD{DataEnd: 100}})
	if version, verr := features.LinuxVersionCode(); verr == nil && version < 6<<16|18<<8 && errors.Is(err, unix.EINVAL) {
		t.Skip("test-run of this kernel has no fragments")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestShortLinear: some drivers leave XDP little of a frame in one piece. What is not there cannot be
// restored, and is dropped and counted as such, so that an operator takes the other hook.
func TestShortLinear(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	needLinear(t, w)
	for _, s := range samples() {
		t.Run(fmt.Sprintf("%s %s", s.family, s.name), func(t *testing.T) {
			in := s.frame(locators(s.family, hostB, hostA, 0), 255)
			whole := want{
				frame: s.frame(identities(s.family, hostB, hostA), 127), rx: 1, path: int(w.path(hostB, s.family, 0)),
			}
			header := packet{}.l4(s.family)
			// Beyond the headers every length is the same.
			for n := ethLen; n < min(len(in), s.needed(s.restored)+2); n++ {
				result := want{verdict: drop, reason: rShortLinear}
				switch {
				case n >= s.needed(s.restored):
					result = whole
				case n < header, s.shortPasses && n >= s.l4(s.family):
					result = want{}
				}
				result.note = fmt.Sprintf("%d of %d bytes linear", n, len(in))
				w.checkWith(t, ingressXDP, in, &xdpMD{DataEnd: uint32(n)}, result)
			}
		})
	}
}

// TestShortLinearProbe: the same for probes.
func TestShortLinearProbe(t *testing.T) {
	w := newWorld(t, hostA, hostB)
	needLinear(t, w)
	for _, f := range families {
		for _, p := range []probe{peersRequest(0), peersReply(0)} {
			frame := p.on(f, hostB, hostA, 0, 0)
			l4 := packet{}.l4(f)
			for n := l4; n < len(frame); n++ {
				result := want{verdict: drop, reason: rProbeTruncated, note: fmt.Sprintf("%d bytes linear", n)}
				if n < l4+udpLen {
					result.reason = rShortLinear
				}
				w.checkWith(t, ingressXDP, frame, &xdpMD{DataEnd: uint32(n)}, result)
			}
		}
	}
}
