/* SPDX-License-Identifier: MIT */
/*
 * The memory of another process that maps it privately: a guest memory file of page states alone.
 *
 * Enters: a file to keep the states in. Leaves: a gmem_file whose bytes are put where they belong by whoever has that
 * process's userfault descriptor (fault/copy_in.c); what would need them here is refused. Who serves the memory next
 * opens the same states.
 *
 * Removals (MADV_DONTNEED) have to be exact, since nothing else tells a removed page from one that never came: bytes
 * from the source would be old bytes. So
 * - `removals` keeps them apart from UFFDIO_COPY: held shared from the look at a page's word to the end of the copy,
 *   and exclusive from the reading of messages to the words that say REMOVED. While a message is unread the kernel
 *   refuses the copy (-EAGAIN), and once it is read the word says so. A leaf: under it there is one ioctl, which never
 *   waits for a message to be read.
 * - messages are read into the journal, which lies with the states: a server that is killed between having read one
 *   and having applied it leaves it to its successor.
 */
#ifndef GMEM_FILE_ANON_H
#define GMEM_FILE_ANON_H

#include "file/file.h"

static inline bool gmem_file_anon(const struct gmem_file *file)
{
	return file->flags & GMEM_FILE_ANON;
}

/* -EOPNOTSUPP with text if the file has no bytes here. */
int gmem_file_check_bytes(const struct gmem_file *file, const char *who);

#endif
