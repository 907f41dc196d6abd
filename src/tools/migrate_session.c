/* SPDX-License-Identifier: MIT */
/* gmem migrate receive: the listening socket, and sessions with the sender. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/migrate.h"

/* Each step of a session after the first: nothing is loaded, the sender is waiting. */
#define STEP_MS 2000
#define COME_MS 300

static void on_event(void *opaque, const struct gmem_channel_event *event)
{
	struct migrate_receive *m = opaque;

	/* Another session with a right certificate; or this one will not come back. */
	if ((event->kind == GMEM_CHANNEL_REFUSED && event->error == -EBUSY) || event->kind == GMEM_CHANNEL_ENDED)
		atomic_store(&m->refused, true);
	migrate_tell_event(event);
}

/* "host:port", "[address]:port", ":port". */
static int split(char *address, char **ret_host, char **ret_port)
{
	char *colon = strrchr(address, ':');

	if (!colon || !colon[1])
		return gmem_ui_fail("'%s' is not [ADDRESS]:PORT", address);
	*colon = '\0';
	*ret_port = colon + 1;
	*ret_host = address;
	if (*address == '[' && colon > address + 1 && colon[-1] == ']') {
		colon[-1] = '\0';
		*ret_host = address + 1;
	}
	return 0;
}

static int listen_on(const struct addrinfo *ai)
{
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, 8)) {
		int err = errno;

		close(fd);
		errno = err;
		return -1;
	}
	return fd;
}

int migrate_listen(struct migrate_receive *m)
{
	const struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM };
	char *text = strdup(m->address), *host = NULL, *port = NULL;
	struct addrinfo *list;
	int err;

	if (!text)
		return gmem_ui_fail("out of memory");
	err = split(text, &host, &port);
	if (!err) {
		err = getaddrinfo(*host ? host : NULL, port, &hints, &list);
		if (err)
			err = gmem_ui_fail("%s: %s", m->address, gai_strerror(err));
	}
	if (!err) {
		m->listen_fd = listen_on(list);
		if (m->listen_fd < 0)
			err = gmem_ui_fail("%s: %s", m->address, strerror(errno));
		freeaddrinfo(list);
	}
	free(text);
	return err;
}

int migrate_new_incoming(struct migrate_receive *m)
{
	const struct gmem_channel_opts opts = {
		.size = sizeof(opts), .tls = m->tls, .listen_fd = m->listen_fd, .event = on_event, .opaque = m
	};

	atomic_store(&m->refused, false);
	return gmem_incoming_new(&opts, NULL, &m->incoming);
}

static int find_region(struct migrate_receive *m, const struct gmem_saved_backend *b, size_t *ret)
{
	struct gmem_migrate_region region;

	for (size_t i = 0; i < gmem_incoming_nregions(m->incoming); i++) {
		if (gmem_incoming_region(m->incoming, i, &region) || strcmp(region.name, b->region))
			continue;
		if (region.len != b->size || region.page_size != GMEM_PAGE_SIZE)
			break;
		*ret = i;
		return 0;
	}
	gmem_ui_fail("the sender has no memory \"%s\" of %llu bytes", b->region, (unsigned long long)b->size);
	return -EPROTO;
}

int migrate_connect_sources(struct migrate_receive *m)
{
	struct gmem_saved *saved = m->r.saved;

	for (size_t i = 0; i < saved->nbackends; i++) {
		struct gmem_source *source;
		size_t region;
		int err = find_region(m, &saved->backends[i], &region);

		/* Pages that come before the guest stands have their place in its memory already. */
		if (!err && !m->running && !m->reattached)
			err = gmem_incoming_store(m->incoming, region, gmem_file_fd(m->r.files[i]), 0);
		if (!err)
			err = gmem_incoming_source(m->incoming, region, &source);
		if (err)
			return err;
		gmem_exchange_set(m->exchanges[i], source);
	}
	return 0;
}

static void end_session(struct migrate_receive *m)
{
	for (size_t i = 0; i < m->r.saved->nbackends; i++)
		if (m->exchanges[i])
			gmem_exchange_set(m->exchanges[i], NULL);
	gmem_incoming_free(m->incoming);
	m->incoming = NULL;
}

/* Is it about our guest? */
static int check_id(struct migrate_receive *m)
{
	size_t len;
	void *id;
	int err = gmem_incoming_section(m->incoming, MIGRATE_ID, STEP_MS, &id, &len);

	if (err)
		return err;
	if (len != MIGRATE_ID_LEN || memcmp(id, m->id, len) != 0) {
		gmem_ui_note("a sender came with another guest than the one that is here");
		(void)gmem_incoming_abort(m->incoming, "another guest is received here");
		err = -EBUSY;
	}
	free(id);
	return err;
}

int migrate_next_session(struct migrate_receive *m)
{
	int err = 0;

	if (!m->incoming)
		err = migrate_new_incoming(m);
	if (!err)
		err = gmem_incoming_wait(m->incoming, GMEM_MIGRATE_OPEN, COME_MS);
	/* Nobody there: this one goes on waiting. */
	if (err == -ETIMEDOUT && !atomic_load(&m->refused))
		return 0;
	if (!err)
		err = check_id(m);
	if (!err)
		err = migrate_connect_sources(m);
	if (!err)
		err = gmem_incoming_prepared(m->incoming);
	if (!err)
		err = gmem_incoming_wait(m->incoming, GMEM_MIGRATE_STOPPED, STEP_MS);
	if (!err)
		err = gmem_incoming_ready(m->incoming);
	if (!err)
		err = gmem_incoming_wait(m->incoming, GMEM_MIGRATE_GO, STEP_MS);
	if (!err && m->running)
		err = gmem_incoming_resumed(m->incoming);
	if (!err)
		return 1;
	if (m->incoming)
		end_session(m);
	return 0;
}

void migrate_tick(struct restore *r)
{
	struct migrate_receive *m = r->migration;
	struct gmem_incoming_stats stats = { .size = sizeof(stats) };

	if (m->incoming && !m->reattached) {
		if (!atomic_load(&m->refused))
			return;
		if (!gmem_incoming_stats(m->incoming, &stats) && stats.linked) {
			atomic_store(&m->refused, false);
			return;
		}
		end_session(m);
		m->reattached = true;
	}
	if (migrate_next_session(m) == 1) {
		m->reattached = false;
		gmem_ui_note("a new sender serves the guest's pages");
	}
}
