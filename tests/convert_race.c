/* SPDX-License-Identifier: MIT */
/*
 * Conversions, touchers, pins, punches and views that come and go, all at once.
 *
 * The oracle: who has made a page private writes a secret into it, as the guest would, and takes it out again before
 * the page is made shared. So a host thread that reads a secret, ever, has seen a private page; and a secret that has
 * changed (but for a punch) was written by the host. Whoever does this owns the pages meanwhile; others convert the
 * same pages too, but to private only.
 */
#include "tap.h"

#include "convert_util.h"
#include "pager_scene.h"

#define N 96u
#define BLOCK 8u /* pages that are owned together */
#define SECRET (1ull << 63)
#define VIEWS 4u

static struct gmem_file *file;
static struct gmem_view *views[VIEWS];
static pthread_mutex_t owned[N / BLOCK];
static _Atomic bool stop;
static _Atomic uint64_t touches, refusals, conversions, pins_met, next_seed;
static uint64_t seed;
static bool served; /* shared pages read as the source has them */

static uint64_t own_seed(void)
{
	return seed + atomic_fetch_add(&next_seed, 1) * 0x9e3779b97f4a7c15ull;
}

/* The word of a page that secrets are in; the first one stays what it was. */
static uint64_t *secret_of(char *page)
{
	return (uint64_t *)(page + P - 8);
}

static bool load(const uint64_t *p, uint64_t *ret)
{
	if (sigsetjmp(bus_jmp, 1))
		return false;
	*ret = __atomic_load_n(p, __ATOMIC_RELAXED);
	return true;
}

static bool store(uint64_t *p, uint64_t value)
{
	if (sigsetjmp(bus_jmp, 1))
		return false;
	__atomic_store_n(p, value, __ATOMIC_RELAXED);
	return true;
}

static void touch_page(const struct gmem_view *view, uint64_t page, uint64_t random)
{
	char *p = page_of(view, page);
	uint64_t word;

	atomic_fetch_add(&touches, 1);
	if (!load(secret_of(p), &word)) {
		atomic_fetch_add(&refusals, 1);
		return;
	}
	/* The source's words have any value; a secret says which page it is of, and is not that word. */
	if (served ? word != word_at(2, page * P + P - 8) : (word & SECRET) != 0)
		FAIL("page %llu reads 0x%llx", (unsigned long long)page, (unsigned long long)word);
	if (served && load((const uint64_t *)p, &word) && word != word_at(2, page * P))
		FAIL("page %llu begins with 0x%llx", (unsigned long long)page, (unsigned long long)word);
	if (!served && (view->prot & PROT_WRITE) && random & 1)
		store(secret_of(p), random & ~SECRET);
}

static void *toucher(void *arg)
{
	uint64_t s = own_seed();

	(void)arg;
	while (!atomic_load(&stop)) {
		const struct gmem_view *view = views[tap_rand(&s) % VIEWS];
		uint64_t page = (view->off + tap_rand(&s) % view->len) / P;

		touch_page(view, page, tap_rand(&s));
	}
	return NULL;
}

/* One page, hit without pause: the race between zapping and marking. */
static void *hammer(void *arg)
{
	uint64_t s = own_seed();

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N;

		for (int i = 0; i < 2000 && !atomic_load(&stop); i++)
			touch_page(views[0], page, 1);
	}
	return NULL;
}

static void *mapper(void *arg)
{
	uint64_t s = own_seed();

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, n = 1 + tap_rand(&s) % (N - page);
		struct gmem_view *view = view_of(file, page, n, tap_rand(&s) & 1 ? PROT_READ : PROT_READ | PROT_WRITE);

		/* Of a served file: another view would read as zero what is absent. */
		for (uint64_t i = page; i < page + n && !served; i++)
			touch_page(view, i, tap_rand(&s));
		gmem_view_unmap(view);
	}
	return NULL;
}

