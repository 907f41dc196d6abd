/* SPDX-License-Identifier: MIT */
#include "link/migrate/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "link/migrate/tls_ctx.h"

/* So that no server of another protocol can be made to answer, nor we to answer its client. */
static const unsigned char protocol[] = "\x0egmem-migrate/1";
#define PROTOCOL_LEN (sizeof(protocol) - 1)

/* ---- the socket under the connection: send(2), because write(2) raises SIGPIPE */

static int sock_result(BIO *bio, ssize_t n, int retry)
{
	struct gmem_tls *tls = BIO_get_data(bio);

	if (n >= 0)
		return (int)n;
	if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
		BIO_set_flags(bio, retry | BIO_FLAGS_SHOULD_RETRY);
	else
		tls->sock_err = -errno;
	return -1;
}

static int sock_write(BIO *bio, const char *buf, int len)
{
	struct gmem_tls *tls = BIO_get_data(bio);

	BIO_clear_retry_flags(bio);
	return sock_result(bio, send(tls->fd, buf, (size_t)len, MSG_NOSIGNAL), BIO_FLAGS_WRITE);
}

static int sock_read(BIO *bio, char *buf, int len)
{
	struct gmem_tls *tls = BIO_get_data(bio);
	ssize_t n;

	BIO_clear_retry_flags(bio);
	n = recv(tls->fd, buf, (size_t)len, 0);
	if (n == 0)
		tls->eof = true;
	return sock_result(bio, n, BIO_FLAGS_READ);
}

static long sock_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	struct gmem_tls *tls = BIO_get_data(bio);

	if (cmd == BIO_CTRL_EOF)
		return tls->eof;
	return cmd == BIO_CTRL_FLUSH || cmd == BIO_CTRL_PUSH || cmd == BIO_CTRL_POP;
}

static BIO_METHOD *sock_method(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "gmem socket");

	if (m && BIO_meth_set_write(m, sock_write) && BIO_meth_set_read(m, sock_read) &&
	    BIO_meth_set_ctrl(m, sock_ctrl))
		return m;
	BIO_meth_free(m);
	return NULL;
}

/* ---- identity */

static int no_password(char *buf, int size, int writing, void *opaque)
{
	return -1; /* never ask on a terminal */
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
			   unsigned int in_len, void *opaque)
{
	unsigned char *chosen;

	if (SSL_select_next_proto(&chosen, out_len, protocol, PROTOCOL_LEN, in, in_len) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

static int readable(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return gmem_err_sys(-errno, "%s", path);
	close(fd);
	return 0;
}

/* The reason OpenSSL gives for its last failure here. */
static const char *reason(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_last_error());

	return text ? text : "unknown";
}

static int load(struct gmem_tls_ctx *ctx, const struct gmem_tls_opts *opts)
{
	const char *const paths[] = { opts->ca, opts->cert, opts->key };
	int err;

	for (size_t i = 0; i < 3; i++) {
		err = readable(paths[i]);
		if (err)
			return err;
	}
	ERR_clear_error();
	SSL_CTX_set_default_passwd_cb(ctx->ssl, no_password);
	if (SSL_CTX_load_verify_file(ctx->ssl, opts->ca) != 1)
		return gmem_err(-EBADMSG, "%s: no CA certificate in PEM form: %s", opts->ca, reason());
	if (SSL_CTX_use_certificate_chain_file(ctx->ssl, opts->cert) != 1)
		return gmem_err(-EBADMSG, "%s: no certificate in PEM form: %s", opts->cert, reason());
	if (SSL_CTX_use_PrivateKey_file(ctx->ssl, opts->key, SSL_FILETYPE_PEM) != 1) {
		if (ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_VALUES_MISMATCH ||
		    ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_TYPE_MISMATCH)
			return gmem_err(-EKEYREJECTED, "%s: not the key of the certificate in %s", opts->key,
					opts->cert);
		return gmem_err(-EBADMSG, "%s: no key in PEM form, or an encrypted one: %s", opts->key, reason());
	}
	if (SSL_CTX_check_private_key(ctx->ssl) != 1)
		return gmem_err(-EKEYREJECTED, "%s: not the key of the certificate in %s", opts->key, opts->cert);
	return gmem_tls_check_own(ctx, SSL_CTX_get0_certificate(ctx->ssl));
}

static int configure(struct gmem_tls_ctx *ctx)
{
	SSL_CTX *ssl = ctx->ssl;

	if (SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) != 1 || SSL_CTX_set_num_tickets(ssl, 0) != 1 ||
	    SSL_CTX_set_ciphersuites(ssl,
				     "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") != 1)
		return gmem_err(-EOPNOTSUPP, "tls: this OpenSSL has no TLS 1.3: %s", reason());
	SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
	SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, gmem_tls_verify);
	SSL_CTX_set_alpn_select_cb(ssl, choose_protocol, NULL);
	/* 0: done, for once. */
	if (SSL_CTX_set_alpn_protos(ssl, protocol, PROTOCOL_LEN) != 0)
		return gmem_err(-ENOMEM, "tls: no memory");
	return 0;
}

