// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/plait-net/plait/controlplane/keys"
)

func TestLoadKeys(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"site.key", "c.key"} {
		k, err := keys.Generate(uint8(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		if err := keys.Create(filepath.Join(dir, name), keys.Ring{k}); err != nil {
			t.Fatal(err)
		}
	}
	file := edit(minimal, "/etc/plait", dir) +
		"  - {name: c, identity: 10.255.0.3, locators: 10.1.3.2, key: " + dir + "/c.key}\n" +
		"  - {name: d, identity: 10.255.0.4, locators: 10.1.4.2}\n"
	rings, err := mustParse(t, file).LoadKeys()
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range []uint8{1, 2, 1} {
		if r := rings[i]; len(r) != 1 || r[0].ID != id {
			t.Errorf("peer %d: %v", i, r)
		}
	}

	// One problem a file, each where the file is named, the first one too.
	file = edit(file, "site.key", "none.key") +
		"  - {name: e, identity: 10.255.0.5, locators: 10.1.5.2, key: " + dir + "}\n"
	rings, err = mustParse(t, file).LoadKeys()
	var p Problems
	if rings != nil || !errors.As(err, &p) {
		t.Fatalf("%v, %v", rings, err)
	}
	want := "f:3:6: key: " + dir + "/none.key: the key file does not exist; make it with: plait genkey " + dir + "/none.key, and copy it to the peers\n" +
		"f:13:62: peers[3].key: " + dir + ": the key file is not a regular file; name a file, as plait genkey FILE makes it"
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}
