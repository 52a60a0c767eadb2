// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// Now returns CLOCK_MONOTONIC as the time since that clock's origin.
func Now() time.Duration {
	var ts unix.Timespec
	// It cannot fail: the clock exists on every Linux and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}

// SleepUntil sleeps until CLOCK_MONOTONIC shows at, to the precision of the thread's timers. It returns at once if that has
// passed.
func SleepUntil(at time.Duration) {
	ts := unix.NsecToTimespec(int64(at))
	for {
		// The runtime's preemption signals interrupt the sleep; an absolute one is simply taken up again.
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// fifoPriority is the lowest real-time priority: above every ordinary thread, below an agent's sender.
const fifoPriority = 1

// realtime locks the calling goroutine to its thread and asks for SCHED_FIFO. The goroutine must end without unlocking, so
// that the thread ends with it. It reports whether the kernel granted the priority.
func realtime() bool {
	runtime.LockOSThread()
	err := unix.SchedSetAttr(0, &unix.SchedAttr{
		Size:   unix.SizeofSchedAttr,
		Policy: unix.SCHED_FIFO,
		// Threads that the runtime starts from this one must not inherit the priority.
		Flags:    unix.SCHED_FLAG_RESET_ON_FORK,
		Priority: fifoPriority,
	}, 0)
	return err == nil
}

// spareProcs is how many threads may run Go code at once while measuring: a thread that returns from a system call must find
// a processor of the Go scheduler free, whatever else this process does.
const spareProcs = 16

// Quiet prepares the process for a measurement: it collects garbage now and none until the returned function is called, and
// gives the Go scheduler more processors than there are measuring threads. The returned function puts both back.
func Quiet() func() {
	runtime.GC()
	gc := debug.SetGCPercent(-1)
	procs := runtime.GOMAXPROCS(0)
	if procs < spareProcs {
		runtime.GOMAXPROCS(spareProcs)
	}
	return func() {
		runtime.GOMAXPROCS(procs)
		debug.SetGCPercent(gc)
	}
}