int gmem_tls_ctx_new(const struct gmem_tls_opts *opts, struct gmem_tls_ctx **ret)
{
	struct gmem_tls_ctx *ctx;
	int err = 0;

	if (!opts || !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "tls: options of another size");
	if (!opts->ca || !opts->cert || !opts->key)
		return gmem_err(-EINVAL, "tls: no file given for the %s",
				!opts->ca   ? "CA" :
				!opts->cert ? "certificate" :
					      "key");
	if ((!opts->peer_name || !opts->peer_name[0]) && !opts->peer_pin)
		return gmem_err(-EINVAL, "tls: who the other side has to be is not given, by name or by SHA-256");
	ctx = calloc(1, sizeof(*ctx));
	if (!ctx)
		return gmem_err(-ENOMEM, "tls: no memory");
	ctx->rekey_bytes = GMEM_TLS_REKEY;
	ctx->ca = strdup(opts->ca);
	ctx->cert = strdup(opts->cert);
	ctx->peer_name = opts->peer_name ? strdup(opts->peer_name) : NULL;
	ctx->ssl = SSL_CTX_new(TLS_method());
	ctx->method = sock_method();
	if (!ctx->ca || !ctx->cert || (opts->peer_name && !ctx->peer_name) || !ctx->ssl || !ctx->method)
		err = gmem_err(-ENOMEM, "tls: no memory");
	if (!err && opts->peer_pin) {
		ctx->has_pin = true;
		err = gmem_tls_parse_pin(opts->peer_pin, ctx->pin);
	}
	if (!err)
		err = configure(ctx);
	if (!err)
		err = load(ctx, opts);
	ERR_clear_error();
	if (err) {
		gmem_tls_ctx_free(ctx);
		return err;
	}
	*ret = ctx;
	return 0;
}

void gmem_tls_ctx_free(struct gmem_tls_ctx *ctx)
{
	if (!ctx)
		return;
	SSL_CTX_free(ctx->ssl);
	BIO_meth_free(ctx->method);
	free(ctx->ca);
	free(ctx->cert);
	free(ctx->peer_name);
	free(ctx);
}

void gmem_tls_ctx_set_rekey(struct gmem_tls_ctx *ctx, uint64_t bytes)
{
	ctx->rekey_bytes = bytes;
}

/* ---- a connection */

static int expect_name(SSL *ssl, const char *name)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(ssl);

	if (!name || !name[0])
		return 1;
	if (X509_VERIFY_PARAM_set1_ip_asc(param, name) == 1)
		return 1;
	X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	return X509_VERIFY_PARAM_set1_host(param, name, 0);
}

int gmem_tls_new(struct gmem_tls_ctx *ctx, int fd, bool server, const char *name, struct gmem_tls **ret)
{
	struct gmem_tls *tls = calloc(1, sizeof(*tls));
	BIO *bio = NULL;
	int flags = fcntl(fd, F_GETFL);

	if (!tls) {
		close(fd);
		return gmem_err(-ENOMEM, "tls: no memory");
	}
	tls->ctx = ctx;
	tls->fd = fd;
	snprintf(tls->name, sizeof(tls->name), "%s", name);
	tls->ssl = SSL_new(ctx->ssl);
	if (tls->ssl)
		bio = BIO_new(ctx->method);
	if (!bio || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
	    expect_name(tls->ssl, ctx->peer_name) != 1) {
		BIO_free(bio);
		gmem_tls_free(tls);
		ERR_clear_error();
		return gmem_err(-ENOMEM, "%s: no memory for a connection", name);
	}
	BIO_set_data(bio, tls);
	BIO_set_init(bio, 1);
	SSL_set_bio(tls->ssl, bio, bio);
	SSL_set_app_data(tls->ssl, tls);
	if (server)
		SSL_set_accept_state(tls->ssl);
	else
		SSL_set_connect_state(tls->ssl);
	*ret = tls;
	return 0;
}

