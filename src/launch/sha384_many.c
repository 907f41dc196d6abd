/* SPDX-License-Identifier: MIT */
#include "launch/sha384_many.h"

#include <errno.h>
#include <string.h>

#ifdef GMEM_IPSEC_MB
#include <intel-ipsec-mb.h>
#include <sys/mman.h>
#endif

#include "base/err.h"
#include "base/range.h"

/* Of a page of zeros: firmware has many. */
static const uint8_t zero_page_hash[GMEM_SHA384_LEN] = {
	0xc0, 0xe5, 0x9a, 0x3e, 0x3f, 0xfb, 0xd3, 0xb5, 0xc7, 0x54, 0x28, 0xfb, 0x36, 0x43, 0x2f, 0xac,
	0xab, 0xc7, 0x45, 0x94, 0x42, 0x96, 0xff, 0x51, 0x5f, 0x73, 0x7c, 0x4f, 0xef, 0x4e, 0xfc, 0x64,
	0x58, 0x68, 0x09, 0xf7, 0xa1, 0x6f, 0x56, 0x35, 0x4a, 0x1e, 0xae, 0xcf, 0x2a, 0xa8, 0xd7, 0x74,
};

/* The first word tells of most pages that they are not zero; if it is, each word is compared with the next. */
static bool is_zero(const uint8_t *page)
{
	static const uint8_t zero[sizeof(uint64_t)];

	return !memcmp(page, zero, sizeof(zero)) && !memcmp(page, page + sizeof(zero), GMEM_PAGE_SIZE - sizeof(zero));
}

#ifdef GMEM_IPSEC_MB
/* In pages that are brought in by one call: touching them one by one would take longer than the rest. */
static void *new_lanes(void)
{
	void *mem = mmap(NULL, imb_get_mb_mgr_size(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	IMB_MGR *mgr;
	IMB_ARCH arch;

	if (mem == MAP_FAILED)
		return NULL;
	mgr = imb_set_pointers_mb_mgr(mem, 0, 1);
	if (mgr) {
		init_mb_mgr_auto(mgr, &arch);
		if (!imb_get_errno(mgr))
			return mgr;
	}
	munmap(mem, imb_get_mb_mgr_size());
	return NULL;
}

static void free_lanes(void *lanes)
{
	if (lanes)
		munmap(lanes, imb_get_mb_mgr_size());
}

/* Jobs come back in another order than they went in, but each hash goes where its job says. */
static bool in_lanes(IMB_MGR *mgr, const uint8_t *pages, size_t npages, uint8_t (*ret)[GMEM_SHA384_LEN])
{
	size_t left = 0;
	IMB_JOB *job;

	for (size_t i = 0; i < npages; i++) {
		const uint8_t *page = pages + i * GMEM_PAGE_SIZE;

		if (is_zero(page)) {
			memcpy(ret[i], zero_page_hash, sizeof(zero_page_hash));
			continue;
		}
		job = IMB_GET_NEXT_JOB(mgr);
		memset(job, 0, sizeof(*job));
		job->cipher_mode = IMB_CIPHER_NULL;
		job->cipher_direction = IMB_DIR_ENCRYPT;
		job->chain_order = IMB_ORDER_HASH_CIPHER;
		job->hash_alg = IMB_AUTH_SHA_384;
		job->src = page;
		job->msg_len_to_hash_in_bytes = GMEM_PAGE_SIZE;
		job->auth_tag_output = ret[i];
		job->auth_tag_output_len_in_bytes = GMEM_SHA384_LEN;
		left++;
		for (job = IMB_SUBMIT_JOB(mgr); job; job = IMB_GET_COMPLETED_JOB(mgr))
			left -= job->status == IMB_STATUS_COMPLETED;
	}
	while ((job = IMB_FLUSH_JOB(mgr)))
		left -= job->status == IMB_STATUS_COMPLETED;
	return !left;
}
#endif

int gmem_sha384_many_init(struct gmem_sha384_many *m, bool lanes)
{
	int err;

	memset(m, 0, sizeof(*m));
	err = gmem_sha384_new(&m->ctx);
	if (err)
		return err;
#ifdef GMEM_IPSEC_MB
	if (lanes)
		m->lanes = new_lanes();
#endif
	return 0;
}

void gmem_sha384_many_free(struct gmem_sha384_many *m)
{
	gmem_sha384_free(m->ctx);
#ifdef GMEM_IPSEC_MB
	free_lanes(m->lanes);
#endif
	memset(m, 0, sizeof(*m));
}

int gmem_sha384_many(struct gmem_sha384_many *m, const uint8_t *pages, size_t npages, uint8_t (*ret)[GMEM_SHA384_LEN])
{
	int err = 0;

#ifdef GMEM_IPSEC_MB
	/* What lanes will not do is done without them. */
	if (m->lanes && in_lanes(m->lanes, pages, npages, ret))
		return 0;
#endif
	for (size_t i = 0; !err && i < npages; i++) {
		if (is_zero(pages + i * GMEM_PAGE_SIZE))
			memcpy(ret[i], zero_page_hash, sizeof(zero_page_hash));
		else
			err = gmem_sha384_again(m->ctx, pages + i * GMEM_PAGE_SIZE, GMEM_PAGE_SIZE, ret[i]);
	}
	return err;
}
