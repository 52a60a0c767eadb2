// SPDX-License-Identifier: Apache-2.0

// Package lab builds small networks out of network namespaces: hosts with one uplink to each of
// several fabrics, and faults to try on them. plaitlab and the end-to-end tests stand on it.
//
// A host and a fabric are a namespace each (pl-LAB-HOST, pl-LAB-FABRIC under /run/netns, so that
// `ip netns exec` works too), joined by veth pairs. In a host the uplink to fabric i is called up<i>;
// in a fabric a port is called like the host behind it. A fabric is a router with a subnet for each
// host, or, in a flat lab, a bridge with one subnet for all.
//
// Addresses: the identity of host j is 10.255.0.j and fd00:255::j (the lab only reserves it). Its
// locators on fabric i are 10.i.j.2/24 and fd00:i:j::2/64 with the router at .1 and ::1, or 10.i.0.j/24
// and fd00:i::j/64 without a gateway in a flat lab. In an IPv6 address i and j are hexadecimal.
//
// In the virtual form nothing but tcx stands between two hosts, and super-packets cross a fabric whole,
// as between virtual machines of one hypervisor. In the wire form both ends of every veth pair have an
// XDP program: super-packets are segmented before they leave a host, and XDP_TX works, as with NICs.
//
// A lab lives in files, pins and the kernel, not in the process that made it: Open finds it again from
// another process, and Down removes every trace of it, also after a crash half-way through Up.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// DirEnv is the environment variable that names the directory of all labs' state.
const DirEnv = "PLAITLAB_DIR"

// NameEnv and HostEnv tell a process inside a host which lab and host it is in.
const (
	NameEnv = "PLAITLAB_LAB"
	HostEnv = "PLAITLAB_HOST"
)

const (
	defaultDir = "/run/plaitlab"
	netnsDir   = "/run/netns"
	stateFile  = "state.json"
	lockFile   = "lock"

	maxHosts   = 64 // a one-way cut has a bit for each
	maxFabrics = 15 // 10.i and fd00:i must not meet the identities
)

// ErrNotFound is returned by Open for a lab that does not exist.
var ErrNotFound = errors.New("no such lab")

// ErrExists is returned by Up for a name that is taken.
var ErrExists = errors.New("a lab of that name exists")

// Form says what a veth pair of the lab resembles.
type Form int

const (
	// Virtual has no XDP program anywhere: super-packets cross the fabrics whole.
	Virtual Form = iota
	// Wire has an XDP program at both ends of every veth pair: no frame is longer than the MTU.
	Wire
)

// String returns "virtual" or "wire".
func (f Form) String() string {
	if f == Wire {
		return "wire"
	}
	return "virtual"
}

// MarshalText implements encoding.TextMarshaler.
func (f Form) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Form) UnmarshalText(b []byte) error {
	switch string(b) {
	case "virtual":
		*f = Virtual
	case "wire":
		*f = Wire
	default:
		return fmt.Errorf("form %q: want virtual or wire", b)
	}
	return nil
}

// Options describe a lab.
type Options struct {
	Name    string   // lower-case letters and digits, at most 16; "": random
	Form    Form     // Virtual or Wire
	Hosts   []string // names, at most 8 lower-case letters and digits each; default a, b
	Fabrics int      // 1..15, called f1, f2, ...; default 2
	Flat    bool     // one subnet for all hosts of a fabric and no router
	MTU     int      // of every uplink and port, 1280..65535; default 1500

	// TxChecksum switches transmit checksum offload off at every veth end, so that checksums are
	// really computed before a packet leaves and can be verified in a capture. Wire form only.
	TxChecksum bool

	// FreeUplinks leaves the XDP hook of the hosts' uplinks free, for a program under test. Wire form
	// only. GRO is switched on there instead, so that the fabric's end can XDP_TX and redirect to it.
	FreeUplinks bool
}

// Lab is a lab that is up. Its exported fields are not to be changed.
type Lab struct {
	Name        string    `json:"name"`
	Form        Form      `json:"form"`
	Flat        bool      `json:"flat"`
	MTU         int       `json:"mtu"`
	TxChecksum  bool      `json:"tx_checksum"`
	FreeUplinks bool      `json:"free_uplinks"`
	Hosts       []*Host   `json:"hosts"`
	Fabrics     []*Fabric `json:"fabrics"`

	base string // directory of all labs

	mu        sync.Mutex
	maps      *maps             // opened at the first use
	relays    map[string]*relay // of this process, by fabric
	relayArgv []string          // see DetachRelays
}

