/* SPDX-License-Identifier: MIT */
#include "migrate_util.h"

#include <dirent.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

void pki_begin(struct pki *pki)
{
	snprintf(pki->dir, sizeof(pki->dir), "/tmp/gmem-pki-XXXXXX");
	CHECK(mkdtemp(pki->dir));
	pki->serial = 0;
}

void pki_end(struct pki *pki)
{
	DIR *dir = opendir(pki->dir);
	struct dirent *de;

	CHECK(dir);
	while ((de = readdir(dir)))
		if (de->d_name[0] != '.')
			unlinkat(dirfd(dir), de->d_name, 0);
	closedir(dir);
	rmdir(pki->dir);
}

static X509 *begin_cert(struct pki *pki, EVP_PKEY *key, const char *cn, long from, long to)
{
	X509 *cert = X509_new();
	X509_NAME *name;

	CHECK(cert && X509_set_version(cert, 2));
	ASN1_INTEGER_set(X509_get_serialNumber(cert), (long)++pki->serial + getpid() * 1000L);
	CHECK(X509_gmtime_adj(X509_getm_notBefore(cert), from) && X509_gmtime_adj(X509_getm_notAfter(cert), to));
	CHECK(X509_set_pubkey(cert, key));
	name = X509_get_subject_name(cert);
	CHECK(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)cn, -1, -1, 0));
	return cert;
}

static void extend(X509 *cert, int nid, const char *value)
{
	X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

	CHECK(ext && X509_add_ext(cert, ext, -1));
	X509_EXTENSION_free(ext);
}

static void write_cert(const char *path, X509 *cert)
{
	FILE *f = fopen(path, "we");

	CHECK(f && PEM_write_X509(f, cert));
	fclose(f);
}

void ca_make(struct pki *pki, struct ca *ca, const char *name)
{
	ca->key = EVP_EC_gen("P-256");
	CHECK(ca->key);
	ca->cert = begin_cert(pki, ca->key, name, -3600, 86400);
	X509_set_issuer_name(ca->cert, X509_get_subject_name(ca->cert));
	extend(ca->cert, NID_basic_constraints, "critical,CA:TRUE");
	CHECK(X509_sign(ca->cert, ca->key, EVP_sha256()));
	snprintf(ca->path, sizeof(ca->path), "%s/ca-%u.pem", pki->dir, pki->serial);
	write_cert(ca->path, ca->cert);
}

void ca_free(struct ca *ca)
{
	EVP_PKEY_free(ca->key);
	X509_free(ca->cert);
}

void identity_make(struct pki *pki, const struct ca *ca, const char *cn, const char *san, long from, long to,
		   struct identity *ret)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	unsigned char digest[32];
	X509 *cert;
	FILE *f;

	CHECK(key);
	cert = begin_cert(pki, key, cn, from, to);
	X509_set_issuer_name(cert, X509_get_subject_name(ca->cert));
	if (san)
		extend(cert, NID_subject_alt_name, san);
	CHECK(X509_sign(cert, ca->key, EVP_sha256()));
	snprintf(ret->cert, sizeof(ret->cert), "%s/cert-%u.pem", pki->dir, pki->serial);
	snprintf(ret->key, sizeof(ret->key), "%s/key-%u.pem", pki->dir, pki->serial);
	write_cert(ret->cert, cert);
	f = fopen(ret->key, "we");
	CHECK(f && PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL));
	fclose(f);
	CHECK(X509_digest(cert, EVP_sha256(), digest, NULL));
	for (unsigned int i = 0; i < 32; i++)
		snprintf(ret->pin + 2 * i, 3, "%02x", digest[i]);
	X509_free(cert);
	EVP_PKEY_free(key);
}

struct gmem_tls_ctx *identity_ctx(const struct ca *ca, const struct identity *me, const char *peer, const char *pin)
{
	const struct gmem_tls_opts opts = { .size = sizeof(opts),
					    .ca = ca->path,
					    .cert = me->cert,
					    .key = me->key,
					    .peer_name = peer,
					    .peer_pin = pin };
	struct gmem_tls_ctx *ctx;

	CHECK_OK(gmem_tls_ctx_new(&opts, &ctx));
	return ctx;
}

void both_begin(struct both *b)
{
	pki_begin(&b->pki);
	ca_make(&b->pki, &b->ca, "test CA");
	identity_make(&b->pki, &b->ca, "alpha", "DNS:alpha.test", -3600, 3600, &b->alpha);
	identity_make(&b->pki, &b->ca, "beta", "DNS:beta.test,IP:127.0.0.1", -3600, 3600, &b->beta);
	b->alpha_ctx = identity_ctx(&b->ca, &b->alpha, "beta.test", NULL);
	b->beta_ctx = identity_ctx(&b->ca, &b->beta, "alpha.test", NULL);
}

void both_end(struct both *b)
{
	gmem_tls_ctx_free(b->alpha_ctx);
	gmem_tls_ctx_free(b->beta_ctx);
	ca_free(&b->ca);
	pki_end(&b->pki);
}
