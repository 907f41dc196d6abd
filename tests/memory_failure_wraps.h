/* SPDX-License-Identifier: MIT */
/* What the tests of memory failure make the kernel answer. */
#ifndef GMEM_TESTS_MEMORY_FAILURE_WRAPS_H
#define GMEM_TESTS_MEMORY_FAILURE_WRAPS_H

#include <stdatomic.h>
#include <stdint.h>

/* Reads, writes and copies of the page at this offset fail, so many times. */
extern uint64_t bad_off;
extern _Atomic int bad_reads, bad_writes;
/* Copies of the kernel engine fail, so many times; and madvise(2) with MADV_POPULATE_READ answers this. */
extern _Atomic int bad_copies;
extern int populate_errno;
/* What opening a userfaultfd answers; 0: what the kernel does. */
extern int uffd_open_err;

#endif