// Host is a host of a lab.
type Host struct {
	Namespace
	Name      string     `json:"name"`
	Number    int        `json:"number"` // from 1: the j of its addresses
	Identity4 netip.Addr `json:"identity4"`
	Identity6 netip.Addr `json:"identity6"`
	Uplinks   []Uplink   `json:"uplinks"` // one to each fabric, in their order

	// BPFFS is a BPF file system, RunDir a directory of mode 0700; both are this host's own and are
	// what PLAIT_BPFFS and PLAIT_RUN_DIR say in its processes.
	BPFFS  string `json:"bpffs"`
	RunDir string `json:"run_dir"`

	lab *Lab
}

// Uplink is a host's interface to a fabric.
type Uplink struct {
	Name     string     `json:"name"` // up1 to fabric f1, and so on
	Fabric   string     `json:"fabric"`
	Addr4    netip.Addr `json:"addr4"`
	Addr6    netip.Addr `json:"addr6"`
	Gateway4 netip.Addr `json:"gateway4"` // not valid in a flat lab
	Gateway6 netip.Addr `json:"gateway6"`
}

// Fabric is the network between the hosts' uplinks of one number.
type Fabric struct {
	Namespace
	Name   string `json:"name"`
	Number int    `json:"number"` // from 1: the i of its addresses
}

