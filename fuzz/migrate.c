/* SPDX-License-Identifier: MIT */
/*
 * The messages of a migration, from anybody. The input is frames, one after the other, as they come over a connection:
 * each is decoded; one that is good is written again and has to be the same bytes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "link/migrate/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* All that a receiver would look at. */
static unsigned int look(const struct gmem_wire_msg *msg)
{
	unsigned int sum = msg->text_len;

	for (unsigned int i = 0; i < msg->text_len; i++)
		sum += (unsigned char)msg->text[i];
	if (msg->type == GMEM_WIRE_PAGES)
		for (size_t i = 0; i < gmem_wire_bytes(&msg->pages); i++)
			sum += msg->pages.bytes[i];
	if (msg->type == GMEM_WIRE_SECTION)
		for (uint32_t i = 0; i < msg->section.len; i++)
			sum += msg->section.bytes[i];
	if (msg->type == GMEM_WIRE_DIRTY)
		for (uint64_t i = 0; i < (msg->dirty.npages + 7) / 8; i++)
			sum += msg->dirty.bitmap[i];
	return sum;
}

/* From memory of exactly that length, so that a sanitizer sees every byte too many. */
static void one_frame(const uint8_t *frame, uint16_t type, size_t len)
{
	uint8_t *payload = malloc(len ? len : 1), *again;
	struct gmem_wire_msg msg;
	volatile unsigned int sink;

	memcpy(payload, frame + GMEM_WIRE_HEAD_LEN, len);
	if (!gmem_wire_decode(type, payload, len, &msg)) {
		sink = look(&msg);
		(void)sink;
		again = malloc(GMEM_WIRE_MAX_FRAME);
		/* A later version's HELLO may have more to say than we write. */
		if ((gmem_wire_encode(again, &msg) != GMEM_WIRE_HEAD_LEN + len ||
		     memcmp(again, frame, GMEM_WIRE_HEAD_LEN + len) != 0) &&
		    !(type == GMEM_WIRE_HELLO && msg.hello.version != GMEM_WIRE_VERSION))
			__builtin_trap();
		free(again);
	}
	free(payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	while (size >= GMEM_WIRE_HEAD_LEN) {
		uint16_t type;
		int64_t len = gmem_wire_decode_head(data, &type);

		if (len < 0)
			return 0;
		if ((uint64_t)len > size - GMEM_WIRE_HEAD_LEN)
			len = (int64_t)(size - GMEM_WIRE_HEAD_LEN);
		else
			one_frame(data, type, (size_t)len);
		data += GMEM_WIRE_HEAD_LEN + len;
		size -= GMEM_WIRE_HEAD_LEN + (size_t)len;
	}
	return 0;
}
