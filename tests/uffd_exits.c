/* SPDX-License-Identifier: MIT */
/* Exits of vCPUs that are handed to a gmem_uffd: told with the host's faults, answered by the same loop. */
#include "tap.h"

#include "uffd_exit_util.h"

/* An access that comes out. */
static void comes_out(struct guest *g, uint64_t gpa, uint64_t flags)
{
	struct gmem_exit e = { .size = sizeof(e) };
	uint64_t word;

	CHECK_ERR(gmem_vcpu_load(g->vcpu, gpa, &word, sizeof(word)), -EFAULT);
	CHECK_OK(gmem_vcpu_exit(g->vcpu, &e));
	CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(e.flags, flags);
}

static uint64_t load(struct guest *g, uint64_t gpa)
{
	uint64_t word;

	CHECK_OK(gmem_vcpu_load(g->vcpu, gpa, &word, sizeof(word)));
	return word;
}

static void *hand(void *arg)
{
	struct guest *g = arg;

	g->err = gmem_vcpu_hand_exit(g->vcpu, g->s.uffd);
	atomic_store(&g->done, true);
	return NULL;
}

static void hands_over(struct guest *g)
{
	atomic_store(&g->done, false);
	CHECK_EQ(pthread_create(&g->thread, NULL, hand, g), 0);
}

static int goes_on_with(struct guest *g)
{
	CHECK_EQ(pthread_join(g->thread, NULL), 0);
	return g->err;
}

static struct gmem_uffd_event exit_event(struct guest *g, uint64_t page, uint64_t flags)
{
	struct gmem_uffd_event e = next_event(g->s.uffd);

	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_EXIT);
	CHECK(e.view == g->s.view);
	CHECK_EQ(e.off, page * P);
	CHECK_EQ(e.len, P);
	CHECK_EQ(e.flags, 0);
	CHECK_EQ(e.u.exit.gpa, GPA + page * P);
	CHECK_EQ(e.u.exit.flags, flags);
	return e;
}

static void wake(struct guest *g, uint64_t page)
{
	CHECK_OK(gmem_uffd_wake(g->s.uffd, g->s.view, page * P, P));
}

static void not_yet(struct guest *g)
{
	usleep(60000);
	CHECK(!atomic_load(&g->done));
}

/* The guest wants the page on the other side, either way. */
TEST(converted)
{
	struct guest g;

	set_up_guest(&g, GMEM_VM_SNP, false);
	CHECK_OK(gmem_file_write(g.s.file, 3 * P, "private", 8));
	comes_out(&g, GPA | g.alias | 3 * P, GMEM_EXIT_FLAG_PRIVATE);
	hands_over(&g);
	exit_event(&g, 3, GMEM_EXIT_FLAG_PRIVATE);
	no_event(g.s.uffd);
	convert(g.s.file, 3 * P, P, PRIVATE);
	/* There may be more to be done about it. */
	not_yet(&g);
	wake(&g, 3);
	CHECK_EQ(goes_on_with(&g), 0);
	CHECK_EQ(load(&g, GPA | g.alias | 3 * P), *(const uint64_t *)"private");
	comes_out(&g, GPA + 3 * P, 0);
	hands_over(&g);
	exit_event(&g, 3, 0);
	convert(g.s.file, 3 * P, P, 0);
	wake(&g, 3);
	CHECK_EQ(goes_on_with(&g), 0);
	CHECK_EQ(load(&g, GPA + 3 * P), *(const uint64_t *)"private");
	tear_down_guest(&g);
}

/* Bytes, bit, wake. */
TEST(filled)
{
	struct guest g;
	char page[P] = "bytes";

	set_up_guest(&g, GMEM_VM_DEFAULT, true);
	comes_out(&g, GPA + 5 * P, GMEM_EXIT_FLAG_USERFAULT);
	hands_over(&g);
	exit_event(&g, 5, GMEM_EXIT_FLAG_USERFAULT);
	CHECK_EQ(gmem_uffd_copy(g.s.uffd, g.s.view, 5 * P, page, P), P);
	not_yet(&g);
	clear_bit(&g, 5);
	wake(&g, 5);
	CHECK_EQ(goes_on_with(&g), 0);
	CHECK_EQ(load(&g, GPA + 5 * P), *(const uint64_t *)"bytes\0\0");
	/* Woken too early it comes out again; the page that is there is continued. */
	comes_out(&g, GPA + 6 * P, GMEM_EXIT_FLAG_USERFAULT);
	hands_over(&g);
	exit_event(&g, 6, GMEM_EXIT_FLAG_USERFAULT);
	wake(&g, 6);
	CHECK_EQ(goes_on_with(&g), 0);
	comes_out(&g, GPA + 6 * P, GMEM_EXIT_FLAG_USERFAULT);
	hands_over(&g);
	exit_event(&g, 6, GMEM_EXIT_FLAG_USERFAULT);
	CHECK_EQ(gmem_uffd_zeropage(g.s.uffd, g.s.view, 6 * P, P), P);
	/* The bit alone is enough, at last. */
	clear_bit(&g, 6);
	CHECK_EQ(goes_on_with(&g), 0);
	CHECK_EQ(load(&g, GPA + 6 * P), 0);
	tear_down_guest(&g);
}