// Host returns the host of that name, or nil.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.Hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Fabric returns the fabric of that name, or nil.
func (l *Lab) Fabric(name string) *Fabric {
	for _, f := range l.Fabrics {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// Uplink returns the host's uplink to that fabric, or nil.
func (h *Host) Uplink(fabric string) *Uplink {
	for i := range h.Uplinks {
		if h.Uplinks[i].Fabric == fabric {
			return &h.Uplinks[i]
		}
	}
	return nil
}

// Dir returns the directory that holds the lab's state.
func (l *Lab) Dir() string { return filepath.Join(l.base, l.Name) }

// bpffs is the BPF file system of the lab's own maps and links.
func (l *Lab) bpffs() string { return filepath.Join(l.Dir(), "bpf") }

// Up builds a lab. On error nothing of it is left behind. It needs root. The error is ErrExists when
// the name is taken.
func Up(ctx context.Context, o Options) (*Lab, error) {
	return up(ctx, o, func(string) error { return nil })
}

// Open finds a lab that another process may have made, also one whose Up was interrupted. The error
// is ErrNotFound when there is none.
func Open(name string) (*Lab, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("lab %q: %w", name, ErrNotFound)
	}
	base := baseDir()
	b, err := os.ReadFile(filepath.Join(base, name, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading lab %s: %w", name, err)
	}
	l := &Lab{base: base}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("reading lab %s: %w", name, err)
	}
	for _, h := range l.Hosts {
		h.lab = l
	}
	return l, nil
}

// List returns the names of all labs, sorted.
func List() ([]string, error) {
	entries, err := os.ReadDir(baseDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if validName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Down ends every process inside the lab's namespaces and removes all that Up made. It can be repeated
// and goes on after an error, so that as little as possible is left; what could not be removed is in
// the error.
func (l *Lab) Down() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, r := range l.relays {
		r.close()
		delete(l.relays, name)
	}
	if l.maps != nil {
		l.maps.close()
		l.maps = nil
	}
	unlock, err := l.lock()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return l.teardown()
}

func (l *Lab) namespaces() []Namespace {
	var all []Namespace
	for _, h := range l.Hosts {
		all = append(all, h.Namespace)
	}
	for _, f := range l.Fabrics {
		all = append(all, f.Namespace)
	}
	return all
}

// teardown does the work of Down; the caller holds the lab's lock.
func (l *Lab) teardown() error {
	var errs []error
	if err := endProcesses(l.namespaces()); err != nil {
		errs = append(errs, err)
	}
	mounts := []string{l.bpffs()}
	for _, h := range l.Hosts {
		mounts = append(mounts, h.BPFFS)
	}
	for _, m := range mounts {
		if err := unmountAll(m); err != nil {
			errs = append(errs, err)
		}
	}
	// Namespaces die in the background. Removing the links first makes them vanish now.
	for _, h := range l.Hosts {
		if err := removeUplinks(h); err != nil {
			errs = append(errs, err)
		}
	}
	for _, ns := range l.namespaces() {
		if err := ns.remove(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		if err := os.RemoveAll(l.Dir()); err != nil {
			errs = append(errs, fmt.Errorf("removing the state of lab %s: %w", l.Name, err))
		}
	}
	return errors.Join(errs...)
}

// lock takes the lab's lock across processes. The error is os.ErrNotExist once the lab is gone.
func (l *Lab) lock() (unlock func(), err error) {
	path := filepath.Join(l.Dir(), lockFile)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("locking lab %s: %w", l.Name, err)
	}
	if err := flock(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking lab %s: %w", l.Name, err)
	}
	// Whoever held the lock may have removed the lab, and the file we wait on with it.
	if _, err := os.Stat(filepath.Join(l.Dir(), stateFile)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking lab %s: %w", l.Name, err)
	}
	return func() { _ = f.Close() }, nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func baseDir() string {
	if d := os.Getenv(DirEnv); d != "" {
		return d
	}
	return defaultDir
}

var (
	validName   = regexp.MustCompile(`^[a-z0-9]{1,16}$`)
	validHost   = regexp.MustCompile(`^[a-z][a-z0-9]{0,7}$`)
	fabricNames = regexp.MustCompile(`^f[0-9]+$`)
)

// plan turns options into the lab they describe, with nothing of it made yet.
func plan(o Options) (*Lab, error) {
	if o.Name == "" {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		o.Name = hex.EncodeToString(b[:])
	}
	if !validName.MatchString(o.Name) {
		return nil, fmt.Errorf("lab name %q: want 1 to 16 lower-case letters and digits", o.Name)
	}
	if len(o.Hosts) == 0 {
		o.Hosts = []string{"a", "b"}
	}
	if o.Fabrics == 0 {
		o.Fabrics = 2
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	switch {
	case o.Form != Virtual && o.Form != Wire:
		return nil, fmt.Errorf("form %d: want Virtual or Wire", int(o.Form))
	case len(o.Hosts) > maxHosts:
		return nil, fmt.Errorf("%d hosts: want at most %d", len(o.Hosts), maxHosts)
	case o.Fabrics < 1 || o.Fabrics > maxFabrics:
		return nil, fmt.Errorf("%d fabrics: want 1 to %d", o.Fabrics, maxFabrics)
	case o.MTU < 1280 || o.MTU > 65535:
		return nil, fmt.Errorf("mtu %d: want 1280 to 65535", o.MTU)
	case o.Form == Virtual && o.TxChecksum:
		return nil, errors.New("computing checksums needs the wire form: super-packets have none")
	case o.Form == Virtual && o.FreeUplinks:
		return nil, errors.New("in the virtual form no uplink has an XDP program: nothing to leave free")
	}

	l := &Lab{
		Name: o.Name, Form: o.Form, Flat: o.Flat, MTU: o.MTU,
		TxChecksum: o.TxChecksum, FreeUplinks: o.FreeUplinks, base: baseDir(),
	}
	for i := 1; i <= o.Fabrics; i++ {
		name := fmt.Sprintf("f%d", i)
		l.Fabrics = append(l.Fabrics, &Fabric{Namespace: l.namespace(name), Name: name, Number: i})
	}
	reserved := []string{"lo", "br", "bpf", lockFile} // interfaces of a fabric, files of a lab
	for n, name := range o.Hosts {
		if !validHost.MatchString(name) {
			return nil, fmt.Errorf("host name %q: want at most 8 lower-case letters and digits, a letter first", name)
		}
		if slices.Contains(reserved, name) || fabricNames.MatchString(name) {
			return nil, fmt.Errorf("host name %q is reserved; so are %s and those of fabrics", name, strings.Join(reserved, ", "))
		}
		if l.Host(name) != nil {
			return nil, fmt.Errorf("host name %q is given twice", name)
		}
		l.Hosts = append(l.Hosts, l.planHost(name, n+1))
	}
	return l, nil
}

func (l *Lab) namespace(name string) Namespace {
	return Namespace{Netns: "pl-" + l.Name + "-" + name}
}

func (l *Lab) planHost(name string, j int) *Host {
	dir := filepath.Join(l.Dir(), name)
	h := &Host{
		Namespace: l.namespace(name), Name: name, Number: j, lab: l,
		Identity4: addr("10.255.0.%d", j),
		Identity6: addr("fd00:255::%x", j),
		BPFFS:     filepath.Join(dir, "bpf"),
		RunDir:    filepath.Join(dir, "run"),
	}
	for _, f := range l.Fabrics {
		u := Uplink{Name: fmt.Sprintf("up%d", f.Number), Fabric: f.Name}
		if l.Flat {
			u.Addr4 = addr("10.%d.0.%d", f.Number, j)
			u.Addr6 = addr("fd00:%x::%x", f.Number, j)
		} else {
			u.Addr4 = addr("10.%d.%d.2", f.Number, j)
			u.Addr6 = addr("fd00:%x:%x::2", f.Number, j)
			u.Gateway4 = addr("10.%d.%d.1", f.Number, j)
			u.Gateway6 = addr("fd00:%x:%x::1", f.Number, j)
		}
		h.Uplinks = append(h.Uplinks, u)
	}
	return h
}

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}
