/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

//go:build ignore

#include "hook_xdp.h"
#include "ingress.h"

SEC("xdp.frags")
int plait_ingress_xdp(hook_ctx *ctx)
{
	return ingress(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
