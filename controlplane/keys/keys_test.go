// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// counting returns the secret 00 01 02 ... plus first.
func counting(first byte) (s [secretSize]byte) {
	for i := range s {
		s[i] = first + byte(i)
	}
	return s
}

func line(id int, secret [secretSize]byte) string {
	return fmt.Sprintf("plait-key-1:%d:%s\n", id, base64.StdEncoding.EncodeToString(secret[:]))
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestDeriveVectors compares with a computation by other software (Python's hmac).
func TestDeriveVectors(t *testing.T) {
	k := Key{ID: 1, secret: counting(0)}
	for _, v := range []struct{ sender, receiver, src, dst, want string }{
		{"a", "b", "10.1.1.2", "10.1.2.2", "6c49ede6ae531ce6ababb7effb7dc1ec"},
		{"b", "a", "10.1.2.2", "10.1.1.2", "34103fe5e99b4c81af1bb589a75feae4"},
		{"a", "b", "fd00:1:1::2", "fd00:1:2::2", "c9f0fb052648f5bdb24d8fa14c06f942"},
		{"db-1.example", "b", "10.1.1.2", "10.1.2.2", "3dbe64d0804d86afa8412b205c4df436"},
	} {
		got := k.Derive(v.sender, v.receiver, addr(v.src), addr(v.dst))
		if hex.EncodeToString(got[:]) != v.want {
			t.Errorf("%v: got %x", v, got)
		}
		if got != slow(k.secret, v.sender, v.receiver, addr(v.src), addr(v.dst)) {
			t.Errorf("%v: slow differs", v)
		}
	}
}

// slow is Derive written out from RFC 5869: one block of output, so T(1) only.
func slow(secret [secretSize]byte, sender, receiver string, src, dst netip.Addr) (out [16]byte) {
	mac := func(key, text []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(text)
		return h.Sum(nil)
	}
	var info []byte
	field := func(b []byte) {
		info = append(info, byte(len(b)>>8), byte(len(b)))
		info = append(info, b...)
	}
	s, d := src.As16(), dst.As16()
	field([]byte("plait probe v1"))
	field([]byte(sender))
	field([]byte(receiver))
	field(s[:])
	field(d[:])
	prk := mac(make([]byte, sha256.Size), secret[:])
	copy(out[:], mac(prk, append(info, 1)))
	return out
}

// TestDeriveDistinct changes one input at a time.
func TestDeriveDistinct(t *testing.T) {
	k := Key{ID: 1, secret: counting(0)}
	a, b, c := addr("10.1.1.2"), addr("10.1.2.2"), addr("10.2.1.2")
	seen := make(map[[16]byte]string)
	for name, got := range map[string][16]byte{
		"request":          k.Derive("a", "b", a, b),
		"reply":            k.Derive("b", "a", b, a),
		"names swapped":    k.Derive("b", "a", a, b),
		"addresses":        k.Derive("a", "b", b, a),
		"other path":       k.Derive("a", "b", c, b),
		"other receiver":   k.Derive("a", "c", a, b),
		"moved boundary":   k.Derive("ab", "", a, b),
		"moved boundary 2": k.Derive("", "ab", a, b),
		"other secret":     Key{ID: 1, secret: counting(1)}.Derive("a", "b", a, b),
	} {
		if other, dup := seen[got]; dup {
			t.Errorf("%s and %s: %x", name, other, got)
		}
		seen[got] = name
	}
	if k.Derive("a", "b", a, b) != (Key{ID: 2, secret: counting(0)}).Derive("a", "b", a, b) {
		t.Error("the id is in the derivation")
	}
}

func TestGenerate(t *testing.T) {
	a, err := Generate(255)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Generate(255)
	if err != nil || a == b || a.ID != 255 {
		t.Errorf("%v: %s, %s", err, a.Line(), b.Line())
	}
	if _, err := Generate(0); err == nil {
		t.Error("id 0")
	}
	ring, err := Parse([]byte(a.Line()))
	if err != nil || len(ring) != 1 || ring[0] != a {
		t.Errorf("%v, %v", ring, err)
	}
}

// TestSecretStaysSecret prints a key in every way there is but Line.
func TestSecretStaysSecret(t *testing.T) {
	k := Key{ID: 7, secret: counting('A')}
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		fmt.Fprintf(&b, verb+"\n", k)
		fmt.Fprintf(&b, verb+"\n", &k)
		fmt.Fprintf(&b, verb+"\n", Ring{k})
		fmt.Fprintf(&b, verb+"\n", map[string]Ring{"b": {k}})
	}
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "key", k, "ring", Ring{k})
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "key", k, "ring", Ring{k})
	for _, secret := range []string{"ABCD", "QUJD", "41424344", "65 66", "65, 66", "0x41"} {
		if strings.Contains(b.String(), secret) {
			t.Errorf("%s in %s", secret, b.String())
		}
	}
	if !strings.Contains(b.String(), "key 7") {
		t.Error(b.String())
	}
}

