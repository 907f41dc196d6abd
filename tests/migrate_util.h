/* SPDX-License-Identifier: MIT */
/* What the tests of a migration share: certificates, a proxy that cuts, two sides in one process. */
#ifndef GMEM_TESTS_MIGRATE_UTIL_H
#define GMEM_TESTS_MIGRATE_UTIL_H

#define TAP_NO_MAIN
#include "tap.h"
#undef TAP_NO_MAIN

#include <openssl/evp.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdatomic.h>

#include "link/migrate/incoming.h"
#include "link/migrate/page_server.h"

/* ---- certificates, in a folder of their own */

struct pki {
	char dir[64];
	unsigned int serial;
};

struct ca {
	EVP_PKEY *key;
	X509 *cert;
	char path[128];
};

struct identity {
	char cert[128], key[128];
	char pin[65];
};

void pki_begin(struct pki *pki);
void pki_end(struct pki *pki); /* removes everything */
void ca_make(struct pki *pki, struct ca *ca, const char *name);
void ca_free(struct ca *ca);
/* `san` as of OpenSSL ("DNS:a,IP:127.0.0.1") or NULL; valid from now + `from` to now + `to` seconds. */
void identity_make(struct pki *pki, const struct ca *ca, const char *cn, const char *san, long from, long to,
		   struct identity *ret);
struct gmem_tls_ctx *identity_ctx(const struct ca *ca, const struct identity *me, const char *peer, const char *pin);

/* A CA, "alpha" (the source) and "beta" (the destination), each expecting the other. */
struct both {
	struct pki pki;
	struct ca ca;
	struct identity alpha, beta;
	struct gmem_tls_ctx *alpha_ctx, *beta_ctx;
};

void both_begin(struct both *b);
void both_end(struct both *b);

/* ---- sockets */

int listen_any(uint16_t *port); /* on 127.0.0.1 */
int connect_port(uint16_t port);

/*
 * Between whoever connects to `port` and `to`. Each connection is forwarded by a thread of the proxy's. What it does is
 * told by the fields, at any time.
 */
struct proxy {
	uint16_t port, to;
	int listen_fd;
	pthread_t thread;
	_Atomic bool stop;
	_Atomic int64_t cut_bytes; /* after so many more bytes one connection is cut; -1: never */
	_Atomic int64_t cut_records; /* so too, of TLS records to the one side or the other */
	_Atomic bool reset; /* a cut is a reset, not an end of file */
	_Atomic bool hold; /* nothing is forwarded any more, nothing is closed */
	_Atomic bool hold_bulk; /* so too, of every second connection, towards who connected */
	_Atomic bool refuse; /* new connections are closed at once */
	_Atomic uint64_t bytes, records, cuts, accepted;
	_Atomic uint64_t down_bytes[2]; /* towards who connected: of first and second connections */
};

void proxy_start(struct proxy *p, uint16_t to);
void proxy_stop(struct proxy *p);

/* ---- two sides */

struct pair {
	struct both both;
	struct proxy proxy;
	bool proxied; /* set before pair_begin() */
	bool source_listens; /* so too: else the destination does */
	uint32_t silence_ms; /* so too; 0: 60000, longer than a loaded machine holds a thread up */
	uint32_t lost_ms; /* so too; 0: no limit */
	uint64_t ahead; /* so too: of gmem_incoming_opts */
	int64_t cut_bytes, cut_records; /* so too: of the proxy, from the beginning; 0: never */
	int listen_fd;
	uint16_t port;
	struct gmem_page_server *server;
	struct gmem_incoming *incoming;
	uint64_t len; /* of the one region, set before */
	int memfd; /* the source's memory */
	uint8_t *memory; /* mapped */
	struct gmem_source *source;
	_Atomic uint32_t ups, losses, refusals;
};

/* Memory of which a third is zero pages, a third random pages, the rest one word a page. */
void memory_fill(uint8_t *memory, uint64_t len, uint64_t *seed);
void pair_begin(struct pair *p, uint64_t *seed); /* both sides made; phase OPEN on both */
void pair_prepared(struct pair *p);
void pair_stopped(struct pair *p); /* from PREPARED: STOPPED on both, and the source made */
void pair_go(struct pair *p); /* from STOPPED: RESUMED on both */
void pair_complete(struct pair *p); /* from RESUMED: CLOSED on both */
void pair_end(struct pair *p);
/* Reads all of it by the source and compares. Retries what is "not now". */
void pair_compare(struct pair *p);
int pair_read(struct pair *p, uint64_t off, void *buf, uint64_t len); /* until it is not "not now" */

#endif
