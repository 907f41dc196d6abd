/* SPDX-License-Identifier: MIT */
/*
 * Which bytes a source stands for, so that a machine that is taken up again is not served from others that have been
 * put in their place. Enters: a source's line of text. Leaves: a line that says what lies there now: device, inode,
 * size and time of change of each file. What is not a file (NBD, zeroes) has no more than its length. No state.
 */
#ifndef GMEM_LINK_SERVE_IDENTITY_H
#define GMEM_LINK_SERVE_IDENTITY_H

#include "link/serve/text.h"

/* Appends to `ret`. -ENOENT, -EACCES and what else stat(2) says, with a text; -ENAMETOOLONG. */
int gmem_identity(const char *spec, struct gmem_text *ret);

#endif
