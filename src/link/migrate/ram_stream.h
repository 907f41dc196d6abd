/* SPDX-License-Identifier: MIT */
/*
 * A QEMU migration stream taken apart while it comes: which pages of some RAM blocks are in it, and everything else.
 *
 * QEMU marks a page as sent before it reads it, and sends it again if the guest, a device or a disk's completion wrote
 * it since: the pages in its stream are a log of what was written. Their bytes are not needed by those who can read the
 * memory where it is.
 *
 * Enters: a descriptor to read, the names of the blocks. Leaves: the places of their pages, in the order of the
 * stream; and the stream without them, which a QEMU started with -incoming loads as it loads any other. Nothing in the
 * stream is trusted. One thread; no lock.
 */
#ifndef GMEM_LINK_MIGRATE_RAM_STREAM_H
#define GMEM_LINK_MIGRATE_RAM_STREAM_H

#include <stddef.h>
#include <stdint.h>

struct gmem_ram_stream_block {
	const char *name; /* as QEMU calls it: "gmem.ram", "/objects/ram" */
	uint64_t len;
};

struct gmem_ram_stream {
	int fd; /* borrowed; read to its end */
	const struct gmem_ram_stream_block *blocks;
	size_t nblocks;
	int (*page)(void *opaque, size_t block, uint64_t off); /* a page of blocks[block] */
	/* The rest of the stream, piece by piece. */
	int (*keep)(void *opaque, const void *bytes, size_t len);
	void *opaque;
};

/*
 * Reads the stream to its end. -ECONNRESET: it ended before it was complete; -EOPNOTSUPP: something in it that cannot
 * be told apart from pages (the text names it); -EPROTO: not such a stream; or what `page` or `keep` returned.
 */
int gmem_ram_stream_read(const struct gmem_ram_stream *stream);

#endif
