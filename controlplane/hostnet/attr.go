// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// attrTypeMask takes the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER off an attribute's type.
const attrTypeMask = 0x3fff

// attrs calls fn for each netlink attribute in b. It stops at the first malformed one; what follows
// that could be anything.
func attrs(b []byte, fn func(typ uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		fn(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// attrUint32 returns the number in an attribute, 0 if it is too short for one.
func attrUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// attrAddr returns the address in an attribute, the zero Addr if its length is that of no address.
func attrAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}
