/* SPDX-License-Identifier: MIT */
/* The reverse map table: each rule by itself, and all of them against a naive table. */
#include "tap.h"

#include "launch/snp/rmp.h"

#define FIRST 0x12345600ull /* a frame that begins 2 MiB */
#define ASID 5u
#define GFN 0x800ull
#define LARGE 512u

static struct gmem_rmp rmp;

static enum gmem_rmp_state state(uint64_t pfn)
{
	struct gmem_rmp_entry e = gmem_rmp_read(&rmp, pfn);

	return gmem_rmp_entry_state(&e);
}

#define CHECK_STATE(pfn, st) CHECK_STR(gmem_rmp_state_text(state(pfn)), gmem_rmp_state_text(st))

TEST(state_names)
{
	static const struct {
		struct gmem_rmp_entry e;
		const char *name;
	} states[] = {
		{ { .assigned = 0 }, "HYPERVISOR" },
		{ { .immutable = 1 }, "HV-FIXED" },
		{ { .assigned = 1, .immutable = 1 }, "FIRMWARE" },
		{ { .assigned = 1 }, "RECLAIM" },
		{ { .assigned = 1, .gpa = 7 }, "RECLAIM" },
		{ { .assigned = 1, .lock = 1 }, "INVALID" },
		{ { .assigned = 1, .immutable = 1, .vmsa = 1 }, "CONTEXT" },
		{ { .assigned = 1, .immutable = 1, .gpa = 7 }, "METADATA" },
		{ { .assigned = 1, .immutable = 1, .asid = 1 }, "PRE-GUEST" },
		{ { .assigned = 1, .immutable = 1, .asid = 1, .validated = 1 }, "PRE-SWAP" },
		{ { .assigned = 1, .asid = 1 }, "GUEST-INVALID" },
		{ { .assigned = 1, .asid = 1, .validated = 1 }, "GUEST-VALID" },
		{ { .asid = 1 }, "INVALID" },
		{ { .validated = 1 }, "INVALID" },
		{ { .assigned = 1, .validated = 1 }, "INVALID" },
	};

	for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
		CHECK_STR(gmem_rmp_state_text(gmem_rmp_entry_state(&states[i].e)), states[i].name);
}

TEST(update)
{
	struct gmem_rmp_entry e = { .assigned = 1, .large = 1, .asid = ASID, .gpa = GFN };
	bool unchanged;

	gmem_rmp_init(&rmp);
	CHECK_STATE(FIRST + 3, GMEM_RMP_HYPERVISOR);
	/* What is the host's stays so. */
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST + 3), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST + 3, GFN + 3, ASID, false), GMEM_RMP_OK);
	CHECK_STATE(FIRST + 3, GMEM_RMP_GUEST_INVALID);
	CHECK_STATE(FIRST + 2, GMEM_RMP_HYPERVISOR);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST + 3, GFN + 3, ASID, false, true, &unchanged), GMEM_RMP_OK);
	CHECK_STATE(FIRST + 3, GMEM_RMP_GUEST_VALID);
	/* It begins anew with each RMPUPDATE: not valid, and VMPL 0 alone may do what it likes. */
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST + 3, GFN + 3, ASID, true), GMEM_RMP_OK);
	CHECK_STATE(FIRST + 3, GMEM_RMP_PRE_GUEST);
	e = gmem_rmp_read(&rmp, FIRST + 3);
	CHECK_EQ(e.perms[0], 0x1f);
	CHECK_EQ(e.perms[1] | e.perms[2] | e.perms[3], 0);
	/* Immutable is immutable; and so is what the firmware is at. */
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST + 3, GFN + 3, ASID, false), GMEM_RMP_FAIL_PERMISSION);
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST + 3), GMEM_RMP_FAIL_PERMISSION);
	CHECK_STATE(FIRST + 3, GMEM_RMP_PRE_GUEST);
	e.immutable = 0;
	e.lock = 1;
	CHECK_OK(gmem_rmp_write(&rmp, FIRST + 3, &e));
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST + 3), GMEM_RMP_FAIL_PERMISSION);
	e.lock = 0;
	CHECK_OK(gmem_rmp_write(&rmp, FIRST + 3, &e));
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST + 3), GMEM_RMP_OK);
	CHECK_STATE(FIRST + 3, GMEM_RMP_HYPERVISOR);
	/* An ASID that there cannot be, or of nobody's page. */
	e = (struct gmem_rmp_entry){ .assigned = 1, .asid = 0x3ff };
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST, &e), GMEM_RMP_FAIL_INPUT);
	e = (struct gmem_rmp_entry){ .asid = 1 };
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST, &e), GMEM_RMP_FAIL_INPUT);
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST + 4096, &e), GMEM_RMP_FAIL_INPUT);
	gmem_rmp_destroy(&rmp);
}

