/* SPDX-License-Identifier: MIT */
/* The accessor and memory that a pager serves: its guest's, and its caller's. */
#include "tap.h"

#include "pager_scene.h"

#include "mmu_util.h"

struct guest {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
};

static struct guest guest_of(struct gmem_file *file, uint64_t len)
{
	struct guest g = { .vm = new_vm(GMEM_VM_SW_PROTECTED) };

	CHECK_OK(set_slot(g.vm, 0, 0, len, file, 0));
	g.vcpu = new_vcpu(g.vm);
	return g;
}

static void end(struct guest *g)
{
	gmem_vcpu_free(g->vcpu);
	gmem_vm_free(g->vm);
}

static void check_page(struct guest *g, unsigned int id, uint64_t page)
{
	uint64_t buf[PG / 8];

	CHECK_OK(gmem_vcpu_load(g->vcpu, page * PG, buf, sizeof(buf)));
	if (!page_is(id, page * PG, buf))
		FAIL("page %llu is wrong", (unsigned long long)page);
}

TEST(absent_page_comes_from_the_source)
{
	struct scene s = { 0 };
	struct guest g;
	uint64_t done;

	set_up(&s, (struct src)SRC(.id = 4, .knows_zero = true), 0, 0, 64 * P);
	g = guest_of(s.file, 64 * P);
	/* Against the order, and some by a store first: what it does not cover is the source's. */
	for (uint64_t i = 64; i-- > 32;)
		check_page(&g, 4, i);
	store64(g.vcpu, 5 * P + 8, 99);
	CHECK_EQ(load64(g.vcpu, 5 * P), word_at(4, 5 * P));
	CHECK_EQ(load64(g.vcpu, 5 * P + 8), 99);
	CHECK_EQ(load64(g.vcpu, 5 * P + 16), word_at(4, 5 * P + 16));
	CHECK_OK(gmem_vcpu_pre_fault(g.vcpu, 8 * P, 8 * P, &done));
	CHECK_EQ(done, 8 * P);
	for (uint64_t i = 6; i < 32; i++)
		check_page(&g, 4, i);
	/* The host sees the same. */
	CHECK(page_is(4, 20 * P, s.p + 20 * P));
	CHECK_EQ(*(uint64_t *)(s.p + 5 * P + 8), 99);
	/* Punched: zero, though the source has other bytes. */
	CHECK_OK(gmem_file_punch(s.file, 20 * P, P));
	CHECK_EQ(load64(g.vcpu, 20 * P), 0);
	end(&g);
	tear_down(&s);
}

/* A copy and an exchange bring in what they touch, and nothing else. */
TEST(copy_and_exchange_bring_pages_in)
{
	struct scene s = { 0 };
	uint64_t expected, desired = 5, done;
	struct guest g;

	set_up(&s, (struct src)SRC(.id = 4), 0, 0, 64 * P);
	g = guest_of(s.file, 64 * P);
	CHECK_OK(gmem_vcpu_copy(g.vcpu, 40 * P + 8, 8 * P, 6 * P, &done));
	CHECK_EQ(done, 6 * P);
	for (uint64_t at = 0; at < 6 * P; at += 8)
		CHECK_EQ(load64(g.vcpu, 40 * P + 8 + at), word_at(4, 8 * P + at));
	CHECK_EQ(load64(g.vcpu, 40 * P), word_at(4, 40 * P));
	CHECK_EQ(load64(g.vcpu, 46 * P + 8), word_at(4, 46 * P + 8));
	expected = word_at(4, 30 * P + 16);
	CHECK_EQ(gmem_vcpu_cmpxchg(g.vcpu, 30 * P + 16, &expected, &desired, 8), 1);
	CHECK_EQ(*(uint64_t *)(s.p + 30 * P + 16), 5);
	CHECK_EQ(*(uint64_t *)(s.p + 30 * P + 8), word_at(4, 30 * P + 8));
	expected = word_at(4, 50 * P) + 1;
	CHECK_EQ(gmem_vcpu_cmpxchg(g.vcpu, 50 * P, &expected, &desired, 8), 0);
	CHECK_EQ(expected, word_at(4, 50 * P));
	end(&g);
	tear_down(&s);
}

