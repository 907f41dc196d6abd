/* SPDX-License-Identifier: MIT */
/*
 * A page is given up while its bytes are on their way: once that is done, it is zero, and stays so. The time between
 * the last look at the page's word and the copy is drawn out.
 */
#include "tap.h"

#include "anon_util.h"
#include "pager_scene.h"

int __real_gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done);
int __wrap_gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done);

static _Atomic uint64_t copies, refused;

int __wrap_gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done)
{
	uint64_t n = atomic_fetch_add(&copies, 1);
	int err;

	if (n % 4)
		usleep(n % 4 * 100);
	err = __real_gmem_sys_uffd_copy(uffd, hva, from, len, how, done);
	if (err == -EAGAIN)
		atomic_fetch_add(&refused, 1);
	return err;
}

struct pair {
	char *p;
	uint64_t npages;
	pthread_barrier_t both;
	_Atomic uint64_t saved; /* reads that came before the removal */
};

static void *touch_each(void *arg)
{
	struct pair *s = arg;

	for (uint64_t i = 0; i < s->npages; i++) {
		const char *page = s->p + i * P;

		pthread_barrier_wait(&s->both);
		if (*(volatile const uint64_t *)page)
			atomic_fetch_add(&s->saved, 1);
		pthread_barrier_wait(&s->both);
		if (!page_is_zero(page))
			FAIL("page %llu was given up, and is not zero", (unsigned long long)i);
	}
	return NULL;
}

static void *remove_each(void *arg)
{
	struct pair *s = arg;
	uint64_t seed = 7;

	for (uint64_t i = 0; i < s->npages; i++) {
		char *page = s->p + i * P;

		pthread_barrier_wait(&s->both);
		for (uint64_t spin = tap_rand(&seed) % 60000; spin; spin--)
			__asm__ volatile("" ::: "memory");
		CHECK_EQ(madvise(page, P, MADV_DONTNEED), 0);
		if (!page_is_zero(page))
			FAIL("page %llu has just been given up, and is not zero", (unsigned long long)i);
		pthread_barrier_wait(&s->both);
	}
	return NULL;
}

static void give_up_while_served(bool nowait, bool fill)
{
	struct src src = SRC(.id = ID, .nowait = nowait);
	struct gmem_source *source = source_of(&src);
	struct gmem_pager *pager = new_pager(2, 0, NULL);
	struct pair s = { .npages = SLOW_BUILD ? 300 : 1000 };
	struct anon_shared shared = { .go = true };
	struct anon_program a = { .npages = s.npages, .unit = P, .shared = &shared };
	struct gmem_file *file;
	pthread_t t[2];

	a.uffd = anon_set_up(&a);
	s.p = (char *)(uintptr_t)shared.hva[0];
	pthread_barrier_init(&s.both, NULL, 2);
	CHECK_OK(gmem_file_create_anon(a.npages * P, P, -1, &file));
	anon_add(&a, pager, file, source, -1);
	CHECK_EQ(pthread_create(&t[0], NULL, touch_each, &s), 0);
	CHECK_EQ(pthread_create(&t[1], NULL, remove_each, &s), 0);
	if (fill)
		CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	printf("%llu of %llu pages were read before, %llu copies of %llu refused\n",
	       (unsigned long long)atomic_load(&s.saved), (unsigned long long)s.npages,
	       (unsigned long long)atomic_load(&refused), (unsigned long long)atomic_load(&copies));
	pthread_barrier_destroy(&s.both);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_file_free(file);
	munmap(s.p, a.npages * P);
	close(a.uffd);
}

TEST_TIMEOUT(by_the_reader, 60)
{
	need_uffd();
	give_up_while_served(true, false);
}

TEST_TIMEOUT(by_resolvers, 60)
{
	need_uffd();
	give_up_while_served(false, false);
}

TEST_TIMEOUT(beside_a_fill, 60)
{
	need_uffd();
	give_up_while_served(false, true);
}
