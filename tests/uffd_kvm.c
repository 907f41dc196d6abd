/* SPDX-License-Identifier: MIT */
/* A guest on KVM whose exits a gmem_uffd's loop answers, beside the host's faults on the same memory. */
#include <poll.h>

#include "kvm_scene.h"
#include "pager_util.h"

#define GUEST_PAGES (LEN / PG)

struct loop {
	struct scene *s;
	struct gmem_uffd *uffd;
	struct gmem_view *view;
	uint64_t bitmap[GUEST_PAGES / 64];
	pthread_t thread;
	_Atomic bool stop, idle; /* idle: it reads, and answers nothing */
	_Atomic uint64_t exits, faults;
};

static uint64_t value_of(uint64_t page)
{
	return page * 0x9e3779b97f4a7c15ull | 1;
}

static void put(struct loop *l, uint64_t off)
{
	uint64_t words[PG / 8];
	int64_t got;

	for (uint64_t i = 0; i < PG / 8; i++)
		words[i] = value_of(off / PG);
	got = gmem_uffd_copy(l->uffd, l->view, off, words, PG);
	if (got == -EEXIST)
		got = gmem_uffd_continue(l->uffd, l->view, off, PG);
	CHECK(got == (int64_t)PG || got == -EEXIST);
}

static void answer(struct loop *l, const struct gmem_uffd_event *e)
{
	if (e->kind != GMEM_UFFD_EVENT_EXIT) {
		CHECK_EQ(e->kind, GMEM_UFFD_EVENT_FAULT);
		/* Before the guest can have ended. */
		atomic_fetch_add(&l->faults, 1);
		put(l, e->off);
		return;
	}
	atomic_fetch_add(&l->exits, 1);
	CHECK_EQ(e->u.exit.gpa, GPA + e->off);
	if (atomic_load(&l->idle))
		return;
	if (e->u.exit.flags & GMEM_EXIT_FLAG_USERFAULT) {
		put(l, e->off);
		__atomic_fetch_and(&l->bitmap[e->off / PG / 64], ~(1ull << e->off / PG % 64), __ATOMIC_RELEASE);
	} else {
		CHECK_OK(gmem_file_set_attributes(l->s->file, e->off, e->len, 0, NULL));
	}
	CHECK_OK(gmem_uffd_wake(l->uffd, e->view, e->off, e->len));
}

static void *serve(void *arg)
{
	struct loop *l = arg;
	struct pollfd p = { .fd = gmem_uffd_fd(l->uffd), .events = POLLIN };
	struct gmem_uffd_event e[4];

	while (!atomic_load(&l->stop)) {
		int n;

		poll(&p, 1, 10);
		n = (int)CHECK_OK(gmem_uffd_read(l->uffd, e, 4));
		for (int i = 0; i < n; i++)
			answer(l, &e[i]);
	}
	return NULL;
}

static void begin_loop(struct loop *l, struct scene *s, bool bitmap)
{
	struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = s->len, .file = s->file };

	need_markers();
	memset(l, 0, sizeof(*l));
	l->s = s;
	CHECK_OK(gmem_view_map(s->file, 0, s->len, PROT_READ | PROT_WRITE, &l->view));
	CHECK_OK(gmem_uffd_create(NULL, &l->uffd));
	CHECK_OK(gmem_uffd_add_view(l->uffd, l->view));
	if (bitmap) {
		memset(l->bitmap, 0xff, sizeof(l->bitmap));
		m.flags = GMEM_SLOT_USERFAULT;
		m.userfault_bitmap = l->bitmap;
		CHECK_OK(gmem_vm_set_slot(s->vm, &m));
	}
	l->thread = start(serve, l);
}

static void end_loop(struct loop *l)
{
	atomic_store(&l->stop, true);
	join(l->thread);
	CHECK_OK(del_slot(l->s->vm, 0));
	gmem_view_unmap(l->view);
	gmem_uffd_free(l->uffd);
}

/* To its end, with every exit handed over. */
static uint64_t run_through(struct scene *s, struct loop *l)
{
	int err;

	while ((err = gmem_vcpu_run(s->vcpu))) {
		if (err != -EFAULT)
			FAIL("gmem_vcpu_run: %d: %s", err, gmem_last_error());
		CHECK(gmem_vcpu_hand_exit(s->vcpu, l->uffd) >= 0);
	}
	if (!guest_finished(&s->guest))
		FAIL("the guest came out: %s", guest_what(&s->guest));
	return guest_result(&s->guest);
}

static uint64_t sum_of_all(void)
{
	uint64_t sum = 0;

	for (uint64_t page = 0; page < GUEST_PAGES; page++)
		sum += value_of(page);
	return sum;
}

