/* SPDX-License-Identifier: MIT */
/* Who is let in: every certificate but the right one is refused, and both sides say why. */
#include "tap.h"

#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "link/migrate/tls.h"
#include "migrate_util.h"

struct world {
	struct pki pki;
	struct ca ca, other;
	struct identity me, you;
};

static void world_begin(struct world *w)
{
	pki_begin(&w->pki);
	ca_make(&w->pki, &w->ca, "right CA");
	ca_make(&w->pki, &w->other, "wrong CA");
	identity_make(&w->pki, &w->ca, "alpha", "DNS:alpha.test", -3600, 3600, &w->me);
	identity_make(&w->pki, &w->ca, "beta", "DNS:beta.test,IP:127.0.0.1", -3600, 3600, &w->you);
}

static void world_end(struct world *w)
{
	ca_free(&w->ca);
	ca_free(&w->other);
	pki_end(&w->pki);
}

/* ---- two ends of a socket pair */

struct ends {
	struct gmem_tls *client, *server;
	int client_err, server_err;
	char client_text[512], server_text[512];
};

static void step(struct gmem_tls *tls, int *err, char *text)
{
	char byte;

	if (*err == -EAGAIN) {
		*err = gmem_tls_handshake(tls);
		if (*err < 0 && *err != -EAGAIN)
			snprintf(text, 512, "%s", gmem_last_error());
	}
	/* A client learns from the first byte, or its absence, that it was refused. */
	if (!*err) {
		int64_t n = gmem_tls_read(tls, &byte, 1);

		if (n < 0 && n != -EAGAIN) {
			*err = (int)n;
			snprintf(text, 512, "%s", gmem_last_error());
		}
	}
}

static void shake(struct gmem_tls_ctx *client, struct gmem_tls_ctx *server, struct ends *e)
{
	int fds[2];

	memset(e, 0, sizeof(*e));
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
	CHECK_OK(gmem_tls_new(client, fds[0], false, "the server", &e->client));
	CHECK_OK(gmem_tls_new(server, fds[1], true, "the client", &e->server));
	e->client_err = e->server_err = -EAGAIN;
	/* All happens in this thread, so that what one has sent the other has got: some turns are enough. */
	for (unsigned int i = 0; i < 20; i++) {
		step(e->client, &e->client_err, e->client_text);
		step(e->server, &e->server_err, e->server_text);
	}
	if (e->client_err || e->server_err)
		printf("client: %d %s\nserver: %d %s\n", e->client_err, e->client_text, e->server_err, e->server_text);
}

static void ends_free(struct ends *e)
{
	gmem_tls_free(e->client);
	gmem_tls_free(e->server);
}

/* Each in the place of the client and of the server. */
static void both_ways(struct gmem_tls_ctx *good, struct gmem_tls_ctx *bad, int good_err, const char *good_text)
{
	struct ends e;

	shake(good, bad, &e);
	CHECK_EQ(e.client_err, good_err);
	CHECK_HAS(e.client_text, good_text);
	CHECK_EQ(e.server_err, -EACCES);
	CHECK_HAS(e.server_text, "refuses this side's certificate");
	ends_free(&e);
	shake(bad, good, &e);
	CHECK_EQ(e.server_err, good_err);
	CHECK_HAS(e.server_text, good_text);
	CHECK_EQ(e.client_err, -EACCES);
	CHECK_HAS(e.client_text, "refuses this side's certificate");
	ends_free(&e);
}

