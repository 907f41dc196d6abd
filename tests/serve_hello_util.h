/* SPDX-License-Identifier: MIT */
/* A client's socket, a receiver at the other end, and the handshake that is to come through. Included after tap.h. */
#ifndef GMEM_TESTS_SERVE_HELLO_UTIL_H
#define GMEM_TESTS_SERVE_HELLO_UTIL_H

#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "fc_client.h"
#include "link/serve/hello.h"
#include "sys/uapi.h"

struct scene {
	int client, server, uffd;
	struct gmem_hello *hello;
	struct fc_options o;
	uint64_t hvas[FC_MAX_REGIONS];
	char *text;
	size_t len;
};

/* As an x86 guest of more than 3328 MiB has them. */
static inline struct fc_options two_regions(enum fc_version v)
{
	return (struct fc_options){ .version = v, .sizes = { UINT64_C(3328) << 20, UINT64_C(768) << 20 } };
}

static inline void begin(struct scene *s, const struct fc_options *o)
{
	int pair[2];

	*s = (struct scene){ .o = *o, .hvas = { UINT64_C(0x7f0000000000), UINT64_C(0x7e0000000000) } };
	s->uffd = fc_uffd(UFFD_FEATURE_EVENT_REMOVE, true);
	if (s->uffd < 0)
		SKIP("uffd", "userfaultfd: %s", strerror(-s->uffd));
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	s->client = pair[0];
	s->server = pair[1];
	CHECK_OK(gmem_hello_new(s->server, &s->hello));
	s->text = fc_text(o, s->hvas, &s->len);
}

static inline void end(struct scene *s)
{
	gmem_hello_free(s->hello);
	if (s->client >= 0)
		close(s->client);
	close(s->server);
	close(s->uffd);
	free(s->text);
}

/* Bytes that can be read. */
static inline int left_in(int sock)
{
	int n;

	CHECK_EQ(ioctl(sock, FIONREAD, &n), 0);
	return n;
}

/* Is it what the options say? */
static inline void check_message(struct scene *s)
{
	const struct gmem_hello_message *m = gmem_hello_message(s->hello);
	struct stat sent, came;
	uint64_t off = 0;

	CHECK(m);
	for (uint32_t i = 0; i < FC_MAX_REGIONS && s->o.sizes[i]; i++) {
		CHECK(i < m->nregions);
		CHECK_EQ(m->regions[i].hva, s->hvas[i]);
		CHECK_EQ(m->regions[i].len, s->o.sizes[i]);
		CHECK_EQ(m->regions[i].source_off, off);
		CHECK_EQ(m->regions[i].uffd, 0);
		off += s->o.sizes[i];
	}
	if (s->o.lie != FC_MANY_REGIONS) {
		CHECK_EQ(m->total_len, off);
		CHECK_EQ(m->source_end, off);
	}
	CHECK_EQ(m->text_len, s->len);
	CHECK_MEM(m->text, s->text, s->len);
	CHECK_EQ(m->nuffds, 1);
	CHECK_EQ(fstat(s->uffd, &sent), 0);
	CHECK_EQ(fstat(m->uffds[0], &came), 0);
	CHECK_EQ(came.st_ino, sent.st_ino);
}

#endif