func TestParse(t *testing.T) {
	one, two := counting(1), counting(2)
	for name, tt := range map[string]struct {
		text string
		want Ring
	}{
		"one":        {line(1, one), Ring{{1, one}}},
		"two":        {line(255, two) + line(1, one), Ring{{255, two}, {1, one}}},
		"no newline": {strings.TrimSpace(line(1, one)), Ring{{1, one}}},
		"comments":   {"# a\n\n  # plait-key-1:9:x\n\t" + line(1, one) + "\n#", Ring{{1, one}}},
		"CRLF":       {strings.ReplaceAll(line(1, one), "\n", "\r\n"), Ring{{1, one}}},
	} {
		got, err := Parse([]byte(tt.text))
		if err != nil || len(got) != len(tt.want) {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("%s: key %d differs", name, i)
			}
		}
	}
}

func TestParseErrors(t *testing.T) {
	const fresh = "make a new one with: plait genkey"
	one, two, three := counting(1), counting(2), counting(3)
	good := strings.TrimSpace(line(1, one))
	secret := good[len("plait-key-1:1:"):]
	for name, tt := range map[string]struct{ text, want string }{
		"empty":           {"", "not a key file: it holds no key; " + fresh},
		"comment":         {"# x\n", "not a key file: it holds no key; " + fresh},
		"other file":      {"root:x:0:0\n", "not a key file: line 1: a key is written plait-key-1:ID:SECRET; " + fresh},
		"other version":   {"\nplait-key-2" + good[len("plait-key-1"):], "not a key file: line 2: a key is written plait-key-1:ID:SECRET; " + fresh},
		"no id":           {"plait-key-1:" + secret, "not a key file: line 1: a key is written plait-key-1:ID:SECRET; " + fresh},
		"empty id":        {"plait-key-1::" + secret, "not a key file: line 1: the id is not a number from 1 to 255; correct it on all hosts"},
		"id 0":            {"plait-key-1:0:" + secret, "not a key file: line 1: the id is not a number from 1 to 255; correct it on all hosts"},
		"id 256":          {"plait-key-1:256:" + secret, "not a key file: line 1: the id is not a number from 1 to 255; correct it on all hosts"},
		"id 01":           {"plait-key-1:01:" + secret, "not a key file: line 1: the id is not a number from 1 to 255; correct it on all hosts"},
		"negative id":     {"plait-key-1:-1:" + secret, "not a key file: line 1: the id is not a number from 1 to 255; correct it on all hosts"},
		"short":           {good[:len(good)-1], "not a key file: line 1: the secret has 43 characters instead of 44; copy the whole line, or " + fresh},
		"long":            {good + "x", "not a key file: line 1: the secret has 45 characters instead of 44; copy the whole line, or " + fresh},
		"no secret":       {"plait-key-1:1:", "not a key file: line 1: the secret has 0 characters instead of 44; copy the whole line, or " + fresh},
		"no base64":       {good[:len(good)-2] + "!=", "not a key file: line 1: the secret is not the base64 of 32 bytes; copy the whole line, or " + fresh},
		"too many bytes":  {"plait-key-1:1:" + strings.Repeat("A", 44), "not a key file: line 1: the secret is not the base64 of 32 bytes; copy the whole line, or " + fresh},
		"stray bits":      {"plait-key-1:1:" + strings.Repeat("A", 42) + "B=", "not a key file: line 1: the secret is not the base64 of 32 bytes; copy the whole line, or " + fresh},
		"carriage return": {good[:20] + "\r" + good[21:], "not a key file: line 1: the secret is not the base64 of 32 bytes; copy the whole line, or " + fresh},
		"zeroes":          {line(1, [32]byte{}), "not a key file: line 1: the secret is all zeroes; " + fresh},
		"same id":         {line(1, one) + "\n" + line(1, two), "not a key file: line 3: key id 1 is used twice; make the new key with another id: plait genkey --id 2"},
		"same last id":    {line(255, one) + line(255, two), "not a key file: line 2: key id 255 is used twice; make the new key with another id: plait genkey --id 1"},
		"same secret":     {line(1, one) + line(2, one), "not a key file: line 2: the same secret again; " + fresh},
		"three keys":      {line(1, one) + line(2, two) + line(3, three), "not a key file: line 3: a third key; at most 2 are live at once: remove the oldest"},
		"too long":        {line(1, one) + strings.Repeat("#", maxFile), "not a key file: longer than 4096 bytes; " + fresh},
	} {
		ring, err := Parse([]byte(tt.text))
		if ring != nil || !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, ring, err)
			continue
		}
		if err.Error() != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, err, tt.want)
		}
		if strings.Contains(err.Error(), secret[:8]) {
			t.Errorf("%s: the secret is in %s", name, err)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, mode fs.FileMode, text string) string {
		if err := os.WriteFile(path(name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		// WriteFile applies the umask.
		if err := os.Chmod(path(name), mode); err != nil {
			t.Fatal(err)
		}
		return path(name)
	}
	good := line(1, counting(1))
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(path("directory"), 0o700))
	must(syscall.Mkfifo(path("fifo"), 0o600))
	must(os.Symlink(write("good", 0o600, good), path("link")))
	must(os.Symlink(path("nowhere"), path("dangling")))

	for _, p := range []string{path("good"), path("link"), write("read-only", 0o400, good)} {
		if ring, err := Load(p); err != nil || len(ring) != 1 || ring[0] != (Key{1, counting(1)}) {
			t.Errorf("%s: %v, %v", p, ring, err)
		}
	}
	for _, tt := range []struct {
		path string
		is   error
		want string // after the path
	}{
		{path("none"), ErrMissing, ": the key file does not exist; make it with: plait genkey " + path("none") + ", and copy it to the peers"},
		{path("dangling"), ErrMissing, ": the key file does not exist; make it with: plait genkey " + path("dangling") + ", and copy it to the peers"},
		{path("directory"), ErrIrregular, ": the key file is not a regular file; name a file, as plait genkey FILE makes it"},
		{path("fifo"), ErrIrregular, ": the key file is not a regular file; name a file, as plait genkey FILE makes it"},
		{"/dev/null", ErrIrregular, ": the key file is not a regular file; name a file, as plait genkey FILE makes it"},
		{write("group", 0o640, good), ErrReadable, ": the key file is readable or writable by others than its owner (mode 0640); run: chmod 600 " + path("group")},
		{write("others", 0o604, good), ErrReadable, ": the key file is readable or writable by others than its owner (mode 0604); run: chmod 600 " + path("others")},
		{write("writable", 0o602, good), ErrReadable, ": the key file is readable or writable by others than its owner (mode 0602); run: chmod 600 " + path("writable")},
		{write("empty", 0o600, ""), ErrFormat, ": not a key file: it holds no key; make a new one with: plait genkey"},
	} {
		ring, err := Load(tt.path)
		if ring != nil || !errors.Is(err, tt.is) {
			t.Errorf("%s: %v, %v", tt.path, ring, err)
			continue
		}
		if want := tt.path + tt.want; err.Error() != want {
			t.Errorf("got  %s\nwant %s", err, want)
		}
	}

	if os.Geteuid() != 0 {
		t.Log("not root: a file of another user cannot be made")
		return
	}
	foreign := write("foreign", 0o600, good)
	must(os.Chown(foreign, 65534, -1))
	_, err := Load(foreign)
	if want := foreign + ": the key file belongs to another user; run: chown root " + foreign; !errors.Is(err, ErrOwner) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	ring := Ring{{2, counting(2)}, {1, counting(1)}}
	if err := Create(path, ring); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil || len(got) != 2 || got[0] != ring[0] || got[1] != ring[1] {
		t.Errorf("%v, %v", got, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(path, Ring{{3, counting(3)}}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("replaced a file: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed: %v", err)
	}
	for name, bad := range map[string]Ring{
		"no key": nil, "id 0": {{0, counting(1)}}, "same id": {{1, counting(1)}, {1, counting(2)}}, "zeroes": {{ID: 1}},
	} {
		if err := Create(path+"-bad", bad); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(path + "-bad"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was left: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	good := line(1, counting(1))
	for _, s := range []string{
		"", "#", good, good + line(2, counting(2)), "# c\n\n" + good, good[:30], "plait-key-1:", "plait-key-1::", "plait-key-1:1:\r\n", ":::",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ring, err := Parse(text)
		if err != nil {
			if ring != nil || !errors.Is(err, ErrFormat) {
				t.Fatalf("%v, %v", ring, err)
			}
			return
		}
		if len(ring) < 1 || len(ring) > maxKeys {
			t.Fatalf("%d keys", len(ring))
		}
		var again strings.Builder
		for _, k := range ring {
			if k.ID == 0 || !bytes.Contains(text, []byte(k.Line())) {
				t.Fatalf("%s is not in %q", k.Line(), text)
			}
			again.WriteString(k.Line() + "\n")
		}
		back, err := Parse([]byte(again.String()))
		if err != nil || len(back) != len(ring) || back[0] != ring[0] || back[len(back)-1] != ring[len(ring)-1] {
			t.Fatalf("%v, %v", back, err)
		}
	})
}