TEST(the_right_ones_meet)
{
	struct gmem_tls_ctx *a, *b;
	uint8_t pin[GMEM_TLS_PIN_LEN];
	struct world w;
	struct ends e;
	char text[65];

	world_begin(&w);
	a = identity_ctx(&w.ca, &w.me, "beta.test", NULL);
	b = identity_ctx(&w.ca, &w.you, NULL, w.me.pin);
	shake(a, b, &e);
	CHECK_EQ(e.client_err, 0);
	CHECK_EQ(e.server_err, 0);
	gmem_tls_peer_pin(e.client, pin);
	for (unsigned int i = 0; i < 32; i++)
		snprintf(text + 2 * i, 3, "%02x", pin[i]);
	CHECK_STR(text, w.you.pin);
	ends_free(&e);
	gmem_tls_ctx_free(a);
	/* By address, and by fingerprint as well. */
	a = identity_ctx(&w.ca, &w.me, "127.0.0.1", w.you.pin);
	shake(a, b, &e);
	CHECK_EQ(e.client_err, 0);
	CHECK_EQ(e.server_err, 0);
	ends_free(&e);
	gmem_tls_ctx_free(a);
	gmem_tls_ctx_free(b);
	world_end(&w);
}

TEST(another_ca)
{
	struct gmem_tls_ctx *good, *bad;
	struct identity forged;
	struct world w;

	world_begin(&w);
	identity_make(&w.pki, &w.other, "beta", "DNS:beta.test", -3600, 3600, &forged);
	good = identity_ctx(&w.ca, &w.me, "beta.test", NULL);
	/* It trusts the right CA itself: what is wrong is its own certificate. */
	bad = identity_ctx(&w.ca, &forged, "alpha.test", NULL);
	both_ways(good, bad, -EKEYREJECTED, "issued by \"CN=wrong CA\", is not signed by a CA of");
	gmem_tls_ctx_free(good);
	gmem_tls_ctx_free(bad);
	world_end(&w);
}

TEST(another_name)
{
	struct gmem_tls_ctx *good, *bad;
	struct identity other;
	struct world w;

	world_begin(&w);
	identity_make(&w.pki, &w.ca, "gamma", "DNS:gamma.test,IP:10.0.0.1", -3600, 3600, &other);
	bad = identity_ctx(&w.ca, &other, "alpha.test", NULL);
	good = identity_ctx(&w.ca, &w.me, "beta.test", NULL);
	both_ways(good, bad, -EKEYREJECTED, "is for gamma.test, 10.0.0.1, not for beta.test");
	gmem_tls_ctx_free(good);
	good = identity_ctx(&w.ca, &w.me, "10.0.0.2", NULL);
	both_ways(good, bad, -EKEYREJECTED, "not for 10.0.0.2");
	gmem_tls_ctx_free(good);
	gmem_tls_ctx_free(bad);
	world_end(&w);
}

/* The pin is looked at after the handshake: the other side learns nothing but that the connection has gone. */
TEST(another_fingerprint)
{
	struct gmem_tls_ctx *good, *bad;
	struct identity other;
	struct world w;
	struct ends e;

	world_begin(&w);
	identity_make(&w.pki, &w.ca, "beta", "DNS:beta.test", -3600, 3600, &other);
	bad = identity_ctx(&w.ca, &other, "alpha.test", NULL);
	good = identity_ctx(&w.ca, &w.me, "beta.test", w.you.pin);
	shake(good, bad, &e);
	CHECK_EQ(e.client_err, -EKEYREJECTED);
	CHECK_HAS(e.client_text, "not the one with the given SHA-256");
	ends_free(&e);
	shake(bad, good, &e);
	CHECK_EQ(e.server_err, -EKEYREJECTED);
	ends_free(&e);
	gmem_tls_ctx_free(good);
	gmem_tls_ctx_free(bad);
	world_end(&w);
}

TEST(own_certificate_out_of_date)
{
	struct gmem_tls_opts opts = { .size = sizeof(opts), .peer_name = "x" };
	struct gmem_tls_ctx *ctx;
	struct identity old, young;
	struct world w;

	world_begin(&w);
	identity_make(&w.pki, &w.ca, "beta", "DNS:beta.test", -7200, -3600, &old);
	identity_make(&w.pki, &w.ca, "beta", "DNS:beta.test", 3600, 7200, &young);
	opts.ca = w.ca.path;
	opts.cert = old.cert;
	opts.key = old.key;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EKEYEXPIRED);
	CHECK_HAS(gmem_last_error(), "this side's own certificate expired at");
	opts.cert = young.cert;
	opts.key = young.key;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EKEYEXPIRED);
	CHECK_HAS(gmem_last_error(), "not valid before");
	world_end(&w);
}

