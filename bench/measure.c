/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-measure [-f] [-r ROUNDS] [-m MIB] FOLDER: how fast is the digest of a launch known?
 *
 * SNP, an image of 4 MiB and one of MIB: gmem_measure_create() beside the two things that it cannot do without: the
 * hashes of all pages, each CPU its share, from making the threads to joining them, and the chain of as many links,
 * whose hashes are there already. What it is held against is the longer of the two, round by round. The same page
 * hashes by libcrypto alone say what libipsec-mb brings. TDX: beside one SHA-384 of as many bytes as its calls make.
 * And what another number of vCPUs costs once the firmware is known. Digests are compared with each other.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/le.h"
#include "bench.h"
#include "gmem.h"
#include "launch/sha384_many.h"
#include "launch/snp_digest.h"

#define SMALL ((size_t)4 << 20)
#define MAX_CPUS 64u
#define TDX_PAGE (128u + 16u * 384u) /* what the calls for a page hash */

static uint8_t *image; /* ends with the tables */
static unsigned int ncpus;

struct share {
	pthread_t thread;
	bool lanes;
	const uint8_t *pages;
	size_t npages;
	uint8_t (*hashes)[GMEM_SHA384_LEN];
};

static void *hash_share(void *arg)
{
	struct gmem_sha384_many many;
	struct share *s = arg;

	if (gmem_sha384_many_init(&many, s->lanes) || gmem_sha384_many(&many, s->pages, s->npages, s->hashes))
		bench_die("hash");
	gmem_sha384_many_free(&many);
	return NULL;
}

static double hash_pages(size_t len, bool lanes, uint8_t (*hashes)[GMEM_SHA384_LEN])
{
	size_t npages = len / BENCH_PAGE, at = 0;
	struct share shares[MAX_CPUS];
	double seconds = bench_now();

	for (unsigned int i = 0; i < ncpus; i++) {
		size_t end = npages * (i + 1) / ncpus;

		shares[i] = (struct share){
			.lanes = lanes, .pages = image + at * BENCH_PAGE, .npages = end - at, .hashes = hashes + at
		};
		at = end;
		if (i && pthread_create(&shares[i].thread, NULL, hash_share, &shares[i]))
			bench_die("threads");
	}
	hash_share(&shares[0]);
	for (unsigned int i = 1; i < ncpus; i++)
		pthread_join(shares[i].thread, NULL);
	return bench_now() - seconds;
}

static double chain(size_t len, const uint8_t (*hashes)[GMEM_SHA384_LEN], struct gmem_snp_digest *d)
{
	struct evp_md_ctx_st *ctx;
	double seconds;

	if (gmem_sha384_new(&ctx))
		bench_die("sha384");
	gmem_snp_digest_init(d);
	seconds = bench_now();
	for (size_t i = 0; i < len / BENCH_PAGE; i++)
		if (gmem_snp_digest_link(d, ctx, GMEM_SNP_PAGE_NORMAL, (1ull << 32) - len + i * BENCH_PAGE, hashes[i]))
			bench_die("link");
	seconds = bench_now() - seconds;
	gmem_sha384_free(ctx);
	return seconds;
}

static int after_firmware(void *opaque, const struct gmem_measure_range *range)
{
	memcpy(opaque, range->digest, GMEM_LAUNCH_DIGEST_LEN);
	return 1;
}

