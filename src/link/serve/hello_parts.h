/* SPDX-License-Identifier: MIT */
/*
 * What a receiver of hello.h is made of: where a JSON text ends, what it says, and what its descriptors are.
 * Enters: bytes and descriptors of somebody who is not trusted. Leaves: negative errno with text. No lock.
 */
#ifndef GMEM_LINK_SERVE_HELLO_PARTS_H
#define GMEM_LINK_SERVE_HELLO_PARTS_H

#include "link/serve/hello.h"

/* Looks for the end of a JSON array or object in bytes that come in pieces. Starts as all zero. */
struct gmem_hello_scan {
	uint32_t depth, nvalues;
	bool in_string, escaped;
};

/*
 * Looks at `len` more bytes, of which `*used` are of the text. 1: it ends with them; 0: it goes on; -EPROTO, -E2BIG. A
 * text that has an end may still be no JSON.
 */
int gmem_hello_scan(struct gmem_hello_scan *scan, const char *bytes, size_t len, size_t *used);

/* What the text alone says; no descriptors yet. */
int gmem_hello_parse_text(const char *text, size_t len, struct gmem_hello_message **ret);

/*
 * How many descriptors the message is to have. One of Firecracker's that says nothing of a guest_memfd has one, or
 * three.
 */
void gmem_hello_fds_wanted(const struct gmem_hello_message *m, size_t *ret_min, size_t *ret_max);

/*
 * Gives the message its descriptors, at least as many as it wants, in the order they came in. Takes them if it
 * succeeds; closes none if it does not. -EPROTO (too many), -EBADF.
 */
int gmem_hello_give_fds(struct gmem_hello_message *m, const int *fds, size_t nfds);

#endif
