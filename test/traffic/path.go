// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// TxBytes returns how many bytes each of the interfaces of place's network namespace has sent, by name.
func TxBytes(place Place, interfaces []string) (map[string]uint64, error) {
	sent := make(map[string]uint64, len(interfaces))
	err := place.do(func() error {
		// The thread's, not the process's: a thread may be in another namespace.
		f, err := os.Open("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			name, rest, ok := strings.Cut(lines.Text(), ":")
			fields := strings.Fields(rest)
			if !ok || len(fields) < 9 {
				continue
			}
			// Eight receive columns, then the bytes sent.
			n, err := strconv.ParseUint(fields[8], 10, 64)
			if err != nil {
				return fmt.Errorf("counters of %s: %w", strings.TrimSpace(name), err)
			}
			sent[strings.TrimSpace(name)] = n
		}
		return lines.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("reading interface counters: %w", err)
	}
	for _, name := range interfaces {
		if _, ok := sent[name]; !ok {
			return nil, fmt.Errorf("reading interface counters: no interface %s", name)
		}
	}
	for name := range sent {
		if !slices.Contains(interfaces, name) {
			delete(sent, name)
		}
	}
	return sent, nil
}

// Taken runs send, which sends at least size bytes, and returns which of the interfaces they left through: the one whose
// counter moved most, by at least three quarters of size, while no other moved by a quarter. It returns "" if that is not so:
// nothing left, or the bytes were spread.
func Taken(place Place, interfaces []string, size int, send func() error) (string, error) {
	before, err := TxBytes(place, interfaces)
	if err != nil {
		return "", err
	}
	if err := send(); err != nil {
		return "", err
	}
	after, err := TxBytes(place, interfaces)
	if err != nil {
		return "", err
	}
	taken := ""
	for _, name := range interfaces {
		moved := after[name] - before[name]
		switch {
		case moved >= uint64(size)*3/4:
			if taken != "" {
				return "", nil
			}
			taken = name
		case moved >= uint64(size)/4:
			return "", nil
		}
	}
	return taken, nil
}
