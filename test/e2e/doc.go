// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the end-to-end tests: the built plait program in labs, with real programs talking
// through it. They assert bytes, states and counters, never only that nothing failed.
//
// The program under test is bin/plait of the checkout, which make build makes, or what the environment
// variable PLAIT_BIN names.
package e2e
