// SPDX-License-Identifier: Apache-2.0

// Package keys reads and makes the secrets that authenticate probes, and derives the keys that sign them.
//
// A key file is text. Empty lines and lines that begin with # are ignored. Every other line, one or two of them, is a key:
//
//	plait-key-1:ID:SECRET
//
// ID is a decimal number from 1 to 255 and names the key in probes. SECRET is 32 random bytes in base64 (RFC 4648, section
// 4, with padding). The first key signs what this host sends, both are accepted. So a key is replaced without a gap:
// append the new one on every host, then put it first on every host, then remove the old one.
package keys

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const (
	prefix     = "plait-key-1" // version of the line's format
	label      = "plait probe v1"
	secretSize = 32   // bytes
	maxFile    = 4096 // bytes
	maxKeys    = 2    // that are live at once
)

// Errors of Load and Parse, for errors.Is. The messages around them say what to do.
var (
	ErrMissing   = errors.New("the key file does not exist")
	ErrIrregular = errors.New("the key file is not a regular file")
	ErrOwner     = errors.New("the key file belongs to another user")
	ErrReadable  = errors.New("the key file is readable or writable by others than its owner")
	ErrFormat    = errors.New("not a key file")
)

// Key is a secret and the number that names it in probes. Printing it does not show the secret.
type Key struct {
	ID     uint8 // 1..255
	secret [secretSize]byte
}

// Ring is the keys of a file: one or two, with different ids. The first signs, all are accepted.
type Ring []Key

// Generate makes a key of random bytes. id must not be 0.
func Generate(id uint8) (Key, error) {
	if id == 0 {
		return Key{}, errors.New("key id 0 means no key: use 1 to 255")
	}
	k := Key{ID: id}
	// Read never fails: it crashes the program if the kernel has no random bytes.
	_, _ = rand.Read(k.secret[:])
	return k, nil
}

// Line returns the key's line of a key file, without a line break. It contains the secret.
func (k Key) Line() string {
	return prefix + ":" + strconv.Itoa(int(k.ID)) + ":" + base64.StdEncoding.EncodeToString(k.secret[:])
}

// String names the key without its secret.
func (k Key) String() string { return "key " + strconv.Itoa(int(k.ID)) }

// Format writes what String returns for every verb, so that no secret gets into a message.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue is String.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Derive returns the SipHash-2-4 key, 16 bytes, of the probe packets that sender sends to receiver from address src to
// address dst. Both hosts derive the same. Requests and replies of a path have different keys, and so has every path: no
// packet can be played back to its sender or moved to another path.
//
// It is HKDF-SHA256 (RFC 5869) of the secret without salt. The info string is five fields, each preceded by its length
// in bytes (16 bits, big-endian): "plait probe v1", the sender's host name, the receiver's, src and dst as 16 bytes
// (IPv4 as ::ffff:a.b.c.d). It panics if an address is the zero netip.Addr.
func (k Key) Derive(sender, receiver string, src, dst netip.Addr) [16]byte {
	s, d := src.As16(), dst.As16()
	var info []byte
	for _, f := range [...]string{label, sender, receiver, string(s[:]), string(d[:])} {
		info = binary.BigEndian.AppendUint16(info, uint16(len(f)))
		info = append(info, f...)
	}
	out, err := hkdf.Key(sha256.New, k.secret[:], nil, string(info), 16)
	if err != nil {
		panic("HKDF refuses constant lengths: " + err.Error())
	}
	return [16]byte(out)
}

// Create writes a new key file of mode 0600. It never replaces a file: that error is fs.ErrExist.
func Create(path string, ring Ring) error {
	var b bytes.Buffer
	b.WriteString("# plait key file: keep it secret, and the same on all hosts that share it. Mode 0600.\n")
	for _, k := range ring {
		b.WriteString(k.Line() + "\n")
	}
	if _, err := Parse(b.Bytes()); err != nil {
		return fmt.Errorf("creating key file %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("creating key file: %w", err)
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("creating key file %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// Load reads the key file at path, following symbolic links. It must be a regular file that belongs to root or to the
// user that runs plait and that nobody else can read or write.
func Load(path string) (Ring, error) {
	// Without O_NONBLOCK the open of a FIFO would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; make it with: plait genkey %s, and copy it to the peers", path, ErrMissing, path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the key file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the key file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w; name a file, as plait genkey FILE makes it", path, ErrIrregular)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s: %w; run: chown root %s", path, ErrOwner, path)
	}
	if m := info.Mode().Perm(); m&0o077 != 0 {
		return nil, fmt.Errorf("%s: %w (mode %04o); run: chmod 600 %s", path, ErrReadable, m, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the key file: %w", err)
	}
	ring, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ring, nil
}

// Parse reads the text of a key file. Its errors are ErrFormat, say what is wrong in which line, and never show the
// secret.
func Parse(text []byte) (Ring, error) {
	bad := func(line int, format string, args ...any) (Ring, error) {
		return nil, fmt.Errorf("%w: line %d: %s", ErrFormat, line, fmt.Sprintf(format, args...))
	}
	const fix = "make a new one with: plait genkey"
	if len(text) > maxFile {
		return nil, fmt.Errorf("%w: longer than %d bytes; %s", ErrFormat, maxFile, fix)
	}
	var ring Ring
	n := 0
	for line := range bytes.Lines(text) {
		n++
		s := strings.TrimSpace(string(line))
		if s == "" || s[0] == '#' {
			continue
		}
		version, rest, _ := strings.Cut(s, ":")
		id, secret, ok := strings.Cut(rest, ":")
		if version != prefix || !ok {
			return bad(n, "a key is written %s:ID:SECRET; %s", prefix, fix)
		}
		number, err := strconv.ParseUint(id, 10, 8)
		if err != nil || number == 0 || id[0] == '0' {
			return bad(n, "the id is not a number from 1 to 255; correct it on all hosts")
		}
		k := Key{ID: uint8(number)}
		// The length first: the decoder would skip carriage returns within.
		if want := base64.StdEncoding.EncodedLen(secretSize); len(secret) != want {
			return bad(n, "the secret has %d characters instead of %d; copy the whole line, or %s", len(secret), want, fix)
		}
		raw, err := base64.StdEncoding.Strict().DecodeString(secret)
		if err != nil || len(raw) != secretSize {
			return bad(n, "the secret is not the base64 of %d bytes; copy the whole line, or %s", secretSize, fix)
		}
		copy(k.secret[:], raw)
		if k.secret == ([secretSize]byte{}) {
			return bad(n, "the secret is all zeroes; %s", fix)
		}
		if len(ring) == maxKeys {
			return bad(n, "a third key; at most %d are live at once: remove the oldest", maxKeys)
		}
		for _, other := range ring {
			if other.ID == k.ID {
				return bad(n, "key id %d is used twice; make the new key with another id: plait genkey --id %d", k.ID, k.ID%255+1)
			}
			if subtle.ConstantTimeCompare(other.secret[:], k.secret[:]) == 1 {
				return bad(n, "the same secret again; %s", fix)
			}
		}
		ring = append(ring, k)
	}
	if len(ring) == 0 {
		return nil, fmt.Errorf("%w: it holds no key; %s", ErrFormat, fix)
	}
	return ring, nil
}