static void *pinner(void *arg)
{
	uint64_t s = own_seed();

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, n = 1 + tap_rand(&s) % 4, attributes, word;

		n = n > N - page ? N - page : n;
		if (gmem_file_pin(file, page * P, n * P)) {
			atomic_fetch_add(&refusals, 1);
			continue;
		}
		/* Pinned, it is shared, and within reach. */
		for (uint64_t i = page; i < page + n; i++) {
			CHECK_OK(gmem_file_attributes(file, i * P, &attributes, NULL));
			CHECK_EQ(attributes, 0);
			CHECK(load(secret_of(page_of(views[0], i)), &word));
		}
		CHECK_OK(gmem_file_unpin(file, page * P, n * P));
		usleep(100);
	}
	return NULL;
}

static void *puncher(void *arg)
{
	uint64_t s = own_seed();

	(void)arg;
	while (!atomic_load(&stop)) {
		CHECK_OK(gmem_file_punch(file, tap_rand(&s) % N * P, P));
		usleep(200);
	}
	return NULL;
}

/* To private only, whoever owns the pages: it can do no more than keep the host out for longer. */
static void *meddler(void *arg)
{
	uint64_t s = own_seed();

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, n = 1 + tap_rand(&s) % (N - page);
		int err = gmem_file_set_attributes(file, page * P, n * P, PRIVATE, NULL);

		CHECK(!err || err == -EAGAIN);
		usleep(3000);
	}
	return NULL;
}

/* As the guest: what is absent is brought in first. */
static void bring_in(uint64_t page)
{
	while (served && !file->ops->present(file, page * P)) {
		int err = gmem_file_bring_in(file, page * P, NULL);

		if (err)
			FAIL("bringing in page %llu: %d", (unsigned long long)page, err);
	}
}

static void own_for_a_while(uint64_t page, uint64_t n, uint64_t *s)
{
	uint64_t secret = tap_rand(s) | SECRET, error_off = UINT64_MAX;
	int err = gmem_file_set_attributes(file, page * P, n * P, PRIVATE, &error_off);

	if (err) {
		CHECK_EQ(err, -EAGAIN);
		CHECK(error_off >= page * P && error_off < (page + n) * P);
		atomic_fetch_add(&pins_met, 1);
		return;
	}
	for (uint64_t i = page; i < page + n; i++) {
		bring_in(i);
		__atomic_store_n(secret_of(guest(file, i)), secret ^ i, __ATOMIC_RELAXED);
	}
	if (tap_rand(s) % 4 == 0)
		usleep(tap_rand(s) % 300);
	for (uint64_t i = page; i < page + n; i++) {
		uint64_t word = __atomic_load_n(secret_of(guest(file, i)), __ATOMIC_RELAXED), attributes;

		if (word != (secret ^ i) && word)
			FAIL("private page %llu was written to: 0x%llx", (unsigned long long)i,
			     (unsigned long long)word);
		CHECK_OK(gmem_file_attributes(file, i * P, &attributes, NULL));
		CHECK_EQ(attributes, PRIVATE);
		__atomic_store_n(secret_of(guest(file, i)), served ? word_at(2, i * P + P - 8) : 0, __ATOMIC_RELAXED);
	}
	CHECK_OK(gmem_file_set_attributes(file, page * P, n * P, 0, NULL));
	atomic_fetch_add(&conversions, 1);
}

static void *owner(void *arg)
{
	uint64_t s = own_seed();

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, n = 1 + tap_rand(&s) % (tap_rand(&s) & 1 ? 3 : 24);
		uint64_t first, last;

		n = n > N - page ? N - page : n;
		first = page / BLOCK;
		last = (page + n - 1) / BLOCK;
		for (uint64_t i = first; i <= last; i++)
			pthread_mutex_lock(&owned[i]);
		own_for_a_while(page, n, &s);
		for (uint64_t i = first; i <= last; i++)
			pthread_mutex_unlock(&owned[i]);
	}
	return NULL;
}

