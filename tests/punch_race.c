/* SPDX-License-Identifier: MIT */
/*
 * Bytes from before a punch are gone, whoever looks: views, gmem_file_read(), a guest; while pages are written to,
 * converted both ways, pinned, mapped and unmapped.
 *
 * The oracle: who owns a page writes stamps into it that only grow, punches it, and then raises the page's floor to the
 * next stamp. A stamp below the floor that was in force before one began to look is a byte from before a punch. While a
 * page is private its owner writes stamps marked as secrets, through a guest: a host thread must read none, and only
 * zero or the stamp that the owner wrote last is there for the guest.
 */
#include "tap.h"

#include "file/file.h"
#include "pager_util.h"

#define N 64u
#define SECRET (1ull << 62)
#define PRIVATE GMEM_ATTRIBUTE_PRIVATE

static struct gmem_file *file;
static struct gmem_view *whole;
static struct gmem_vm *vm;
static pthread_mutex_t owned[N];
static _Atomic uint64_t floors[N], looks, punches, conversions, refusals, next_seed;
static uint64_t stamps[N]; /* guarded by `owned` */
static bool converts;
static _Atomic bool stop;
static uint64_t seed;

static uint64_t own_seed(void)
{
	return seed + atomic_fetch_add(&next_seed, 1) * 0x9e3779b97f4a7c15ull;
}

/* The word that stamps are in; a page's first and last are the same stamp but for a moment. */
static uint64_t *word_of(char *p, uint64_t page, bool last)
{
	return (uint64_t *)(p + page * P + (last ? P - 8 : 0));
}

/* Relaxed: of another order the thread sanitizer would have a lock of its own, which a signal would leave taken. */
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

/* What a host thread found where stamps below `floor` were punched away before it looked. */
static void judge(const char *who, uint64_t page, uint64_t word, uint64_t floor)
{
	atomic_fetch_add(&looks, 1);
	if (word & SECRET)
		FAIL("%s: page %llu reads 0x%llx: a private byte", who, (unsigned long long)page,
		     (unsigned long long)word);
	if (word && word < floor)
		FAIL("%s: page %llu reads %llu, from before the punch at %llu", who, (unsigned long long)page,
		     (unsigned long long)word, (unsigned long long)floor);
}

static void *toucher(void *arg)
{
	uint64_t s = own_seed(), word;

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, floor = atomic_load(&floors[page]);

		if (load(word_of(gmem_view_addr(whole), page, tap_rand(&s) & 1), &word))
			judge("view", page, word, floor);
		else
			atomic_fetch_add(&refusals, 1);
	}
	return NULL;
}

static void *reader(void *arg)
{
	uint64_t s = own_seed(), word;

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, floor = atomic_load(&floors[page]);
		int err = gmem_file_read(file, page * P, &word, sizeof(word));

		if (!err) {
			judge("gmem_file_read", page, word, floor);
			continue;
		}
		CHECK(err == -EACCES && converts);
		atomic_fetch_add(&refusals, 1);
	}
	return NULL;
}

/* Views that come and go, and pins, which keep the page from becoming private but not from being punched. */
static void *mapper(void *arg)
{
	uint64_t s = own_seed(), word;
	struct gmem_view *view;

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, floor, at;
		bool pinned = !gmem_file_pin(file, page * P, P);

		CHECK_OK(gmem_view_map(file, page * P, (1 + tap_rand(&s) % (N - page)) * P, PROT_READ, &view));
		for (at = 0; at < gmem_view_len(view) / P; at++) {
			floor = atomic_load(&floors[page + at]);
			if (load(word_of(gmem_view_addr(view), at, false), &word))
				judge("new view", page + at, word, floor);
			else if (pinned && !at)
				FAIL("page %llu is pinned, and SIGBUS", (unsigned long long)page);
		}
		gmem_view_unmap(view);
		if (pinned)
			CHECK_OK(gmem_file_unpin(file, page * P, P));
	}
	return NULL;
}

