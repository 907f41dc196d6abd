/* SPDX-License-Identifier: MIT */
/* What tls.c and tls_verify.c share. */
#ifndef GMEM_LINK_MIGRATE_TLS_CTX_H
#define GMEM_LINK_MIGRATE_TLS_CTX_H

#include <openssl/ssl.h>

#include "link/migrate/tls.h"

struct gmem_tls_ctx {
	SSL_CTX *ssl;
	BIO_METHOD *method;
	char *ca, *cert, *peer_name;
	uint8_t pin[GMEM_TLS_PIN_LEN];
	bool has_pin;
	uint64_t rekey_bytes; /* written under one key */
};

struct gmem_tls {
	struct gmem_tls_ctx *ctx;
	SSL *ssl;
	int fd;
	int sock_err; /* negative errno of the last call on the socket that failed */
	bool eof;
	bool writing; /* a write is to be repeated */
	short wants;
	uint64_t written; /* under the present key */
	int verify_err; /* negative errno, with `verify_text`: what is wrong with the other side's certificate */
	char verify_text[400];
	char name[128];
	uint8_t pin[GMEM_TLS_PIN_LEN];
};

/* tls_verify.c. Of SSL_CTX_set_verify(): keeps what is wrong. */
int gmem_tls_verify(int ok, X509_STORE_CTX *store);
/* After the handshake: the pin, and that there is a certificate. */
int gmem_tls_check_peer(struct gmem_tls *tls);
/* This side's own certificate: -EKEYEXPIRED. */
int gmem_tls_check_own(const struct gmem_tls_ctx *ctx, X509 *cert);
int gmem_tls_parse_pin(const char *text, uint8_t ret[GMEM_TLS_PIN_LEN]); /* -EINVAL */

#endif
