/* SPDX-License-Identifier: MIT */
#include "migrate_util.h"

#include <sys/mman.h>

#include "source/source.h"

static void count(void *opaque, const struct gmem_channel_event *event)
{
	struct pair *p = opaque;

	if (event->kind == GMEM_CHANNEL_UP)
		atomic_fetch_add(&p->ups, 1);
	if (event->kind == GMEM_CHANNEL_LOST)
		atomic_fetch_add(&p->losses, 1);
	if (event->kind == GMEM_CHANNEL_REFUSED) {
		atomic_fetch_add(&p->refusals, 1);
		printf("refused: %d, %s\n", event->error, event->text);
	}
}

void memory_fill(uint8_t *memory, uint64_t len, uint64_t *seed)
{
	for (uint64_t off = 0; off < len; off += 4096) {
		uint64_t *words = (uint64_t *)(memory + off);
		uint64_t r = tap_rand(seed);

		memset(words, 0, 4096);
		if (r % 3 == 1)
			words[(r >> 8) % 512] = r | 1;
		for (unsigned int i = 0; r % 3 == 2 && i < 512; i++)
			words[i] = tap_rand(seed);
	}
}

static struct gmem_channel_opts channel_opts(struct pair *p, struct gmem_tls_ctx *tls, bool listens, char *address)
{
	struct gmem_channel_opts opts = { .size = sizeof(opts), .tls = tls, .event = count, .opaque = p };

	opts.silence_ms = p->silence_ms ? p->silence_ms : 60000;
	opts.handshake_ms = 60000;
	opts.lost_ms = p->lost_ms;
	snprintf(address, 64, "127.0.0.1:%u", p->proxied ? p->proxy.port : p->port);
	if (listens)
		opts.listen_fd = p->listen_fd;
	else
		opts.address = address;
	return opts;
}

void pair_begin(struct pair *p, uint64_t *seed)
{
	struct gmem_incoming_opts in_opts = { .size = sizeof(in_opts), .ahead = p->ahead, .wait_ms = 20 };
	struct gmem_migrate_region region = { .name = "ram", .len = p->len, .page_size = 4096 };
	struct gmem_channel_opts opts;
	char address[64];

	both_begin(&p->both);
	p->memfd = memfd_create("source", MFD_CLOEXEC);
	CHECK(p->memfd >= 0 && !ftruncate(p->memfd, (off_t)p->len));
	p->memory = mmap(NULL, p->len, PROT_READ | PROT_WRITE, MAP_SHARED, p->memfd, 0);
	CHECK(p->memory != MAP_FAILED);
	memory_fill(p->memory, p->len, seed);
	p->listen_fd = listen_any(&p->port);
	if (p->proxied)
		proxy_start(&p->proxy, p->port);
	if (p->cut_bytes)
		atomic_store(&p->proxy.cut_bytes, p->cut_bytes);
	if (p->cut_records)
		atomic_store(&p->proxy.cut_records, p->cut_records);
	region.fd = p->memfd;
	opts = channel_opts(p, p->both.alpha_ctx, p->source_listens, address);
	CHECK_OK(gmem_page_server_new(&opts, &region, 1, &p->server));
	opts = channel_opts(p, p->both.beta_ctx, !p->source_listens, address);
	CHECK_OK(gmem_incoming_new(&opts, &in_opts, &p->incoming));
	CHECK_OK(gmem_incoming_wait(p->incoming, GMEM_MIGRATE_OPEN, -1));
	CHECK_OK(gmem_page_server_wait(p->server, GMEM_MIGRATE_OPEN, -1));
	CHECK_EQ(gmem_incoming_nregions(p->incoming), 1);
}

void pair_prepared(struct pair *p)
{
	CHECK_OK(gmem_incoming_prepared(p->incoming));
	CHECK_OK(gmem_page_server_wait(p->server, GMEM_MIGRATE_PREPARED, -1));
}

void pair_stopped(struct pair *p)
{
	CHECK_OK(gmem_page_server_stopped(p->server));
	CHECK_OK(gmem_incoming_wait(p->incoming, GMEM_MIGRATE_STOPPED, -1));
	CHECK_OK(gmem_incoming_source(p->incoming, 0, &p->source));
}

void pair_go(struct pair *p)
{
	CHECK_OK(gmem_incoming_ready(p->incoming));
	CHECK_OK(gmem_page_server_wait(p->server, GMEM_MIGRATE_READY, -1));
	CHECK(gmem_page_server_may_run(p->server));
	CHECK_OK(gmem_page_server_go(p->server));
	CHECK(!gmem_page_server_may_run(p->server));
	CHECK_OK(gmem_incoming_wait(p->incoming, GMEM_MIGRATE_GO, -1));
	CHECK_OK(gmem_incoming_resumed(p->incoming));
	CHECK_OK(gmem_page_server_wait(p->server, GMEM_MIGRATE_RESUMED, -1));
}

void pair_complete(struct pair *p)
{
	CHECK_OK(gmem_incoming_complete(p->incoming, -1));
	CHECK_OK(gmem_page_server_wait(p->server, GMEM_MIGRATE_COMPLETE, -1));
}

void pair_end(struct pair *p)
{
	gmem_page_server_free(p->server);
	gmem_incoming_free(p->incoming);
	gmem_source_unref(p->source);
	if (p->proxied)
		proxy_stop(&p->proxy);
	close(p->listen_fd);
	munmap(p->memory, p->len);
	close(p->memfd);
	both_end(&p->both);
}

int pair_read(struct pair *p, uint64_t off, void *buf, uint64_t len)
{
	int err;

	do {
		err = gmem_source_read(p->source, off, buf, len);
	} while (err == -ETIMEDOUT);
	return err;
}

void pair_compare(struct pair *p)
{
	uint8_t *buf = malloc(1 << 20);

	CHECK(buf);
	for (uint64_t off = 0; off < p->len; off += 1 << 20) {
		uint64_t len = p->len - off < 1 << 20 ? p->len - off : 1 << 20;

		while (gmem_source_prefetch(p->source, off, len, true) < 0)
			;
		CHECK_OK(pair_read(p, off, buf, len));
		CHECK_MEM(buf, p->memory + off, len);
	}
	free(buf);
}