static void *touch_all(void *arg)
{
	struct loop *l = arg;

	for (uint64_t page = 0; page < GUEST_PAGES; page++)
		CHECK_EQ(__atomic_load_n((uint64_t *)((char *)gmem_view_addr(l->view) + (page * 37 % GUEST_PAGES) * PG),
					 __ATOMIC_RELAXED),
			 value_of(page * 37 % GUEST_PAGES));
	return NULL;
}

/* All pages are the caller's to fill, and nobody reads one that is not. */
TEST_TIMEOUT(guest_and_host_through_one_loop, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct loop l;
		pthread_t host;

		begin_loop(&l, &s, true);
		host = start(touch_all, &l);
		begin(&s, GUEST_sum, GPA, GUEST_PAGES, PG);
		CHECK_EQ(run_through(&s, &l), sum_of_all());
		join(host);
		CHECK(l.exits >= GUEST_PAGES);
		end_loop(&l);
	}
}

/* Private to the host, and to a guest of this type: it comes out, and goes on once its page is shared. */
TEST_TIMEOUT(private_exits, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		struct loop l;

		begin_loop(&l, &s, false);
		for (uint64_t page = 0; page < GUEST_PAGES; page++)
			put(&l, page * PG);
		CHECK_OK(gmem_file_set_attributes(s.file, 0, LEN, GMEM_ATTRIBUTE_PRIVATE, NULL));
		begin(&s, GUEST_sum, GPA, GUEST_PAGES, PG);
		CHECK_EQ(run_through(&s, &l), sum_of_all());
		CHECK_EQ(l.exits, GUEST_PAGES);
		end_loop(&l);
	}
}

/* Without a bitmap no exit is needed for what is absent: the same loop is told of a guest that waits. */
TEST_TIMEOUT(absent_pages, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct loop l;

		begin_loop(&l, &s, false);
		begin(&s, GUEST_sum, GPA, GUEST_PAGES, PG);
		CHECK_EQ(run_through(&s, &l), sum_of_all());
		CHECK_EQ(l.exits, 0);
		CHECK_EQ(l.faults, GUEST_PAGES);
		end_loop(&l);
	}
}

/* Nobody supplies what is absent here: it is zero to a guest, until it is lost. */
TEST_TIMEOUT(poisoned_pages, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct gmem_uffd *uffd;
		struct gmem_view *view;

		need_markers();
		CHECK_OK(gmem_view_map(s.file, 0, s.len, PROT_READ | PROT_WRITE, &view));
		CHECK_OK(gmem_uffd_create(NULL, &uffd));
		CHECK_OK(gmem_uffd_register(uffd, view, GMEM_UFFD_MODE_MINOR));
		CHECK_EQ(run(&s, GUEST_load8, GPA), 0);
		CHECK_EQ(gmem_uffd_poison(uffd, view, PG, 2 * PG), 2 * PG);
		run_err(&s, -EHWPOISON, GUEST_load8, GPA + PG);
		CHECK_ERR(gmem_vcpu_hand_exit(s.vcpu, uffd), -EHWPOISON);
		CHECK_OK(gmem_file_punch(s.file, PG, PG));
		CHECK_OK(go_on(&s));
		/* It was touched: it is there. */
		CHECK_ERR(gmem_uffd_poison(uffd, view, 0, PG), -EEXIST);
		CHECK_OK(del_slot(s.vm, 0));
		gmem_view_unmap(view);
		gmem_uffd_free(uffd);
	}
}

static void *cancel_when_told(void *arg)
{
	struct loop *l = arg;

	while (!atomic_load(&l->exits))
		usleep(1000);
	gmem_vcpu_cancel(l->s->vcpu);
	return NULL;
}

TEST_TIMEOUT(cancelled_while_it_waits, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct loop l;
		pthread_t t;

		begin_loop(&l, &s, true);
		atomic_store(&l.idle, true);
		t = start(cancel_when_told, &l);
		begin(&s, GUEST_load8, GPA + 9 * PG);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EFAULT);
		CHECK_ERR(gmem_vcpu_hand_exit(s.vcpu, l.uffd), -EINTR);
		join(t);
		/* Of one that is cancelled the flag may be told once more, by whoever runs next. */
		atomic_store(&l.idle, false);
		while (gmem_vcpu_run(s.vcpu) == -EINTR)
			;
		CHECK(gmem_vcpu_hand_exit(s.vcpu, l.uffd) >= 0);
		CHECK_EQ(run_through(&s, &l), value_of(9));
		end_loop(&l);
	}
}
