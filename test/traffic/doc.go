// SPDX-License-Identifier: Apache-2.0

// Package traffic sends checked streams between two hosts of a lab and says what arrived, when, and whether every byte of
// it was right.
//
// Both ends of a stream live in this process: a socket stays in the network namespace it was created in, so only its
// creation has to happen there, and sender and receiver share one clock. All times are CLOCK_MONOTONIC as durations since
// its origin (see [Now]), the clock that BPF programs and the lab's cuts use too.
//
// What a stream measures is what a program would see: arrival is the moment the receiving thread holds the packet. A machine
// that stalls therefore shows as a gap. Three things tell such a gap from one made by the network: a second stream over
// another path that shares the first one's threads ([StartUDP] takes several), the times at which packets really left
// ([UDPResult.SendGap]), and the sender's lateness.
//
// Loops run on locked threads, real-time where the kernel allows it, and do not allocate.
package traffic