TEST(sizes)
{
	const struct gmem_rmp_entry large = { .assigned = 1, .large = 1, .asid = ASID, .gpa = GFN };
	const struct gmem_rmp_entry none_large = { .large = 1 };
	bool unchanged;

	gmem_rmp_init(&rmp);
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST + 1, &large), GMEM_RMP_FAIL_INPUT);
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST + 7, GFN + 7, ASID, false), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST, &large), GMEM_RMP_FAIL_OVERLAP);
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST + 7), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST, &large), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST + 7, GFN + 7, ASID, false), GMEM_RMP_FAIL_OVERLAP);
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST + 7), GMEM_RMP_FAIL_OVERLAP);
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST), GMEM_RMP_FAIL_OVERLAP);
	/* All of it is the guest's. */
	CHECK_EQ(gmem_rmp_check_host_write(&rmp, FIRST + 511), -EFAULT);
	CHECK_EQ(gmem_rmp_check_host_write(&rmp, FIRST + 512), 0);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST + 9, GFN + 9, ASID), -EACCES);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST + 9, GFN + 8, ASID), -EFAULT);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST + 9, GFN + 9, ASID, false, true, &unchanged),
		 GMEM_RMP_FAIL_SIZEMISMATCH);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST + 1, GFN, ASID, true, true, &unchanged), GMEM_RMP_FAIL_INPUT);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN, ASID, true, true, &unchanged), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST + 9, GFN + 9, ASID), 0);
	CHECK_EQ(gmem_rmp_count_asid(&rmp, ASID), 1);
	/* In small pages it is as valid as before. */
	CHECK_EQ(gmem_rmp_smash(&rmp, FIRST + 1), GMEM_RMP_FAIL_INPUT);
	CHECK_EQ(gmem_rmp_smash(&rmp, FIRST), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_smash(&rmp, FIRST), GMEM_RMP_FAIL_INPUT);
	for (uint64_t i = 0; i < LARGE; i++)
		CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST + i, GFN + i, ASID), 0);
	CHECK_EQ(gmem_rmp_count_asid(&rmp, ASID), LARGE);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN, ASID, true, false, &unchanged), GMEM_RMP_FAIL_SIZEMISMATCH);
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST, &none_large), GMEM_RMP_FAIL_OVERLAP);
	gmem_rmp_release(&rmp, FIRST + 1, LARGE - 2);
	CHECK_EQ(gmem_rmp_count_asid(&rmp, ASID), 2);
	gmem_rmp_release(&rmp, FIRST - 1000000, 2000000);
	CHECK_EQ(gmem_rmp_count_asid(&rmp, ASID), 0);
	gmem_rmp_destroy(&rmp);
}

TEST(immutable_large_is_not_smashed)
{
	const struct gmem_rmp_entry e = { .assigned = 1, .large = 1, .immutable = 1, .asid = ASID, .gpa = GFN };

	gmem_rmp_init(&rmp);
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST, &e), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_smash(&rmp, FIRST), GMEM_RMP_FAIL_PERMISSION);
	gmem_rmp_release(&rmp, FIRST, LARGE);
	CHECK_STATE(FIRST, GMEM_RMP_PRE_GUEST);
	gmem_rmp_destroy(&rmp);
}