static double measure_snp(const struct gmem_guest *guest, const struct gmem_snp_digest *want)
{
	uint8_t got[GMEM_LAUNCH_DIGEST_LEN], all[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_measure *m;
	double seconds = bench_now();

	if (gmem_measure_create(GMEM_VM_SNP, guest, NULL, NULL, &m) || gmem_measure_digest(m, guest, NULL, NULL, all))
		bench_die("%s", gmem_last_error());
	seconds = bench_now() - seconds;
	if (gmem_measure_digest(m, guest, after_firmware, got, all) != 1 || memcmp(got, want, sizeof(got)))
		bench_die("wrong digest");
	gmem_measure_free(m);
	return seconds;
}

/* A page of `words` 32-bit numbers and a GUID, as a table entry ends before `at`. */
static uint8_t *put_entry(uint8_t *at, const uint8_t guid[16], uint32_t word)
{
	memcpy(at - 16, guid, 16);
	gmem_put_le16(at - 18, 22);
	gmem_put_le32(at - 22, word);
	return at - 22;
}

/* Firmware's tables over the last page: as OVMF's, and for TDX all of it a BFV. */
static void put_tables(uint8_t *end, size_t len)
{
	static const uint8_t footer[16] = { 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45,
					    0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d };
	static const uint8_t sev[16] = { 0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47,
					 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc };
	static const uint8_t tdx[16] = { 0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47,
					 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2 };
	static const uint8_t reset[16] = { 0xde, 0x71, 0xf7, 0x00, 0x7e, 0x1a, 0xcb, 0x4f,
					   0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e };
	static const uint32_t sections[][3] = { { 0x800000, 0x9000, 1 },
						{ 0x80a000, 0x3000, 1 },
						{ 0x80d000, 0x1000, 2 },
						{ 0x80e000, 0x1000, 3 },
						{ 0x80f000, 0x11000, 1 } };
	uint8_t *at = end - 50;

	memset(end - BENCH_PAGE, 0, BENCH_PAGE);
	at = put_entry(at, reset, 0x80b004);
	at = put_entry(at, sev, 0x400);
	at = put_entry(at, tdx, 0x300);
	memcpy(end - 48, footer, 16);
	gmem_put_le16(end - 50, (uint16_t)(end - 50 - at + 18));
	memcpy(end - 0x400, "ASEV", 4);
	gmem_put_le32(end - 0x3fc, 16 + sizeof(sections));
	gmem_put_le32(end - 0x3f8, 1);
	gmem_put_le32(end - 0x3f4, 5);
	for (unsigned int i = 0; i < 15; i++)
		gmem_put_le32(end - 0x3f0 + 4 * i, sections[i / 3][i % 3]);
	memcpy(end - 0x300, "TDVF", 4);
	gmem_put_le32(end - 0x2fc, 16 + 64);
	gmem_put_le32(end - 0x2f8, 1);
	gmem_put_le32(end - 0x2f4, 2);
	/* BFV */
	gmem_put_le32(end - 0x2ec, (uint32_t)len);
	gmem_put_le64(end - 0x2e8, (1ull << 32) - len);
	gmem_put_le64(end - 0x2e0, len);
	gmem_put_le32(end - 0x2d4, 1);
	/* TD_HOB */
	gmem_put_le64(end - 0x2c8, 0x809000);
	gmem_put_le64(end - 0x2c0, 0x2000);
	gmem_put_le32(end - 0x2b8, 2);
}

struct rows {
	struct bench_row *copy, *pages, *plain, *links, *floor, *ours;
};

static void add_rows(struct bench *b, size_t len, struct rows *r)
{
	unsigned int mib = (unsigned int)(len >> 20);

	r->floor = bench_row(b, "ms", NULL, "SNP, %u MiB: the longer of page hashes and chain", mib);
	r->copy = bench_row(b, "ms", r->floor, "SNP, %u MiB: memcpy", mib);
	r->plain = bench_row(b, "ms", r->floor, "SNP, %u MiB: page hashes on all cores, libcrypto only", mib);
	r->pages = bench_row(b, "ms", r->floor, "SNP, %u MiB: page hashes on all cores", mib);
	r->links = bench_row(b, "ms", r->floor, "SNP, %u MiB: chain", mib);
	r->ours = bench_row(b, "ms", r->floor, "SNP, %u MiB: gmem_measure_create and _digest", mib);
	bench_target(b, r->ours, false, 1.25, "SNP digest of %u MiB beside the longer of page hashes and chain", mib);
}

static double copy_image(size_t len)
{
	uint8_t *to = malloc(len);
	double seconds;

	if (!to)
		bench_die("memory");
	memset(to, 1, len);
	seconds = bench_now();
	memcpy(to, image, len);
	seconds = bench_now() - seconds;
	if (memcmp(to, image, len))
		bench_die("wrong bytes");
	free(to);
	return seconds;
}

/* As often as makes 64 MiB. */
static void snp_round(size_t len, const struct rows *r, uint8_t (*hashes)[GMEM_SHA384_LEN])
{
	size_t times = len < (64u << 20) ? (64u << 20) / len : 1;
	struct gmem_guest guest = {
		.size = sizeof(guest), .firmware = image, .firmware_len = len, .nvcpus = 4, .signature = 0x800f12
	};
	double copy = 0, pages = 0, plain = 0, links = 0, ours = 0;
	struct gmem_snp_digest digest;

	put_tables(image + len, len);
	for (size_t i = 0; i < times; i++) {
		copy += copy_image(len);
		plain += hash_pages(len, false, hashes);
		pages += hash_pages(len, true, hashes);
		links += chain(len, (const void *)hashes, &digest);
		ours += measure_snp(&guest, &digest);
	}
	bench_add(r->copy, copy / (double)times * 1e3);
	bench_add(r->plain, plain / (double)times * 1e3);
	bench_add(r->pages, pages / (double)times * 1e3);
	bench_add(r->links, links / (double)times * 1e3);
	bench_add(r->floor, (pages > links ? pages : links) / (double)times * 1e3);
	bench_add(r->ours, ours / (double)times * 1e3);
}

static double one_stream(size_t bytes)
{
	struct evp_md_ctx_st *ctx;
	double seconds;

	if (gmem_sha384_new(&ctx))
		bench_die("sha384");
	seconds = bench_now();
	for (size_t at = 0; at < bytes; at += 1u << 20)
		if (gmem_sha384_update(ctx, image + at % SMALL, 1u << 20))
			bench_die("sha384");
	seconds = bench_now() - seconds;
	gmem_sha384_free(ctx);
	return seconds;
}

static double measure_tdx(const struct gmem_guest *guest)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_measure *m;
	double seconds = bench_now();

	if (gmem_measure_create(GMEM_VM_TDX, guest, NULL, NULL, &m) ||
	    gmem_measure_digest(m, guest, NULL, NULL, digest))
		bench_die("%s", gmem_last_error());
	seconds = bench_now() - seconds;
	gmem_measure_free(m);
	return seconds;
}

