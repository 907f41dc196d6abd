/* SPDX-License-Identifier: MIT */
/* A guest touches, through a second stage, what a gmem_uffd serves: it waits, and never reads zero. */
#include "uffd_util.h"

#define PAGES 8ull
#define GPA 0x200000ull

struct guest {
	struct scene s;
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	pthread_t thread;
	uint64_t page;
	_Atomic bool done;
	int err;
	char bytes[8];
};

static void set_up_guest(struct guest *g)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = GPA, .len = PAGES * P };

	need_markers();
	memset(g, 0, sizeof(*g));
	g->s.file = slot.file = new_file(PAGES * P, 0);
	g->s.view = new_view(g->s.file, 0, PAGES * P);
	g->s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_add_view(g->s.uffd, g->s.view));
	CHECK_OK(gmem_vm_create(NULL, &g->vm));
	CHECK_OK(gmem_vm_set_slot(g->vm, &slot));
	CHECK_OK(gmem_vcpu_create(g->vm, NULL, &g->vcpu));
}

static void tear_down_guest(struct guest *g)
{
	gmem_vcpu_free(g->vcpu);
	gmem_vm_free(g->vm);
	gmem_uffd_free(g->s.uffd);
	gmem_view_unmap(g->s.view);
	gmem_file_free(g->s.file);
}

static void *load(void *arg)
{
	struct guest *g = arg;

	g->err = gmem_vcpu_load(g->vcpu, GPA + g->page * P, g->bytes, sizeof(g->bytes));
	atomic_store(&g->done, true);
	return NULL;
}

static void guest_starts(struct guest *g, uint64_t page)
{
	g->page = page;
	atomic_store(&g->done, false);
	CHECK_EQ(pthread_create(&g->thread, NULL, load, g), 0);
}

static int guest_ends(struct guest *g)
{
	pthread_join(g->thread, NULL);
	return g->err;
}

/* The guest's event, after the descriptor said that there is one. */
static struct gmem_uffd_event guest_event(struct guest *g)
{
	struct pollfd p = { .fd = gmem_uffd_fd(g->s.uffd), .events = POLLIN };
	struct gmem_uffd_event e[2];

	CHECK_EQ(poll(&p, 1, 10000), 1);
	CHECK_EQ(gmem_uffd_read(g->s.uffd, e, 2), 1);
	CHECK_EQ(e[0].kind, GMEM_UFFD_EVENT_FAULT);
	CHECK_EQ(e[0].flags, GMEM_UFFD_FAULT_GUEST);
	CHECK(e[0].view == g->s.view);
	CHECK_EQ(e[0].off, g->page * P);
	CHECK_EQ(poll(&p, 1, 0), 0);
	return e[0];
}

TEST(a_guest_waits_for_its_page)
{
	static char bytes[P] = "for you";
	struct guest g;

	set_up_guest(&g);
	guest_starts(&g, 3);
	guest_event(&g);
	usleep(30000);
	CHECK(!atomic_load(&g.done));
	CHECK_EQ(gmem_uffd_copy(g.s.uffd, g.s.view, 3 * P, bytes, P), P);
	CHECK_EQ(guest_ends(&g), 0);
	CHECK_STR(g.bytes, "for you");
	/* Others are told of again after a wake, and answered once for both: the view has the page too. */
	guest_starts(&g, 4);
	guest_event(&g);
	CHECK_OK(gmem_uffd_wake(g.s.uffd, g.s.view, 0, PAGES * P));
	guest_event(&g);
	CHECK_EQ(gmem_uffd_copy(g.s.uffd, g.s.view, 4 * P, bytes, P), P);
	CHECK_EQ(guest_ends(&g), 0);
	CHECK_STR((char *)gmem_view_addr(g.s.view) + 4 * P, "for you");
	tear_down_guest(&g);
}

TEST(a_guest_is_cancelled)
{
	struct guest g;

	set_up_guest(&g);
	guest_starts(&g, 1);
	guest_event(&g);
	gmem_vcpu_cancel(g.vcpu);
	CHECK_EQ(guest_ends(&g), -EINTR);
	CHECK_EQ(gmem_file_page_state(g.s.file, P), GMEM_PAGE_ABSENT);
	tear_down_guest(&g);
}

