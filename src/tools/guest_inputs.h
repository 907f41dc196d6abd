/* SPDX-License-Identifier: MIT */
/*
 * The files that a confidential guest is started from, read.
 * Enters: arguments (guest_args.h). Leaves: bytes in memory of our own, so that a file that changes meanwhile does no
 * harm, and the guest as the library wants it. What is wrong is told, with the path. One thread.
 */
#ifndef GMEM_TOOLS_GUEST_INPUTS_H
#define GMEM_TOOLS_GUEST_INPUTS_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "tools/guest_args.h"

struct guest_input {
	const char *name; /* "firmware", ... */
	const char *path; /* NULL: there is none */
	uint8_t *bytes;
	uint64_t len;
};

enum { GUEST_INPUT_FIRMWARE, GUEST_INPUT_SVSM, GUEST_INPUT_KERNEL, GUEST_INPUT_INITRD, GUEST_NINPUTS };

struct guest_inputs {
	struct guest_input files[GUEST_NINPUTS];
	uint64_t vars_len;
	struct gmem_kernel_hashes hashes;
	struct gmem_guest guest; /* points into this and into the arguments */
};

/* GMEM_UI_OK, or GMEM_UI_FAILED, told. guest_inputs_free() follows in both cases. */
int guest_inputs_read(struct guest_inputs *inputs, const struct guest_args *args);
void guest_inputs_free(struct guest_inputs *inputs);

/* All of a file, or of a pipe, of at most `max` bytes. The caller frees. `what` it is, for texts. */
int guest_read_file(const char *what, const char *path, uint64_t max, uint8_t **ret, uint64_t *ret_len);

#endif