TEST(guest)
{
	struct gmem_rmp_entry e;
	bool unchanged;

	gmem_rmp_init(&rmp);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST, GFN, ASID), -EFAULT);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN, ASID, false, true, &unchanged), -EFAULT);
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST, GFN, ASID, false), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST, GFN, ASID), -EACCES);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST, GFN + 1, ASID), -EFAULT);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST, GFN, ASID + 1), -EFAULT);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN + 1, ASID, false, true, &unchanged), -EFAULT);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN, ASID + 1, false, true, &unchanged), -EFAULT);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN, ASID, true, true, &unchanged), GMEM_RMP_FAIL_SIZEMISMATCH);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN, ASID, false, false, &unchanged), GMEM_RMP_OK);
	CHECK(unchanged);
	CHECK_EQ(gmem_rmp_validate(&rmp, FIRST, GFN, ASID, false, true, &unchanged), GMEM_RMP_OK);
	CHECK(!unchanged);
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST, GFN, ASID), 0);
	CHECK_EQ(gmem_rmp_check_host_write(&rmp, FIRST), -EFAULT);
	/* A VMSA is no memory of a guest's, and what the firmware has not given yet neither. */
	e = gmem_rmp_read(&rmp, FIRST);
	e.vmsa = 1;
	CHECK_OK(gmem_rmp_write(&rmp, FIRST, &e));
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST, GFN, ASID), -EFAULT);
	e.vmsa = 0;
	e.immutable = 1;
	CHECK_OK(gmem_rmp_write(&rmp, FIRST, &e));
	CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST, GFN, ASID), -EFAULT);
	gmem_rmp_destroy(&rmp);
}

/* Memory that went away leaves nothing to what comes to its address. */
TEST(another_owner)
{
	const struct gmem_rmp_entry large = { .assigned = 1, .large = 1, .asid = ASID, .gpa = GFN };

	gmem_rmp_init(&rmp);
	CHECK_OK(gmem_rmp_claim(&rmp, FIRST, 77));
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST, GFN, ASID, true), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_make_private(&rmp, FIRST + 1, GFN + 1, ASID, false), GMEM_RMP_OK);
	CHECK_OK(gmem_rmp_claim(&rmp, FIRST, 77));
	CHECK_STATE(FIRST, GMEM_RMP_PRE_GUEST);
	CHECK_OK(gmem_rmp_claim(&rmp, FIRST, 78));
	CHECK_STATE(FIRST, GMEM_RMP_HYPERVISOR);
	CHECK_STATE(FIRST + 1, GMEM_RMP_GUEST_INVALID);
	CHECK_EQ(gmem_rmp_make_shared(&rmp, FIRST + 1), GMEM_RMP_OK);
	CHECK_EQ(gmem_rmp_update(&rmp, FIRST, &large), GMEM_RMP_OK);
	CHECK_OK(gmem_rmp_claim(&rmp, FIRST + 5, 79));
	CHECK_EQ(gmem_rmp_check_host_write(&rmp, FIRST), 0);
	gmem_rmp_destroy(&rmp);
}

/* ---- against a table of one plain struct a page, checked rule by rule */

#define NREGIONS 3u
#define NPAGES (NREGIONS * LARGE)
#define STEPS 60000

struct naive {
	bool assigned, large, immutable, lock, validated;
	uint32_t asid;
	uint64_t gfn;
};

static struct naive naive[NPAGES];
static uint64_t seed;

static uint64_t rnd(void)
{
	return tap_rand(&seed);
}

/* The page that says whose page i is. */
static struct naive *naive_of(uint32_t i)
{
	struct naive *first = &naive[i - i % LARGE];

	return first->assigned && first->large ? first : &naive[i];
}

static int naive_update(uint32_t i, const struct gmem_rmp_entry *e)
{
	uint32_t first = i - i % LARGE;

	if ((e->large && i != first) || (!e->assigned && e->asid))
		return GMEM_RMP_FAIL_INPUT;
	if (naive[i].immutable || naive[i].lock)
		return GMEM_RMP_FAIL_PERMISSION;
	if (naive[first].assigned && naive[first].large && !(i == first && e->large))
		return GMEM_RMP_FAIL_OVERLAP;
	if (e->large)
		for (uint32_t k = first; k < first + LARGE; k++)
			if (naive[k].assigned && !naive[k].large && k != first)
				return GMEM_RMP_FAIL_OVERLAP;
	naive[i] = (struct naive){ e->assigned, e->large, e->immutable, false, false, e->asid, e->gpa };
	return GMEM_RMP_OK;
}

static int naive_smash(uint32_t i)
{
	if (i % LARGE || !naive[i].assigned || !naive[i].large)
		return GMEM_RMP_FAIL_INPUT;
	if (naive[i].immutable || naive[i].lock)
		return GMEM_RMP_FAIL_PERMISSION;
	naive[i].large = false;
	for (uint32_t k = 1; k < LARGE; k++) {
		naive[i + k] = naive[i];
		naive[i + k].gfn = naive[i].gfn + k;
	}
	return GMEM_RMP_OK;
}

