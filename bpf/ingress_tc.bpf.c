/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

//go:build ignore

#include "hook_tc.h"
#include "ingress.h"

SEC("tc")
int plait_ingress_tc(hook_ctx *ctx)
{
	return ingress(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