void gmem_tls_free(struct gmem_tls *tls)
{
	if (!tls)
		return;
	SSL_free(tls->ssl);
	close(tls->fd);
	free(tls);
}

int gmem_tls_fd(const struct gmem_tls *tls)
{
	return tls->fd;
}

short gmem_tls_wants(const struct gmem_tls *tls)
{
	return tls->wants;
}

void gmem_tls_peer_pin(const struct gmem_tls *tls, uint8_t ret[GMEM_TLS_PIN_LEN])
{
	memcpy(ret, tls->pin, GMEM_TLS_PIN_LEN);
}

/* An alert is the other side's word: those about certificates are about ours. */
static int alert_error(const struct gmem_tls *tls, int alert)
{
	bool of_cert = (alert >= SSL_AD_BAD_CERTIFICATE && alert <= SSL_AD_CERTIFICATE_UNKNOWN) ||
		       alert == SSL_AD_UNKNOWN_CA || alert == SSL_AD_ACCESS_DENIED ||
		       alert == TLS13_AD_CERTIFICATE_REQUIRED;

	if (of_cert)
		return gmem_err(-EACCES, "%s: the other side refuses this side's certificate, %s: %s", tls->name,
				tls->ctx->cert, SSL_alert_desc_string_long(alert));
	return gmem_err(-EPROTO, "%s: the other side ended the connection: %s", tls->name,
			SSL_alert_desc_string_long(alert));
}

static int error_of(struct gmem_tls *tls, int r)
{
	unsigned long last;
	int why = SSL_get_error(tls->ssl, r), what, err;

	if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
		tls->wants = why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
		return -EAGAIN;
	}
	last = ERR_peek_error();
	what = ERR_GET_REASON(last);
	if (why == SSL_ERROR_ZERO_RETURN)
		err = gmem_err(-EPIPE, "%s: the other side has closed the connection", tls->name);
	else if (tls->verify_err)
		err = gmem_err(tls->verify_err, "%s: %s", tls->name, tls->verify_text);
	else if (tls->sock_err)
		err = gmem_err_sys(tls->sock_err, "%s", tls->name);
	else if (tls->eof)
		err = gmem_err(-ECONNRESET, "%s: the link was cut", tls->name);
	else if (what > SSL_AD_REASON_OFFSET && what < SSL_AD_REASON_OFFSET + 256)
		err = alert_error(tls, what - SSL_AD_REASON_OFFSET);
	else if (what == SSL_R_UNSUPPORTED_PROTOCOL || what == SSL_R_WRONG_SSL_VERSION)
		err = gmem_err(-EPROTO, "%s: the other side does not speak TLS 1.3", tls->name);
	else if (what == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE)
		err = gmem_err(-EKEYREJECTED, "%s: the other side shows no certificate", tls->name);
	else
		err = gmem_err(-EPROTO, "%s: %s", tls->name, last ? ERR_reason_error_string(last) : "TLS failed");
	ERR_clear_error();
	return err;
}

int gmem_tls_handshake(struct gmem_tls *tls)
{
	const unsigned char *chosen = NULL;
	unsigned int len = 0;
	int r;

	ERR_clear_error();
	r = SSL_do_handshake(tls->ssl);
	if (r != 1)
		return error_of(tls, r);
	SSL_get0_alpn_selected(tls->ssl, &chosen, &len);
	if (len != PROTOCOL_LEN - 1 || memcmp(chosen, protocol + 1, len) != 0)
		return gmem_err(-EPROTO, "%s: the other side does not speak gmem's migration protocol", tls->name);
	return gmem_tls_check_peer(tls);
}

int64_t gmem_tls_read(struct gmem_tls *tls, void *buf, size_t len)
{
	size_t n;
	int r;

	ERR_clear_error();
	r = SSL_read_ex(tls->ssl, buf, len, &n);
	return r == 1 ? (int64_t)n : error_of(tls, r);
}

int64_t gmem_tls_write(struct gmem_tls *tls, const void *buf, size_t len)
{
	size_t n;
	int r;

	ERR_clear_error();
	/* A key is good for so many records; a new one is announced between two writes. */
	if (!tls->writing && tls->written >= tls->ctx->rekey_bytes) {
		if (SSL_key_update(tls->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1)
			return gmem_err(-EPROTO, "%s: cannot change keys", tls->name);
		tls->written = 0;
	}
	r = SSL_write_ex(tls->ssl, buf, len, &n);
	tls->writing = r != 1;
	if (r != 1)
		return error_of(tls, r);
	tls->written += n;
	return (int64_t)n;
}