/* ---- others than us: OpenSSL with settings of its own */

struct stranger {
	struct identity *identity; /* NULL: shows none */
	int fd, max_version;
	bool no_alpn;
	pthread_t thread;
};

static void *stranger_run(void *opaque)
{
	struct stranger *s = opaque;
	SSL_CTX *ctx = SSL_CTX_new(TLS_method());
	SSL *ssl;
	char byte;

	CHECK(ctx);
	if (s->max_version)
		SSL_CTX_set_max_proto_version(ctx, s->max_version);
	if (s->identity) {
		CHECK(SSL_CTX_use_certificate_file(ctx, s->identity->cert, SSL_FILETYPE_PEM) == 1);
		CHECK(SSL_CTX_use_PrivateKey_file(ctx, s->identity->key, SSL_FILETYPE_PEM) == 1);
	}
	if (!s->no_alpn)
		SSL_CTX_set_alpn_protos(ctx, (const unsigned char *)"\x0egmem-migrate/1", 15);
	ssl = SSL_new(ctx);
	CHECK(ssl && SSL_set_fd(ssl, s->fd) == 1);
	/* A client of TLS 1.3 is refused after its own handshake. */
	if (SSL_connect(ssl) == 1)
		SSL_read(ssl, &byte, 1);
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	shutdown(s->fd, SHUT_RDWR);
	return NULL;
}

/* We are the server; how it ends for us. */
static int meet(struct world *w, struct stranger s)
{
	struct gmem_tls_ctx *ctx = identity_ctx(&w->ca, &w->me, "beta.test", NULL);
	struct gmem_tls *tls;
	int fds[2], err;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
	s.fd = fds[0];
	CHECK(!pthread_create(&s.thread, NULL, stranger_run, &s));
	CHECK_OK(gmem_tls_new(ctx, fds[1], true, "the client", &tls));
	while ((err = gmem_tls_handshake(tls)) == -EAGAIN) {
		struct pollfd p = { .fd = gmem_tls_fd(tls), .events = gmem_tls_wants(tls) };

		poll(&p, 1, -1);
	}
	if (err)
		printf("%d %s\n", err, gmem_last_error());
	gmem_tls_free(tls);
	pthread_join(s.thread, NULL);
	close(s.fd);
	gmem_tls_ctx_free(ctx);
	return err;
}

TEST(strangers)
{
	struct identity old;
	struct world w;

	signal(SIGPIPE, SIG_IGN); /* theirs; ours must not raise it: no_signal */
	world_begin(&w);
	identity_make(&w.pki, &w.ca, "beta", "DNS:beta.test", -7200, -3600, &old);
	CHECK_EQ(meet(&w, (struct stranger){ .identity = &w.you }), 0);
	CHECK_EQ(meet(&w, (struct stranger){ .identity = &w.you, .max_version = TLS1_2_VERSION }), -EPROTO);
	CHECK_HAS(gmem_last_error(), "does not speak TLS 1.3");
	CHECK_EQ(meet(&w, (struct stranger){ .identity = NULL }), -EKEYREJECTED);
	CHECK_HAS(gmem_last_error(), "shows no certificate");
	CHECK_EQ(meet(&w, (struct stranger){ .identity = &w.you, .no_alpn = true }), -EPROTO);
	CHECK_HAS(gmem_last_error(), "migration protocol");
	CHECK_EQ(meet(&w, (struct stranger){ .identity = &old }), -EKEYEXPIRED);
	CHECK_HAS(gmem_last_error(), "the certificate \"CN=beta\" expired at");
	world_end(&w);
}

/* ---- what is read from files */

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	CHECK(f && fputs(text, f) >= 0);
	fclose(f);
}

