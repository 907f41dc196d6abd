/* SPDX-License-Identifier: MIT */
/*
 * A TDX guest: the sections of the TDVF metadata, as the calls TDH.MEM.PAGE.ADD and TDH.MR.EXTEND that build it. Its
 * vCPUs are not in MRTD.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/measure/measure.h"
#include "launch/tdx_digest.h"

/* More than any firmware asks for, and few enough to be hashed in minutes: metadata may say what it likes. */
#define MAX_BUILD (UINT64_C(64) << 30)
#define MAX_GPA (UINT64_C(1) << 51) /* where the bit is that means shared, at most */
/* The caller is told every so many. */
#define PAGES_A_REPORT 1024u

static const char *const names[] = {
	[GMEM_TDVF_SECTION_BFV] = "BFV",
	[GMEM_TDVF_SECTION_CFV] = "CFV",
	[GMEM_TDVF_SECTION_TD_HOB] = "TD_HOB",
	[GMEM_TDVF_SECTION_TEMP_MEM] = "TEMP_MEM",
	[GMEM_TDVF_SECTION_PERM_MEM] = "PERM_MEM",
	[GMEM_TDVF_SECTION_PAYLOAD] = "PAYLOAD",
	[GMEM_TDVF_SECTION_PAYLOAD_PARAM] = "PAYLOAD_PARAM",
	[GMEM_TDVF_SECTION_TD_INFO] = "TD_INFO",
};

struct build {
	struct gmem_tdx_digest digest;
	const struct gmem_measure_image *image;
	bool two_pass;
	struct gmem_measure_progress *progress;
	uint64_t untold; /* pages */
};

/* Pages that the guest accepts by itself are not part of the build. */
static bool is_built(const struct gmem_tdvf_section *s)
{
	return s->len && !(s->attr & GMEM_TDVF_PAGE_AUG);
}

/* The page at `at` of a section; zeros follow the bytes that the image has. */
static const uint8_t *page_of(const struct build *b, const struct gmem_tdvf_section *s, uint64_t at, uint8_t *scratch)
{
	uint64_t have = at < s->raw_len ? gmem_min_u64(s->raw_len - at, GMEM_PAGE_SIZE) : 0;

	if (have == GMEM_PAGE_SIZE)
		return b->image->bytes + s->off + at;
	memset(scratch, 0, GMEM_PAGE_SIZE);
	if (have)
		memcpy(scratch, b->image->bytes + s->off + at, have);
	return scratch;
}

static int went_on(struct build *b, bool now)
{
	uint64_t pages = ++b->untold;

	if (!now && pages < PAGES_A_REPORT)
		return 0;
	b->untold = 0;
	return gmem_measure_went_on(b->progress, pages * GMEM_PAGE_SIZE);
}

/* One page of a section: added, measured, or both. */
static int one_page(struct build *b, const struct gmem_tdvf_section *s, uint64_t at, bool add, bool extend)
{
	uint8_t scratch[GMEM_PAGE_SIZE];
	const uint8_t *page;

	if (!extend)
		return gmem_tdx_digest_add(&b->digest, s->gpa + at);
	page = page_of(b, s, at, scratch);
	return add ? gmem_tdx_digest_add_extend_page(&b->digest, s->gpa + at, page) :
		     gmem_tdx_digest_extend_page(&b->digest, s->gpa + at, page);
}

static int add_section(struct build *b, const struct gmem_tdvf_section *s)
{
	bool measured = s->attr & GMEM_TDVF_MR_EXTEND, twice = measured && b->two_pass;
	int err = 0;

	for (uint64_t at = 0; !err && twice && at < s->len; at += GMEM_PAGE_SIZE)
		err = one_page(b, s, at, true, false);
	for (uint64_t at = 0; !err && at < s->len; at += GMEM_PAGE_SIZE) {
		err = one_page(b, s, at, !twice, measured);
		if (!err)
			err = went_on(b, at + GMEM_PAGE_SIZE == s->len);
	}
	return err;
}

static int build(struct gmem_measure *m, struct build *b, struct gmem_measure_pass *pass)
{
	int err = 0;

	for (uint32_t i = 0; !err && i < m->tdx.nsections; i++) {
		if (!is_built(&m->tdx.sections[i]))
			continue;
		err = add_section(b, &m->tdx.sections[i]);
		if (!err)
			err = gmem_tdx_digest_value(&b->digest, pass->after[i]);
	}
	return err ? err : gmem_tdx_digest_value(&b->digest, pass->all);
}

/* Of single pass or two passes, once. */
static int need_pass(struct gmem_measure *m, bool two_pass, struct gmem_measure_progress *progress)
{
	struct build b = { .image = &m->firmware, .two_pass = two_pass, .progress = progress };
	struct gmem_measure_pass *pass = &m->tdx.passes[two_pass];
	int err;

	if (pass->valid)
		return 0;
	err = gmem_tdx_digest_init(&b.digest);
	if (err)
		return err;
	err = build(m, &b, pass);
	gmem_tdx_digest_free(&b.digest);
	pass->valid = !err;
	return err;
}

int gmem_measure_tdx_init(struct gmem_measure *m, const struct gmem_guest *guest,
			  struct gmem_measure_progress *progress)
{
	int n = gmem_firmware_tdvf(m->firmware.bytes, m->firmware.len, m->tdx.sections, GMEM_FIRMWARE_MAX_SECTIONS);

	if (n < 0)
		return n;
	m->tdx.nsections = (uint32_t)n;
	for (int i = 0; i < n; i++) {
		const struct gmem_tdvf_section *s = &m->tdx.sections[i];

		if (!is_built(s))
			continue;
		if (!gmem_range_inside(s->gpa, s->len, MAX_GPA))
			return gmem_err(-EBADMSG, "section %d: gpa 0x%" PRIx64 ": beyond what a TD can address", i,
					s->gpa);
		if (s->len > MAX_BUILD - progress->total)
			return gmem_err(-EBADMSG, "section %d: 0x%" PRIx64 " bytes: more than 64 GiB in all", i,
					s->len);
		progress->total += s->len;
	}
	return need_pass(m, guest->flags & GMEM_GUEST_TWO_PASS, progress);
}

int gmem_measure_tdx_digest(struct gmem_measure *m, const struct gmem_guest *guest,
			    struct gmem_measure_listener *listener, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN])
{
	bool two_pass = guest->flags & GMEM_GUEST_TWO_PASS;
	struct gmem_measure_progress silent = { 0 };
	int err = need_pass(m, two_pass, &silent);

	for (uint32_t i = 0; !err && listener->fn && i < m->tdx.nsections; i++) {
		const struct gmem_tdvf_section *s = &m->tdx.sections[i];
		struct gmem_measure_range range = {
			.size = sizeof(range), .name = names[s->type], .gpa = s->gpa, .len = s->len
		};

		if (!is_built(s))
			continue;
		range.contents = s->attr & GMEM_TDVF_MR_EXTEND;
		memcpy(range.digest, m->tdx.passes[two_pass].after[i], sizeof(range.digest));
		err = listener->fn(listener->opaque, &range);
		listener->stopped = err;
	}
	if (!err)
		memcpy(ret, m->tdx.passes[two_pass].all, GMEM_LAUNCH_DIGEST_LEN);
	return err;
}
