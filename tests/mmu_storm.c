/* SPDX-License-Identifier: MIT */
/*
 * Faults of a machine whose file is converted without a pause. Each conversion is an invalidation, and what a fault has
 * found out before one has ended counts for nothing: a fault is not to begin again for ever.
 */
#include "vcpu_scene.h"

#define LEN (1024 * PG)

static struct storm {
	struct scene s;
	_Atomic bool stop;
	_Atomic uint64_t conversions;
} storm;

int __real_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);
int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);

/* Between a page's being looked up and its being mapped: here a conversion ends, unless it is kept waiting. */
int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache)
{
	uint64_t before = atomic_load(&storm.conversions);

	for (unsigned int i = 0; i < 1000 && atomic_load(&storm.conversions) < before + 2; i++)
		sched_yield();
	return __real_gmem_table_topup(pool, cache);
}

/* The first page, which nobody else is at. */
static void *convert(void *arg)
{
	(void)arg;
	while (!atomic_load(&storm.stop)) {
		to_private(storm.s.file, 0, PG);
		atomic_fetch_add(&storm.conversions, 1);
		to_shared(storm.s.file, 0, PG);
		atomic_fetch_add(&storm.conversions, 1);
	}
	return NULL;
}

/* The first attempt of a fault may come to nothing because of a conversion, the second one does not. */
static void bounded(bool present)
{
	struct gmem_vm_stats stats = { .size = sizeof(stats) };
	uint64_t word;
	pthread_t t;

	storm = (struct storm){ .stop = false };
	set_up_scene(&storm.s, GMEM_VM_SW_PROTECTED, LEN);
	for (uint64_t off = PG; off < LEN && present; off += PG) {
		word = off;
		CHECK_OK(gmem_file_write(storm.s.file, off, &word, sizeof(word)));
	}
	t = start(convert, NULL);
	while (!atomic_load(&storm.conversions))
		sched_yield();
	for (uint64_t off = PG; off < LEN; off += PG) {
		CHECK_OK(gmem_vcpu_load(storm.s.vcpu, off, &word, sizeof(word)));
		CHECK_EQ(word, present ? off : 0);
	}
	atomic_store(&storm.stop, true);
	join(t);
	CHECK_OK(gmem_vm_stats(storm.s.vm, &stats));
	printf("%llu faults, %llu retries, %llu conversions\n", (unsigned long long)stats.faults,
	       (unsigned long long)stats.retries, (unsigned long long)storm.conversions);
	CHECK(stats.faults >= LEN / PG / 2 - 1);
	CHECK(stats.retries <= stats.faults);
	tear_down(&storm.s);
}

TEST_TIMEOUT(absent_pages, 120)
{
	bounded(false);
}

TEST_TIMEOUT(pages_in_place, 120)
{
	bounded(true);
}
