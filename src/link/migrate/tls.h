/* SPDX-License-Identifier: MIT */
/*
 * Who a machine is, and who it speaks to: certificates, and connections over TLS 1.3.
 *
 * Enters: PEM files, the name of the other side, connected sockets. Leaves: bytes that nobody else has read or changed,
 * or an error that names the certificate and what is wrong with it. Nothing older than TLS 1.3 is spoken; there are no
 * tickets, no early data and no compression, so nothing that was recorded can be sent again. Both sides show a
 * certificate, whoever connected.
 */
#ifndef GMEM_LINK_MIGRATE_TLS_H
#define GMEM_LINK_MIGRATE_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GMEM_TLS_REKEY (UINT64_C(64) << 30) /* well below what AES-GCM is good for: some 2^24 records of 16 KiB */
#define GMEM_TLS_PIN_LEN 32u /* SHA-256 of a certificate's DER form */

struct gmem_tls_opts {
	size_t size; /* sizeof(struct gmem_tls_opts) */
	const char *ca; /* PEM: who may have signed the other side's certificate */
	const char *cert; /* PEM: this side's certificate, with what leads to the CA after it */
	const char *key; /* PEM: its key, not encrypted */
	/*
	 * Who the other side has to be: a DNS name or an IP address its certificate is for, or the SHA-256 of the
	 * certificate in hexadecimal (colons are allowed). At least one; both if both are given.
	 */
	const char *peer_name, *peer_pin;
};

/*
 * One side's identity. Immutable once made: any number of threads and channels may use it. -EINVAL (what is missing),
 * -ENOENT, -EACCES, -EBADMSG (a file that holds no certificate or key), -EKEYREJECTED (the key is another certificate's),
 * -EKEYEXPIRED (this side's own certificate: the text says since when), -ENOMEM.
 */
struct gmem_tls_ctx;
int gmem_tls_ctx_new(const struct gmem_tls_opts *opts, struct gmem_tls_ctx **ret);
void gmem_tls_ctx_free(struct gmem_tls_ctx *ctx); /* NULL is allowed; after all its connections */
/* How many bytes are written under one key; GMEM_TLS_REKEY at first. Before the first connection. */
void gmem_tls_ctx_set_rekey(struct gmem_tls_ctx *ctx, uint64_t bytes);

/*
 * A connection on a connected stream socket, which becomes non-blocking and the connection's own, also on failure.
 * `server`: it was accepted, not connected. `name` is what error texts call the other side. One thread at a time: a
 * caller with several has a lock.
 */
struct gmem_tls;
int gmem_tls_new(struct gmem_tls_ctx *ctx, int fd, bool server, const char *name, struct gmem_tls **ret);
void gmem_tls_free(struct gmem_tls *tls); /* NULL is allowed; closes the socket */
int gmem_tls_fd(const struct gmem_tls *tls);

/*
 * These never wait. -EAGAIN: come again when poll(2) says gmem_tls_wants(), POLLIN or POLLOUT. Errors are final:
 * -EKEYEXPIRED, -EKEYREJECTED (the other side's certificate: the text says which, and why), -EACCES (the other side
 * refuses ours), -EPROTO (not TLS 1.3, or not this protocol), -ECONNRESET (the link went, or was closed by an end of
 * file that nobody announced), -EPIPE (closed in order), -ETIMEDOUT, and others of recv(2) and send(2).
 */
int gmem_tls_handshake(struct gmem_tls *tls); /* 0: done, and the other side is who it has to be */
int64_t gmem_tls_read(struct gmem_tls *tls, void *buf, size_t len); /* at least 1 */
/* At least 1. After -EAGAIN the same bytes, or more that begin with them, are to be written next. */
int64_t gmem_tls_write(struct gmem_tls *tls, const void *buf, size_t len);
short gmem_tls_wants(const struct gmem_tls *tls);

/* The other side's certificate, once the handshake is done. */
void gmem_tls_peer_pin(const struct gmem_tls *tls, uint8_t ret[GMEM_TLS_PIN_LEN]);

#endif