static bool naive_belongs(uint32_t i, uint64_t gfn, uint32_t asid)
{
	const struct naive *n = naive_of(i);

	return n->assigned && n->asid == asid && !n->immutable && n->gfn + (n->large ? i % LARGE : 0) == gfn;
}

static int naive_validate(uint32_t i, uint64_t gfn, uint32_t asid, bool large, bool on, bool *ret_unchanged)
{
	struct naive *n = naive_of(i);

	*ret_unchanged = false;
	if (large && (i % LARGE || gfn % LARGE))
		return GMEM_RMP_FAIL_INPUT;
	if (!naive_belongs(i, gfn, asid))
		return -EFAULT;
	if (n->large != large)
		return GMEM_RMP_FAIL_SIZEMISMATCH;
	*ret_unchanged = n->validated == on;
	n->validated = on;
	return GMEM_RMP_OK;
}

/* The firmware takes a page that was prepared, or lets go of it. */
static void firmware(uint32_t i)
{
	struct gmem_rmp_entry e = gmem_rmp_read(&rmp, FIRST + i);

	if (!e.immutable)
		return;
	CHECK(naive[i].immutable);
	e.immutable = naive[i].immutable = false;
	if (e.asid && rnd() % 2)
		e.validated = naive[i].validated = true;
	CHECK_OK(gmem_rmp_write(&rmp, FIRST + i, &e));
}

static void check_page(uint32_t i)
{
	const struct naive *n = naive_of(i);
	struct gmem_rmp_entry e = gmem_rmp_lookup(&rmp, FIRST + i);
	uint64_t gfn = n->gfn + (n->large ? i % LARGE : 0);

	CHECK_EQ(e.assigned, n->assigned);
	CHECK_EQ(gmem_rmp_check_host_write(&rmp, FIRST + i), n->assigned ? -EFAULT : 0);
	if (!n->assigned)
		return;
	CHECK_EQ(e.validated, n->validated);
	CHECK_EQ(e.asid, n->asid);
	if (n->asid)
		CHECK_EQ(gmem_rmp_check_guest(&rmp, FIRST + i, gfn, n->asid), n->immutable ? -EFAULT :
									      n->validated ? 0 :
											     -EACCES);
}

static void step(void)
{
	/* Mostly near the beginning of a region, where pages of both sizes meet. */
	uint32_t i = (uint32_t)(rnd() % NREGIONS * LARGE + rnd() % (rnd() % 4 ? 4 : LARGE));
	uint32_t asid = (uint32_t)(rnd() % 3);
	uint64_t gfn = rnd() % 4 ? i : i + rnd() % 2 * LARGE;
	bool large = rnd() % 4 == 0, on = rnd() % 3, unchanged, want_unchanged;
	struct gmem_rmp_entry e = { .assigned = rnd() % 2, .immutable = rnd() % 4 == 0 };
	int want;

	switch (rnd() % 8) {
	case 0:
	case 1:
	case 2:
		e.large = large;
		e.asid = asid;
		e.gpa = gfn;
		want = naive_update(i, &e);
		CHECK_EQ(gmem_rmp_update(&rmp, FIRST + i, &e), want);
		break;
	case 3:
		want = naive_smash(large ? i : i - i % LARGE);
		CHECK_EQ(gmem_rmp_smash(&rmp, FIRST + (large ? i : i - i % LARGE)), want);
		break;
	case 4:
	case 5:
		asid = asid ? asid : 1;
		want = naive_validate(i, gfn, asid, large, on, &want_unchanged);
		CHECK_EQ(gmem_rmp_validate(&rmp, FIRST + i, gfn, asid, large, on, &unchanged), want);
		CHECK_EQ(unchanged, want_unchanged);
		break;
	case 6:
		firmware(i);
		break;
	default:
		memset(&e, 0, sizeof(e));
		for (uint32_t k = i; k < NPAGES && k < i + 3; k++)
			(void)naive_update(k, &e);
		gmem_rmp_release(&rmp, FIRST + i, NPAGES - i < 3 ? NPAGES - i : 3);
		break;
	}
	check_page(i);
}

TEST(model)
{
	seed = tap_seed();
	gmem_rmp_init(&rmp);
	for (int n = 0; n < (tap_slow() ? STEPS / 10 : STEPS); n++)
		step();
	for (uint32_t i = 0; i < NPAGES; i++)
		check_page(i);
	gmem_rmp_destroy(&rmp);
}