TEST(a_private_page_cannot_be_brought_in)
{
	struct guest g;

	set_up_guest(&g);
	CHECK_OK(gmem_file_set_attributes(g.s.file, 0, P, PRIVATE, NULL));
	CHECK_ERR(gmem_vcpu_load(g.vcpu, GPA, g.bytes, 1), -EIO);
	/* Nor one that becomes private while its guest waits. */
	guest_starts(&g, 2);
	guest_event(&g);
	CHECK_OK(gmem_file_set_attributes(g.s.file, 2 * P, P, PRIVATE, NULL));
	CHECK_EQ(guest_ends(&g), -EIO);
	tear_down_guest(&g);
}

TEST(who_served_is_gone)
{
	struct guest g;

	set_up_guest(&g);
	guest_starts(&g, 5);
	guest_event(&g);
	gmem_uffd_free(g.s.uffd);
	g.s.uffd = NULL;
	CHECK_EQ(guest_ends(&g), -EIO);
	/* Not zero from then on either. */
	CHECK_ERR(gmem_vcpu_load(g.vcpu, GPA + 6 * P, g.bytes, 1), -EIO);
	CHECK_HAS(gmem_last_error(), "gone");
	tear_down_guest(&g);
}

/* A child made by fork(2) has a copy of the object, and none of its guests. */
TEST(a_child_frees_its_copy)
{
	struct guest g;
	int status;
	pid_t pid;

	set_up_guest(&g);
	guest_starts(&g, 5);
	guest_event(&g);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		alarm(5);
		gmem_uffd_free(g.s.uffd);
		gmem_view_unmap(g.s.view);
		gmem_file_free(g.s.file);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK(!atomic_load(&g.done));
	CHECK_EQ(gmem_uffd_copy(g.s.uffd, g.s.view, 5 * P, "of the parent's, and no less than a page of it", 1),
		 -EINVAL);
	gmem_vcpu_cancel(g.vcpu);
	CHECK_EQ(guest_ends(&g), -EINTR);
	tear_down_guest(&g);
}

TEST(the_view_is_unmapped)
{
	struct guest g;

	set_up_guest(&g);
	guest_starts(&g, 5);
	guest_event(&g);
	gmem_view_unmap(g.s.view);
	g.s.view = NULL;
	CHECK_EQ(guest_ends(&g), -EIO);
	CHECK_ERR(gmem_vcpu_load(g.vcpu, GPA + 6 * P, g.bytes, 1), -EIO);
	tear_down_guest(&g);
}

struct many {
	struct guest *g;
	struct gmem_vcpu *vcpu;
	uint64_t page;
	pthread_t thread;
};

static void *load_all(void *arg)
{
	struct many *m = arg;
	uint64_t word;

	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t page = (m->page + i) % PAGES;

		CHECK_OK(gmem_vcpu_load(m->vcpu, GPA + page * P + 8, &word, sizeof(word)));
		CHECK_EQ(word, page + 1);
	}
	return NULL;
}

/* Guests and touchers of the view at once, one loop for both. */
TEST(many_guests_and_touchers)
{
	enum { GUESTS = 6 };
	struct gmem_uffd_event events[4];
	struct many many[GUESTS];
	uint64_t page[P / 8], left = PAGES;
	struct guest g;

	set_up_guest(&g);
	for (uint64_t i = 0; i < GUESTS; i++) {
		many[i] = (struct many){ .g = &g, .page = i };
		CHECK_OK(gmem_vcpu_create(g.vm, NULL, &many[i].vcpu));
		CHECK_EQ(pthread_create(&many[i].thread, NULL, load_all, &many[i]), 0);
	}
	while (left) {
		struct pollfd p = { .fd = gmem_uffd_fd(g.s.uffd), .events = POLLIN };
		int n;

		CHECK_EQ(poll(&p, 1, 10000), 1);
		n = gmem_uffd_read(g.s.uffd, events, 4);
		CHECK(n >= 0);
		for (int i = 0; i < n; i++) {
			int64_t done;

			memset(page, 0, sizeof(page));
			page[1] = events[i].off / P + 1;
			done = gmem_uffd_copy(g.s.uffd, events[i].view, events[i].off, page, P);
			CHECK(done == (int64_t)P || done == -EEXIST);
			left -= done == (int64_t)P;
		}
	}
	for (int i = 0; i < GUESTS; i++) {
		pthread_join(many[i].thread, NULL);
		gmem_vcpu_free(many[i].vcpu);
	}
	tear_down_guest(&g);
}
