/* SPDX-License-Identifier: MIT */
/* What is wrong with a certificate, in words somebody can act on. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "link/migrate/tls_ctx.h"

/* What a memory BIO holds, as text; frees it. */
static void take_text(BIO *bio, char *ret, size_t len)
{
	int n = bio ? BIO_read(bio, ret, (int)len - 1) : 0;

	ret[n > 0 ? n : 0] = 0;
	BIO_free(bio);
}

static void name_text(const X509_NAME *name, char *ret, size_t len)
{
	BIO *bio = BIO_new(BIO_s_mem());

	if (bio)
		X509_NAME_print_ex(bio, name, 0, XN_FLAG_RFC2253);
	take_text(bio, ret, len);
}

static void time_text(const ASN1_TIME *time, char *ret, size_t len)
{
	BIO *bio = BIO_new(BIO_s_mem());

	if (bio)
		ASN1_TIME_print(bio, time);
	take_text(bio, ret, len);
}

static void append(char *text, size_t len, const char *word)
{
	size_t at = strlen(text);

	snprintf(text + at, len - at, "%s%s", at ? ", " : "", word);
}

/* The names of the certificate, for the user to compare. They are the other side's words: nothing unprintable. */
static void names_text(X509 *cert, char *ret, size_t len)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);

	ret[0] = 0;
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		char word[128] = "";

		if (name->type == GEN_DNS) {
			snprintf(word, sizeof(word), "%.*s", ASN1_STRING_length(name->d.dNSName),
				 (const char *)ASN1_STRING_get0_data(name->d.dNSName));
		} else if (name->type == GEN_IPADD) {
			int n = ASN1_STRING_length(name->d.iPAddress);

			inet_ntop(n == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(name->d.iPAddress), word,
				  n == 4 || n == 16 ? sizeof(word) : 0);
		}
		for (char *p = word; *p; p++)
			if (!isprint((unsigned char)*p))
				*p = '?';
		if (word[0])
			append(ret, len, word);
	}
	GENERAL_NAMES_free(names);
	if (!ret[0])
		name_text(X509_get_subject_name(cert), ret, len);
}

static void keep(struct gmem_tls *tls, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void keep(struct gmem_tls *tls, int err, const char *fmt, ...)
{
	va_list ap;

	tls->verify_err = err;
	va_start(ap, fmt);
	vsnprintf(tls->verify_text, sizeof(tls->verify_text), fmt, ap);
	va_end(ap);
}

static void explain(struct gmem_tls *tls, X509_STORE_CTX *store)
{
	int error = X509_STORE_CTX_get_error(store), depth = X509_STORE_CTX_get_error_depth(store);
	X509 *cert = X509_STORE_CTX_get_current_cert(store);
	const char *whose = depth ? "a CA certificate" : "the certificate";
	char subject[160] = "", more[200] = "";

	if (cert)
		name_text(X509_get_subject_name(cert), subject, sizeof(subject));
	switch (error) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		time_text(X509_get0_notAfter(cert), more, sizeof(more));
		keep(tls, -EKEYEXPIRED, "%s \"%s\" expired at %s", whose, subject, more);
		return;
	case X509_V_ERR_CERT_NOT_YET_VALID:
		time_text(X509_get0_notBefore(cert), more, sizeof(more));
		keep(tls, -EKEYEXPIRED, "%s \"%s\" is not valid before %s", whose, subject, more);
		return;
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		names_text(cert, more, sizeof(more));
		keep(tls, -EKEYREJECTED, "the certificate \"%s\" is for %s, not for %s", subject, more,
		     tls->ctx->peer_name);
		return;
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		name_text(X509_get_issuer_name(cert), more, sizeof(more));
		keep(tls, -EKEYREJECTED, "%s \"%s\", issued by \"%s\", is not signed by a CA of %s: %s", whose, subject,
		     more, tls->ctx->ca, X509_verify_cert_error_string(error));
		return;
	default:
		keep(tls, -EKEYREJECTED, "%s \"%s\": %s", whose, subject, X509_verify_cert_error_string(error));
	}
}

int gmem_tls_verify(int ok, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct gmem_tls *tls = SSL_get_app_data(ssl);

	if (!ok && !tls->verify_err)
		explain(tls, store);
	return ok;
}

int gmem_tls_check_peer(struct gmem_tls *tls)
{
	X509 *cert = SSL_get0_peer_certificate(tls->ssl);
	char subject[160];

	if (!cert || SSL_get_verify_result(tls->ssl) != X509_V_OK)
		return gmem_err(-EKEYREJECTED, "%s: no certificate", tls->name);
	if (X509_digest(cert, EVP_sha256(), tls->pin, NULL) != 1)
		return gmem_err(-ENOMEM, "%s: no memory for a digest", tls->name);
	if (!tls->ctx->has_pin || !memcmp(tls->pin, tls->ctx->pin, GMEM_TLS_PIN_LEN))
		return 0;
	name_text(X509_get_subject_name(cert), subject, sizeof(subject));
	return gmem_err(
		-EKEYREJECTED,
		"%s: the certificate \"%s\" is not the one with the given SHA-256; its begins with %02x%02x%02x%02x",
		tls->name, subject, tls->pin[0], tls->pin[1], tls->pin[2], tls->pin[3]);
}

int gmem_tls_check_own(const struct gmem_tls_ctx *ctx, X509 *cert)
{
	char when[64];

	if (X509_cmp_current_time(X509_get0_notAfter(cert)) < 0) {
		time_text(X509_get0_notAfter(cert), when, sizeof(when));
		return gmem_err(-EKEYEXPIRED, "%s: this side's own certificate expired at %s", ctx->cert, when);
	}
	if (X509_cmp_current_time(X509_get0_notBefore(cert)) > 0) {
		time_text(X509_get0_notBefore(cert), when, sizeof(when));
		return gmem_err(-EKEYEXPIRED, "%s: this side's own certificate is not valid before %s", ctx->cert,
				when);
	}
	return 0;
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

int gmem_tls_parse_pin(const char *text, uint8_t ret[GMEM_TLS_PIN_LEN])
{
	const char *p = text;

	for (size_t i = 0; i < GMEM_TLS_PIN_LEN; i++) {
		if (i && *p == ':')
			p++;
		if (digit(p[0]) < 0 || digit(p[1]) < 0)
			break;
		ret[i] = (uint8_t)(digit(p[0]) << 4 | digit(p[1]));
		p += 2;
		if (i == GMEM_TLS_PIN_LEN - 1 && !*p)
			return 0;
	}
	return gmem_err(-EINVAL, "tls: \"%s\" is no SHA-256: 64 hexadecimal digits", text);
}
