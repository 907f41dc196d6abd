/* SPDX-License-Identifier: MIT */
/*
 * Error text: one line per thread, beside the negative errno that is the error itself. Enters: the errno and a
 * format. Leaves: the same errno, so that `return gmem_err(-EINVAL, ...)` works. No lock: thread-local.
 */
#ifndef GMEM_BASE_ERR_H
#define GMEM_BASE_ERR_H

#include "gmem.h"

/*
 * Stores the text and returns `err` (negative errno): what callers' functions use, under the name the library has for
 * it. The text begins with what failed: "gmem_file_punch: off 0x…: not aligned".
 */
#define gmem_err gmem_set_error

/* As gmem_err(), with ": " and the system's words for `err` appended. */
int gmem_err_sys(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the thread's present text and returns `err`. */
int gmem_err_prefix(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
