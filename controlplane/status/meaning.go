// SPDX-License-Identifier: Apache-2.0

package status

// Meaning says in a few words why packets are counted under a reason (the name of a maps.Reason), or
// nothing if the reason is not known here.
func Meaning(reason string) string { return meanings[reason] }

var meanings = map[string]string{
	"egress_not_ip":        "sent to plait0, neither IPv4 nor IPv6",
	"egress_truncated":     "sent to plait0, headers longer than the packet",
	"egress_unknown_peer":  "sent to an address that is no peer's identity",
	"egress_bad_source":    "sent from an address that is not our identity",
	"egress_not_announced": "the peer has not said yet that it restores packets",
	"egress_unsupported":   "AH, routing header, too many headers: not translatable",
	"egress_native_port":   "a port of native_ports: never translated",
	"egress_no_path":       "no path to the peer has an uplink and a next hop",
	"egress_rewrite":       "the kernel refused to rewrite the packet",
	"egress_far_end":       "passed through plait0: the egress program is missing",
	"ingress_truncated":    "translated packet, headers longer than the packet",
	"ingress_unsupported":  "translated packet that cannot be restored",
	"ingress_rewrite":      "the kernel refused to restore the packet",
	"ingress_short_linear": "XDP: headers outside the linear part; use ingress: tc",
	"probe_truncated":      "probe shorter than it says",
	"probe_format":         "probe of another version, length or form",
	"probe_foreign":        "UDP 7784 between addresses that are no path; passed on",
	"probe_key":            "probe with a key id that is not ours",
	"probe_tag":            "probe that does not verify: other key, or forged",
	"probe_epoch":          "probe of an earlier life of one of the hosts",
	"probe_replayed":       "probe no newer than the newest: late, doubled, replayed",
	"probe_future":         "answer to a probe that was not sent",
	"probe_rate":           "more probes than a path may bring",
	"probe_unconfirmed":    "first probes after a restart; answered, not yet trusted",
}