static void tdx_round(size_t len, struct bench_row *stream, struct bench_row *ours)
{
	struct gmem_guest guest = { .size = sizeof(guest), .firmware = image, .firmware_len = len };
	size_t hashed = len / BENCH_PAGE * TDX_PAGE, whole = (hashed + (1u << 20) - 1) >> 20 << 20;

	put_tables(image + len, len);
	bench_add(stream, one_stream(whole) * (double)hashed / (double)whole * 1e3);
	bench_add(ours, measure_tdx(&guest) * 1e3);
}

/* Counts of vCPUs that nobody has asked for. */
static void again_round(struct bench_row *row)
{
	struct gmem_guest guest = {
		.size = sizeof(guest), .firmware = image, .firmware_len = SMALL, .nvcpus = 1, .signature = 0x800f12
	};
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_measure *m;
	double seconds;

	put_tables(image + SMALL, SMALL);
	if (gmem_measure_create(GMEM_VM_SNP, &guest, NULL, NULL, &m))
		bench_die("%s", gmem_last_error());
	seconds = bench_now();
	for (guest.nvcpus = 1; guest.nvcpus <= 256; guest.nvcpus *= 2)
		if (gmem_measure_digest(m, &guest, NULL, NULL, digest))
			bench_die("%s", gmem_last_error());
	bench_add(row, (bench_now() - seconds) / 9 * 1e3);
	gmem_measure_free(m);
}

int main(int argc, char **argv)
{
	struct bench_row *stream, *tdx, *again;
	uint8_t(*hashes)[GMEM_SHA384_LEN];
	struct rows large, small;
	static struct bench b;
	size_t len;

	bench_begin(&b, "measure", 1024, argc, argv);
	len = (size_t)b.mib << 20;
	ncpus = (unsigned int)sysconf(_SC_NPROCESSORS_ONLN);
	ncpus = ncpus > MAX_CPUS ? MAX_CPUS : ncpus;
	image = malloc(len > SMALL ? len : SMALL);
	hashes = malloc((len > SMALL ? len : SMALL) / BENCH_PAGE * sizeof(*hashes));
	if (!image || !hashes)
		bench_die("memory");
	memset(hashes, 0, len / BENCH_PAGE * sizeof(*hashes));
	for (size_t page = 0; page < (len > SMALL ? len : SMALL) / BENCH_PAGE; page++)
		bench_page(page, false, image + page * BENCH_PAGE);
	add_rows(&b, SMALL, &small);
	add_rows(&b, len, &large);
	stream = bench_row(&b, "ms", NULL, "TDX, 4 MiB: one SHA-384 stream of as many bytes");
	tdx = bench_row(&b, "ms", stream, "TDX, 4 MiB: gmem_measure_create and _digest");
	again = bench_row(&b, "ms", NULL, "another number of vCPUs, 1 to 256: gmem_measure_digest");
	bench_target(&b, tdx, false, 1.1, "TDX digest of 4 MiB beside one SHA-384 stream");
	bench_target_absolute(&b, again, false, 1, "the digest for another number of vCPUs");
	for (unsigned int i = 0; i < b.rounds; i++) {
		snp_round(SMALL, &small, hashes);
		snp_round(len, &large, hashes);
		tdx_round(SMALL, stream, tdx);
		again_round(again);
	}
	free(image);
	free(hashes);
	return bench_end(&b);
}
