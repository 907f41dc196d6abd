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

/* What comes back: pages and links in the order they went in, which a link need not wait for. */
static void collect(struct gmem_sha384_many *m, IMB_JOB *job)
{
	IMB_JOB *link = m->link;

	for (; job; job = IMB_GET_COMPLETED_JOB((IMB_MGR *)m->lanes)) {
		uint32_t *left = job->user_data;

		if (job->status != IMB_STATUS_COMPLETED)
			m->failed = true;
		if (left) {
			--*left;
			m->npages--;
		}
		if (job == link)
			m->link = NULL;
	}
	if (m->link && link->status == IMB_STATUS_COMPLETED)
		m->link = NULL;
}

static int put_job(struct gmem_sha384_many *m, const void *data, size_t len, uint8_t *ret, uint32_t *left)
{
	IMB_MGR *mgr = m->lanes;
	IMB_JOB *job = IMB_GET_NEXT_JOB(mgr);

	memset(job, 0, sizeof(*job));
	job->cipher_mode = IMB_CIPHER_NULL;
	job->cipher_direction = IMB_DIR_ENCRYPT;
	job->chain_order = IMB_ORDER_HASH_CIPHER;
	job->hash_alg = IMB_AUTH_SHA_384;
	job->src = data;
	job->msg_len_to_hash_in_bytes = len;
	job->auth_tag_output = ret;
	job->auth_tag_output_len_in_bytes = GMEM_SHA384_LEN;
	job->user_data = left;
	if (left) {
		++*left;
		m->npages++;
	} else {
		m->link = job;
	}
	collect(m, IMB_SUBMIT_JOB_NOCHECK(mgr));
	return m->failed ? gmem_err(-ENOMEM, "libipsec-mb: error %d", imb_get_errno(mgr)) : 0;
}

static int push_job(struct gmem_sha384_many *m)
{
	IMB_MGR *mgr = m->lanes;
	IMB_JOB *job = IMB_FLUSH_JOB(mgr);

	if (!job)
		return 0;
	collect(m, job);
	return m->failed ? gmem_err(-ENOMEM, "libipsec-mb: error %d", imb_get_errno(mgr)) : 1;
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

int gmem_sha384_many_put(struct gmem_sha384_many *m, const uint8_t *page, uint8_t ret[GMEM_SHA384_LEN], uint32_t *left)
{
	if (is_zero(page)) {
		memcpy(ret, zero_page_hash, sizeof(zero_page_hash));
		return 0;
	}
#ifdef GMEM_IPSEC_MB
	if (m->lanes)
		return put_job(m, page, GMEM_PAGE_SIZE, ret, left);
#endif
	return gmem_sha384_again(m->ctx, page, GMEM_PAGE_SIZE, ret);
}

int gmem_sha384_many_push(struct gmem_sha384_many *m)
{
#ifdef GMEM_IPSEC_MB
	if (m->lanes)
		return push_job(m);
#endif
	return 0;
}

int gmem_sha384_many_link(struct gmem_sha384_many *m, const void *data, size_t len, bool in_lane,
			  uint8_t ret[GMEM_SHA384_LEN])
{
#ifdef GMEM_IPSEC_MB
	if (m->lanes && in_lane && m->npages)
		return put_job(m, data, len, ret, NULL);
#endif
	return gmem_sha384_again(m->ctx, data, len, ret);
}

int gmem_sha384_many(struct gmem_sha384_many *m, const uint8_t *pages, size_t npages, uint8_t (*ret)[GMEM_SHA384_LEN])
{
	uint32_t left = 0;
	int err = 0;

	for (size_t i = 0; !err && i < npages; i++)
		err = gmem_sha384_many_put(m, pages + i * GMEM_PAGE_SIZE, ret[i], &left);
	while (!err && left) {
		err = gmem_sha384_many_push(m);
		err = err < 0 ? err : 0;
	}
	return err;
}
