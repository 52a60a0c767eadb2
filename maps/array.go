// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Array is an mmapable BPF array seen as Go memory: what one side stores the other sees at once.
// Words that kernel programs change are to be read and written with sync/atomic.
type Array[T any] struct {
	mem    []byte
	stride uintptr
	n      uint32
}

// newArray maps m into memory. The mapping outlives m.
func newArray[T any](m *ebpf.Map, writable bool) (*Array[T], error) {
	var zero T
	if size := unsafe.Sizeof(zero); uintptr(m.ValueSize()) != size {
		return nil, fmt.Errorf("map value is %d bytes, want %d", m.ValueSize(), size)
	}
	a := &Array[T]{stride: (uintptr(m.ValueSize()) + 7) &^ 7, n: m.MaxEntries()}
	page := uintptr(os.Getpagesize())
	length := (a.stride*uintptr(a.n) + page - 1) &^ (page - 1)
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(m.FD(), 0, int(length), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping map into memory: %w", err)
	}
	a.mem = mem
	return a, nil
}

// Len is the number of elements.
func (a *Array[T]) Len() uint32 { return a.n }

// At returns element i, shared with the kernel. It panics if i is out of range. The pointer is valid
// until the Set is closed.
func (a *Array[T]) At(i uint32) *T {
	if i >= a.n {
		panic(fmt.Sprintf("maps: index %d of %d", i, a.n))
	}
	return (*T)(unsafe.Pointer(&a.mem[uintptr(i)*a.stride]))
}

func (a *Array[T]) close() error {
	if a == nil || a.mem == nil {
		return nil
	}
	mem := a.mem
	a.mem = nil
	return unix.Munmap(mem)
}