/* Wakes of other pages, and what is done to them, are nothing to it. */
TEST(others_are_answered)
{
	struct guest g;
	char page[P] = "";

	set_up_guest(&g, GMEM_VM_DEFAULT, true);
	comes_out(&g, GPA + 5 * P, GMEM_EXIT_FLAG_USERFAULT);
	hands_over(&g);
	exit_event(&g, 5, GMEM_EXIT_FLAG_USERFAULT);
	wake(&g, 4);
	wake(&g, 6);
	CHECK_EQ(gmem_uffd_copy(g.s.uffd, g.s.view, 0, page, P), P);
	clear_bit(&g, 4);
	not_yet(&g);
	CHECK_OK(gmem_uffd_wake(g.s.uffd, g.s.view, 0, PAGES * P));
	CHECK_EQ(goes_on_with(&g), 0);
	tear_down_guest(&g);
}

TEST(cancelled)
{
	struct guest g;

	set_up_guest(&g, GMEM_VM_DEFAULT, true);
	for (int told = 0; told < 2; told++) {
		comes_out(&g, GPA, GMEM_EXIT_FLAG_USERFAULT);
		hands_over(&g);
		if (told)
			exit_event(&g, 0, GMEM_EXIT_FLAG_USERFAULT);
		gmem_vcpu_cancel(g.vcpu);
		CHECK_EQ(goes_on_with(&g), -EINTR);
		/* What was not told by then is not told any more. */
		no_event(g.s.uffd);
	}
	/* Before: the same. */
	comes_out(&g, GPA, GMEM_EXIT_FLAG_USERFAULT);
	gmem_vcpu_cancel(g.vcpu);
	CHECK_ERR(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), -EINTR);
	comes_out(&g, GPA, GMEM_EXIT_FLAG_USERFAULT);
	tear_down_guest(&g);
}

/* Whatever goes while it waits. */
TEST(what_it_waits_for_goes)
{
	enum { VIEW, UFFD, SLOT, VM, WHATS };

	for (int what = 0; what < WHATS; what++) {
		struct gmem_memslot none = { .size = sizeof(none), .gpa = GPA };
		struct guest g;

		set_up_guest(&g, GMEM_VM_DEFAULT, true);
		comes_out(&g, GPA, GMEM_EXIT_FLAG_USERFAULT);
		hands_over(&g);
		exit_event(&g, 0, GMEM_EXIT_FLAG_USERFAULT);
		if (what == VIEW) {
			gmem_view_unmap(g.s.view);
			g.s.view = NULL;
		} else if (what == UFFD) {
			gmem_uffd_free(g.s.uffd);
			g.s.uffd = NULL;
		} else if (what == SLOT) {
			CHECK_OK(gmem_vm_set_slot(g.vm, &none));
		} else {
			gmem_vm_free(g.vm);
			g.vm = NULL;
		}
		/* Without the slot it finds out by itself what is there now. */
		CHECK_EQ(goes_on_with(&g), what == SLOT ? 0 : -EIO);
		tear_down_guest(&g);
	}
}

TEST(nobody_need_be_asked)
{
	struct guest g;

	set_up_guest(&g, GMEM_VM_SNP, true);
	comes_out(&g, GPA, GMEM_EXIT_FLAG_USERFAULT);
	clear_bit(&g, 0);
	CHECK_EQ(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), 1);
	comes_out(&g, GPA | g.alias | P, GMEM_EXIT_FLAG_PRIVATE);
	convert(g.s.file, P, P, PRIVATE);
	CHECK_EQ(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), 1);
	no_event(g.s.uffd);
	tear_down_guest(&g);
}

