/* SPDX-License-Identifier: MIT */
/*
 * A page server that is as small as can be: for tests of who minds a server. It is the test program again, run with
 * $GMEM_TEST_SERVER naming its state directory.
 */
#ifndef GMEM_TESTS_SERVE_SERVER_H
#define GMEM_TESTS_SERVE_SERVER_H

#include <stdint.h>

/* What a machine says first; its userfaultfd goes along. */
struct serve_hello {
	uint64_t magic, hva, len;
};
#define SERVE_MAGIC UINT64_C(0x6d656d6f72792121)

/* If the file `die` of the state directory names this place, it becomes `died`, and the server is killed. */
void serve_step(const char *where);

#endif