struct loader {
	struct guest g;
	unsigned int id;
	uint64_t npages, seed;
	_Atomic bool stop;
	_Atomic uint64_t loads;
};

static void *load_pages(void *arg)
{
	struct loader *l = arg;
	uint64_t buf[PG / 8];

	while (!atomic_load(&l->stop)) {
		uint64_t page = tap_rand(&l->seed) % l->npages;

		CHECK_OK(gmem_vcpu_load(l->g.vcpu, page * PG, buf, sizeof(buf)));
		if (!page_is(l->id, page * PG, buf))
			FAIL("page %llu is wrong", (unsigned long long)page);
		atomic_fetch_add(&l->loads, 1);
	}
	return NULL;
}

/* Guests, the host and the fill bring in the same pages: never a zero of a page that the source has. */
TEST(guests_host_and_fill)
{
	struct loader l[2];
	struct scene s = { 0 };
	struct toucher host = { .id = 6, .npages = PAGES, .touches = PAGES / 2 };
	pthread_t t[3];

	set_up(&s, (struct src)SRC(.id = 6), 0, 0, LEN);
	for (unsigned int i = 0; i < 2; i++) {
		l[i] = (struct loader){ .id = 6, .npages = PAGES, .seed = tap_seed() + i };
		if (!i)
			l[i].g = guest_of(s.file, LEN);
		else
			l[i].g = (struct guest){ l[0].g.vm, new_vcpu(l[0].g.vm) };
		t[i] = start(load_pages, &l[i]);
	}
	host.p = s.p;
	host.seed = 3;
	t[2] = start(touch_pages, &host);
	usleep(20000);
	CHECK(gmem_pager_fill(s.pager, NULL, NULL) >= 0);
	join(t[2]);
	for (int i = 0; i < 2; i++) {
		atomic_store(&l[i].stop, true);
		join(t[i]);
		printf("%llu loads\n", (unsigned long long)l[i].loads);
	}
	gmem_vcpu_free(l[1].g.vcpu);
	end(&l[0].g);
	tear_down(&s);
}