TEST(refused)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .slot = 1, .gpa = 2 * GPA, .len = P };
	struct gmem_memslot bare = slot;
	struct gmem_uffd *empty = new_uffd(0);
	struct gmem_file *other = new_file(P, 0);
	static uint64_t bit = 1;
	struct guest g;
	uint64_t word;
	int status;
	pid_t pid;

	set_up_guest(&g, GMEM_VM_DEFAULT, true);
	CHECK_ERR(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), -EINVAL);
	/* A device's. */
	CHECK_ERR(gmem_vcpu_load(g.vcpu, 4 * GPA, &word, 8), -EFAULT);
	CHECK_ERR(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), -EINVAL);
	comes_out(&g, GPA, GMEM_EXIT_FLAG_USERFAULT);
	CHECK_ERR(gmem_vcpu_hand_exit(g.vcpu, empty), -ENOENT);
	CHECK_HAS(gmem_last_error(), "gmem_vcpu_hand_exit");
	/* Of another file; of none. */
	slot.file = other;
	slot.flags = GMEM_SLOT_USERFAULT;
	slot.userfault_bitmap = &bit;
	CHECK_OK(gmem_vm_set_slot(g.vm, &slot));
	comes_out(&g, 2 * GPA, GMEM_EXIT_FLAG_USERFAULT);
	CHECK_ERR(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), -ENOENT);
	bare.slot = 2;
	bare.gpa = 3 * GPA;
	bare.hva = gmem_view_addr(g.s.view);
	bare.flags = GMEM_SLOT_USERFAULT;
	bare.userfault_bitmap = &bit;
	CHECK_OK(gmem_vm_set_slot(g.vm, &bare));
	comes_out(&g, 3 * GPA, GMEM_EXIT_FLAG_USERFAULT);
	CHECK_ERR(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), -ENOENT);
	clear_bit(&g, 7);
	CHECK_EQ(gmem_uffd_poison(g.s.uffd, g.s.view, 7 * P, P), P);
	CHECK_ERR(gmem_vcpu_load(g.vcpu, GPA + 7 * P, &word, 8), -EHWPOISON);
	CHECK_ERR(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd), -EHWPOISON);
	/* In a child of fork(2). */
	comes_out(&g, GPA, GMEM_EXIT_FLAG_USERFAULT);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		_exit(gmem_vcpu_hand_exit(g.vcpu, g.s.uffd) == -EIO ? 0 : 1);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	gmem_uffd_free(empty);
	tear_down_guest(&g);
	gmem_file_free(other);
}

/* ---- somebody else's vCPU */

struct raw {
	struct gmem_uffd *uffd;
	struct gmem_uffd_exit exit;
	_Atomic bool cancel;
	int err;
	pthread_t thread;
};

static bool is_cancelled(void *opaque)
{
	return atomic_load(&((struct raw *)opaque)->cancel);
}

static void *hand_raw(void *arg)
{
	struct raw *r = arg;

	r->err = gmem_uffd_exit(r->uffd, &r->exit);
	return NULL;
}

TEST(of_a_vcpu_of_somebody_elses)
{
	struct scene s = set_up(PAGES * P, 0);
	struct raw r = { .uffd = s.uffd };
	struct gmem_uffd_event e;

	r.exit = (struct gmem_uffd_exit){
		.size = sizeof(r.exit),
		.file = s.file,
		.off = 2 * P,
		.len = 2 * P,
		.gpa = 0x1234000,
		.flags = GMEM_EXIT_FLAG_PRIVATE | 1ull << 60,
		.cancelled = is_cancelled,
		.opaque = &r,
	};
	for (int cancel = 0; cancel < 2; cancel++) {
		CHECK_EQ(pthread_create(&r.thread, NULL, hand_raw, &r), 0);
		e = next_event(s.uffd);
		CHECK_EQ(e.kind, GMEM_UFFD_EVENT_EXIT);
		CHECK_EQ(e.off, 2 * P);
		CHECK_EQ(e.len, 2 * P);
		CHECK_EQ(e.u.exit.gpa, 0x1234000);
		CHECK_EQ(e.u.exit.flags, GMEM_EXIT_FLAG_PRIVATE | 1ull << 60);
		if (cancel)
			atomic_store(&r.cancel, true);
		else
			CHECK_OK(gmem_uffd_wake(s.uffd, s.view, 3 * P, P));
		CHECK_EQ(pthread_join(r.thread, NULL), 0);
		CHECK_EQ(r.err, cancel ? -EINTR : 0);
	}
	r.exit.size--;
	CHECK_ERR(gmem_uffd_exit(s.uffd, &r.exit), -EINVAL);
	r.exit.size++;
	r.exit.off = PAGES * P;
	CHECK_ERR(gmem_uffd_exit(s.uffd, &r.exit), -ERANGE);
	r.exit.off = 1;
	CHECK_ERR(gmem_uffd_exit(s.uffd, &r.exit), -EINVAL);
	r.exit.off = 0;
	r.exit.file = NULL;
	CHECK_ERR(gmem_uffd_exit(s.uffd, &r.exit), -EINVAL);
	tear_down(&s);
}