static void run(void *(*const what[])(void *), size_t n, unsigned int seconds)
{
	pthread_t threads[16];

	for (size_t i = 0; i < N / BLOCK; i++)
		pthread_mutex_init(&owned[i], NULL);
	for (size_t i = 0; i < n; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, what[i], NULL), 0);
	sleep(seconds);
	atomic_store(&stop, true);
	for (size_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	printf("%llu touches and %llu refusals, %llu conversions, %llu refused by pins\n",
	       (unsigned long long)atomic_load(&touches), (unsigned long long)atomic_load(&refusals),
	       (unsigned long long)atomic_load(&conversions), (unsigned long long)atomic_load(&pins_met));
	CHECK(atomic_load(&conversions) > 10 && atomic_load(&touches) > 10 && atomic_load(&refusals) > 0);
}

static void map_views(void)
{
	/* Written to by touchers; the guest's mapping is a test's own concern. */
	views[0] = view_of(file, 0, N, PROT_READ | PROT_WRITE);
	views[1] = view_of(file, 3, 50, PROT_READ);
	views[2] = view_of(file, 41, 55, PROT_READ | PROT_WRITE);
	views[3] = view_of(file, 60, 1, PROT_READ | PROT_WRITE);
	CHECK(gmem_file_window(file) != NULL);
}

static void plain(uint32_t flags)
{
	void *(*const what[])(void *) = { owner,  owner,  owner,  toucher, toucher,
					  hammer, mapper, pinner, puncher, meddler };

	seed = tap_seed();
	file = file_of(N, flags);
	map_views();
	run(what, sizeof(what) / sizeof(what[0]), 3);
	for (size_t i = 0; i < VIEWS; i++)
		gmem_view_unmap(views[i]);
	gmem_file_free(file);
}

TEST_TIMEOUT(no_host_thread_reads_a_secret, 60)
{
	plain(0);
}

TEST_TIMEOUT(no_host_thread_reads_a_secret_in_strict_mode, 60)
{
	plain(GMEM_FILE_STRICT);
}

static int slow_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	usleep(off / P % 5 * 300);
	for (uint64_t at = 0; at < len; at += P)
		fill_page(*(unsigned int *)opaque, off + at, (char *)buf + at);
	return 0;
}

/*
 * The same through a pager: views are served, absent pages come slowly, and what is shared reads right all the time.
 * The pages are few, so that faults and conversions meet: when all are in place it begins again.
 */
static void serve_once(unsigned int seconds)
{
	void *(*const what[])(void *) = { owner, owner, owner, toucher, toucher, hammer, mapper, pinner, meddler };
	const struct gmem_source_ops ops = { .size = sizeof(ops), .read = slow_read };
	struct gmem_pager *pager = new_pager(2, 0, NULL);
	struct gmem_source *source;
	unsigned int id = 2;

	CHECK_OK(gmem_source_new(&ops, &id, &source));
	atomic_store(&stop, false);
	file = file_of(N, 0);
	map_views();
	for (size_t i = 0; i < VIEWS; i++)
		CHECK_OK(gmem_pager_add_view(pager, views[i], source, views[i]->off));
	run(what, sizeof(what) / sizeof(what[0]), seconds);
	CHECK_OK(gmem_file_set_attributes(file, 0, N * P, 0, NULL));
	for (uint64_t i = 0; i < N; i++)
		CHECK(page_is(2, i * P, page_of(views[0], i)));
	gmem_pager_free(pager);
	gmem_source_unref(source);
	for (size_t i = 0; i < VIEWS; i++)
		gmem_view_unmap(views[i]);
	gmem_file_free(file);
}

TEST_TIMEOUT(no_toucher_hangs_or_reads_a_secret_with_a_pager, 60)
{
	seed = tap_seed();
	served = true;
	for (int round = 0; round < 4; round++)
		serve_once(1);
}