TEST(files)
{
	struct gmem_tls_opts opts = { .size = sizeof(opts) };
	struct gmem_tls_ctx *ctx = NULL;
	char junk[160], missing[160];
	struct world w;

	world_begin(&w);
	snprintf(junk, sizeof(junk), "%s/junk", w.pki.dir);
	snprintf(missing, sizeof(missing), "%s/missing", w.pki.dir);
	write_file(junk, "no certificate\n");
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EINVAL);
	opts.ca = w.ca.path;
	opts.cert = w.me.cert;
	opts.key = w.me.key;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EINVAL);
	CHECK_HAS(gmem_last_error(), "who the other side has to be");
	opts.peer_pin = "12:34";
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EINVAL);
	opts.peer_pin = NULL;
	opts.peer_name = "beta.test";
	opts.size--;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EINVAL);
	opts.size++;
	opts.ca = missing;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -ENOENT);
	CHECK_HAS(gmem_last_error(), missing);
	opts.ca = junk;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EBADMSG);
	opts.ca = w.ca.path;
	opts.cert = junk;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EBADMSG);
	opts.cert = w.me.cert;
	opts.key = junk;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EBADMSG);
	opts.key = w.you.key;
	CHECK_ERR(gmem_tls_ctx_new(&opts, &ctx), -EKEYREJECTED);
	CHECK_HAS(gmem_last_error(), "not the key of the certificate");
	CHECK(!ctx);
	gmem_tls_ctx_free(NULL);
	world_end(&w);
}

/* ---- bytes */

/* The other end has gone: an error, no signal. Some writes may go before it is noticed. */
TEST(no_signal)
{
	struct gmem_tls_ctx *a, *b;
	struct world w;
	struct ends e;
	char buf[4096] = "";
	int64_t n = 0;

	world_begin(&w);
	a = identity_ctx(&w.ca, &w.me, "beta.test", NULL);
	b = identity_ctx(&w.ca, &w.you, "alpha.test", NULL);
	shake(a, b, &e);
	gmem_tls_free(e.server);
	e.server = NULL;
	for (unsigned int i = 0; i < 100 && n >= 0; i++)
		n = gmem_tls_write(e.client, buf, sizeof(buf));
	CHECK(n == -EPIPE || n == -ECONNRESET);
	ends_free(&e);
	gmem_tls_ctx_free(a);
	gmem_tls_ctx_free(b);
	world_end(&w);
}

/* A stream of bytes that both ends can say from its beginning. */
static uint8_t next_byte(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint8_t)(*state >> 56);
}

/* Through a change of keys every few records, with the socket full at times. */
TEST(keys_change)
{
	static uint8_t out[30000], in[20000];
	uint64_t seed = tap_seed(), out_state = seed, in_state = seed;
	size_t got = 0, total = tap_slow() ? 1 << 20 : 8 << 20, at = 0, len = 0;
	struct gmem_tls_ctx *a, *b;
	struct world w;
	struct ends e;

	world_begin(&w);
	a = identity_ctx(&w.ca, &w.me, "beta.test", NULL);
	b = identity_ctx(&w.ca, &w.you, "alpha.test", NULL);
	gmem_tls_ctx_set_rekey(a, 50000);
	shake(a, b, &e);
	while (got < total) {
		int64_t n;

		if (at == len) {
			len = 1 + tap_rand(&seed) % sizeof(out);
			for (size_t i = 0; i < len; i++)
				out[i] = next_byte(&out_state);
			at = 0;
		}
		n = gmem_tls_write(e.client, out + at, len - at);
		CHECK(n > 0 || n == -EAGAIN);
		at += n > 0 ? (size_t)n : 0;
		n = gmem_tls_read(e.server, in, 1 + tap_rand(&seed) % sizeof(in));
		CHECK(n > 0 || n == -EAGAIN);
		for (int64_t i = 0; i < n; i++)
			CHECK_EQ(in[i], next_byte(&in_state));
		got += n > 0 ? (size_t)n : 0;
	}
	ends_free(&e);
	gmem_tls_ctx_free(a);
	gmem_tls_ctx_free(b);
	world_end(&w);
}
