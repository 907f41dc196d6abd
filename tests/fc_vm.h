/* SPDX-License-Identifier: MIT */
/* Between the two halves of fc_client.h: one order at a time, one report on each, and one on the handshake. */
#ifndef GMEM_TESTS_FC_VM_H
#define GMEM_TESTS_FC_VM_H

#include "fc_client.h"

struct fc_order {
	enum fc_op op;
	uint64_t off, len, seed;
};

struct fc_report {
	int ret;
	uint64_t off;
	char skip[16]; /* the tag, if the machine lacks something */
	char text[160];
};

/* In the process: does not return. Reports and takes orders over `control`. */
void fc_vm_run(const struct fc_options *o, int control) __attribute__((noreturn));

#endif