/* Its own vCPU; whichever side the page is on. */
static void *guest(void *arg)
{
	uint64_t s = own_seed(), word;
	struct gmem_vcpu *vcpu;

	(void)arg;
	CHECK_OK(gmem_vcpu_create(vm, NULL, &vcpu));
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, floor = atomic_load(&floors[page]);

		CHECK_OK(gmem_vcpu_load(vcpu, page * P, &word, sizeof(word)));
		judge("guest", page, word & ~SECRET, floor);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static void punch(uint64_t page)
{
	CHECK_OK(gmem_file_punch(file, page * P, P));
	atomic_store(&floors[page], stamps[page] + 1);
	atomic_fetch_add(&punches, 1);
}

/* The guest's stamps in a private page, and out of it again before the host is let in. */
static void be_private(struct gmem_vcpu *vcpu, uint64_t page, uint64_t *s)
{
	uint64_t stamp = ++stamps[page] | SECRET, zero = 0, word;
	int err = gmem_file_set_attributes(file, page * P, P, PRIVATE, NULL);

	if (err) {
		CHECK_EQ(err, -EAGAIN);
		return;
	}
	CHECK_OK(gmem_vcpu_store(vcpu, page * P, &stamp, sizeof(stamp)));
	if (tap_rand(s) & 1)
		punch(page);
	CHECK_OK(gmem_vcpu_load(vcpu, page * P, &word, sizeof(word)));
	if (word != (atomic_load(&floors[page]) > stamps[page] ? 0 : stamp))
		FAIL("private page %llu reads 0x%llx", (unsigned long long)page, (unsigned long long)word);
	CHECK_OK(gmem_vcpu_store(vcpu, page * P, &zero, sizeof(zero)));
	CHECK_OK(gmem_file_set_attributes(file, page * P, P, 0, NULL));
	atomic_fetch_add(&conversions, 1);
}

static void own(struct gmem_vcpu *vcpu, uint64_t page, uint64_t *s)
{
	uint64_t stamp = ++stamps[page];

	switch (tap_rand(s) % 4) {
	case 0:
		CHECK(store(word_of(gmem_view_addr(whole), page, false), stamp));
		CHECK(store(word_of(gmem_view_addr(whole), page, true), stamp));
		break;
	case 1:
		CHECK_OK(gmem_file_write(file, page * P, &stamp, sizeof(stamp)));
		break;
	case 2:
		CHECK_OK(gmem_vcpu_store(vcpu, page * P + P - 8, &stamp, sizeof(stamp)));
		break;
	default:
		if (converts)
			be_private(vcpu, page, s);
		break;
	}
	if (tap_rand(s) % 3 == 0)
		punch(page);
}

static void *owner(void *arg)
{
	uint64_t s = own_seed();
	struct gmem_vcpu *vcpu;

	(void)arg;
	CHECK_OK(gmem_vcpu_create(vm, NULL, &vcpu));
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N;

		pthread_mutex_lock(&owned[page]);
		own(vcpu, page, &s);
		pthread_mutex_unlock(&owned[page]);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static void run(unsigned int seconds)
{
	void *(*const what[])(void *) = { owner, owner, owner, toucher, toucher, reader, mapper, guest };
	struct gmem_memslot slot = { .size = sizeof(slot), .len = N * P, .file = file };
	pthread_t threads[sizeof(what) / sizeof(what[0])];

	seed = tap_seed();
	catch_bus();
	CHECK_OK(gmem_view_map(file, 0, N * P, PROT_READ | PROT_WRITE, &whole));
	CHECK_OK(gmem_vm_create(NULL, &vm));
	CHECK_OK(gmem_vm_set_slot(vm, &slot));
	for (size_t i = 0; i < N; i++)
		pthread_mutex_init(&owned[i], NULL);
	for (size_t i = 0; i < sizeof(what) / sizeof(what[0]); i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, what[i], NULL), 0);
	sleep(seconds);
	atomic_store(&stop, true);
	for (size_t i = 0; i < sizeof(what) / sizeof(what[0]); i++)
		pthread_join(threads[i], NULL);
	printf("%llu looks and %llu refusals, %llu punches, %llu pages private and back\n",
	       (unsigned long long)atomic_load(&looks), (unsigned long long)atomic_load(&refusals),
	       (unsigned long long)atomic_load(&punches), (unsigned long long)atomic_load(&conversions));
	CHECK(atomic_load(&looks) > 10 && atomic_load(&punches) > 10);
	if (converts)
		CHECK(atomic_load(&conversions) > 10 && atomic_load(&refusals) > 0);
	gmem_vm_free(vm);
	gmem_view_unmap(whole);
	gmem_file_free(file);
}

TEST_TIMEOUT(no_byte_from_before_a_punch_or_of_a_private_page, 60)
{
	converts = true;
	CHECK_OK(gmem_file_create(N * P, NULL, &file));
	run(4);
}

TEST_TIMEOUT(no_byte_from_before_a_punch_in_a_guest_memfd, 60)
{
	const struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_KERNEL };

	if (gmem_file_create(N * P, &o, &file))
		SKIP("kvm", "%s", gmem_last_error());
	run(3);
}