TEST(lost_page)
{
	struct scene s = { 0 };
	struct guest g;
	uint64_t v;

	set_up(&s, (struct src)SRC(.id = 4, .bad_page = 9, .bad_err = -EBADMSG, .bad_left = INT32_MAX), 0, 0, 64 * P);
	g = guest_of(s.file, 64 * P);
	check_page(&g, 4, 8);
	CHECK_ERR(gmem_vcpu_load(g.vcpu, 9 * P, &v, 8), -EHWPOISON);
	CHECK_EQ(exit_of(g.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(exit_of(g.vcpu).gpa, 9 * P);
	check_page(&g, 4, 10);
	end(&g);
	tear_down(&s);
}

TEST(pager_is_freed)
{
	struct scene s = { 0 };
	struct guest g;
	uint64_t v;

	set_up(&s, (struct src)SRC(.id = 4), 0, 0, 64 * P);
	g = guest_of(s.file, 64 * P);
	check_page(&g, 4, 2);
	gmem_pager_free(s.pager);
	s.pager = NULL;
	check_page(&g, 4, 2);
	CHECK_ERR(gmem_vcpu_load(g.vcpu, 60 * P, &v, 8), -EIO);
	CHECK_EQ(exit_of(g.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_ERR(gmem_vcpu_store(g.vcpu, 60 * P, &v, 8), -EIO);
	CHECK_ERR(gmem_vcpu_pre_fault(g.vcpu, 60 * P, P, NULL), -EIO);
	CHECK_EQ(gmem_file_page_state(s.file, 60 * P), GMEM_PAGE_ABSENT);
	end(&g);
	tear_down(&s);
}

struct waiting {
	struct guest g;
	_Atomic int err;
	_Atomic bool done;
};

static void *load_blocked(void *arg)
{
	struct waiting *w = arg;
	uint64_t v;

	atomic_store(&w->err, gmem_vcpu_load(w->g.vcpu, 40 * P, &v, 8));
	atomic_store(&w->done, true);
	return NULL;
}

static void set_up_blocked(struct scene *s, struct waiting *w, pthread_t *t)
{
	set_up(s, (struct src)SRC(.id = 4, .block_page = 40), 0, 0, 64 * P);
	*w = (struct waiting){ .g = guest_of(s->file, 64 * P) };
	*t = start(load_blocked, w);
	while (!atomic_load(&s->src.blocked))
		usleep(1000);
}

/* The call that waits ends, and the next one does not. */
TEST(cancel_of_a_wait)
{
	struct scene s = { 0 };
	struct waiting w;
	pthread_t t;

	set_up_blocked(&s, &w, &t);
	gmem_vcpu_cancel(w.g.vcpu);
	join(t);
	CHECK_EQ(w.err, -EINTR);
	check_page(&w.g, 4, 3);
	atomic_store(&s.src.release, true);
	check_page(&w.g, 4, 40);
	end(&w.g);
	tear_down(&s);
}

/* While one vCPU waits for its page, others and zaps go on. */
TEST(a_wait_holds_nobody_up)
{
	struct scene s = { 0 };
	struct gmem_vcpu *other;
	struct waiting w;
	pthread_t t;

	set_up_blocked(&s, &w, &t);
	other = new_vcpu(w.g.vm);
	CHECK_EQ(load64(other, 3 * P), word_at(4, 3 * P));
	CHECK_OK(gmem_file_punch(s.file, 3 * P, P));
	CHECK_EQ(load64(other, 3 * P), 0);
	CHECK(!atomic_load(&w.done));
	/* Without its slot it waits no more. */
	CHECK_OK(del_slot(w.g.vm, 0));
	join(t);
	CHECK_EQ(w.err, -EFAULT);
	atomic_store(&s.src.release, true);
	gmem_vcpu_free(other);
	end(&w.g);
	tear_down(&s);
}

/* ---- the caller's memory */

struct buffer {
	struct gmem_vcpu *vcpu;
	char *buf;
	bool store;
	_Atomic bool done;
};

static void *copy_with_buffer(void *arg)
{
	struct buffer *b = arg;

	if (b->store)
		CHECK_OK(gmem_vcpu_store(b->vcpu, 0, b->buf, 8));
	else
		CHECK_OK(gmem_vcpu_load(b->vcpu, 0, b->buf, 8));
	atomic_store(&b->done, true);
	return NULL;
}

/* The buffer is a page that its pager brings in when it likes: no zap of the guest's memory waits for it. */
TEST(buffer_that_is_served)
{
	for (int store = 0; store < 2; store++) {
		struct gmem_file *file = new_file(64 * P);
		struct guest g = guest_of(file, 64 * P);
		struct scene s = { 0 };
		struct buffer b;
		pthread_t t;

		store64(g.vcpu, 0, 77);
		set_up(&s, (struct src)SRC(.id = 4, .block_page = 40), 0, 0, 64 * P);
		b = (struct buffer){ .vcpu = g.vcpu, .buf = s.p + 40 * P, .store = store };
		t = start(copy_with_buffer, &b);
		while (!atomic_load(&s.src.blocked))
			usleep(1000);
		CHECK_OK(gmem_file_punch(file, P, P));
		CHECK_OK(gmem_file_set_attributes(file, 0, 64 * P, GMEM_ATTRIBUTE_PRIVATE, NULL));
		CHECK_OK(gmem_file_set_attributes(file, 0, 64 * P, 0, NULL));
		CHECK_OK(set_slot(g.vm, 1, 64 * P, P, s.file, 0));
		CHECK(!atomic_load(&b.done));
		atomic_store(&s.src.release, true);
		join(t);
		if (store)
			CHECK_EQ(load64(g.vcpu, 0), word_at(4, 40 * P));
		else
			CHECK_EQ(*(uint64_t *)(s.p + 40 * P), 77);
		CHECK_EQ(*(uint64_t *)(s.p + 40 * P + 8), word_at(4, 40 * P + 8));
		CHECK_OK(del_slot(g.vm, 1));
		end(&g);
		tear_down(&s);
		gmem_file_free(file);
	}
}
