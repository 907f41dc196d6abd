/* SPDX-License-Identifier: MIT */
/*
 * Memory that fails: a poisoned page is -EHWPOISON to the library and to guests, SIGBUS to views, and never a byte from
 * before; punching heals it.
 */
#include "tap.h"

#include "memory_failure_wraps.h"
#include "pager_scene.h"
#include "poison_util.h"
#include "sys/call.h"

/* ---- told by the program, on either engine */

static void arguments(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, 0);

	CHECK_ERR(gmem_file_poison(file, 0, 0), -EINVAL);
	CHECK_ERR(gmem_file_poison(file, 1, P), -EINVAL);
	CHECK_ERR(gmem_file_poison(file, 0, P + 1), -EINVAL);
	CHECK_ERR(gmem_file_poison(file, N * P, P), -ERANGE);
	CHECK_ERR(gmem_file_poison(file, 0, (N + 1) * P), -ERANGE);
	CHECK_EQ(gmem_file_page_state(file, 0), GMEM_PAGE_ABSENT);
	gmem_file_free(file);
}

TEST(arguments_user)
{
	arguments(GMEM_ENGINE_USER);
}

TEST(arguments_kernel)
{
	arguments(GMEM_ENGINE_KERNEL);
}

/* Absent, up to date, removed, pinned; through a view that there was and one that comes later; twice. */
static void every_state(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE), *part = view_of(file, 3, 5, PROT_READ),
			 *late;

	for (uint64_t i = 0; i < 12; i++)
		if (i % 3)
			write_page(file, i, (int)i);
	for (uint64_t i = 2; i < 12; i += 3)
		punch(file, i, 1);
	CHECK_OK(gmem_file_pin(file, 4 * P, P));
	for (uint64_t i = 0; i < N; i += 2)
		CHECK_EQ(peek(page_of(view, i)), i % 3 == 1 && i < 12 ? (int)i : 0);
	for (int twice = 0; twice < 2; twice++) {
		poison(file, 2, 8);
		late = view_of(file, 1, 12, PROT_READ | PROT_WRITE);
		for (uint64_t i = 2; i < 10; i++) {
			check_refused(file, i);
			CHECK_EQ(peek(page_of(view, i)), -1);
			CHECK_EQ(poke(page_of(view, i), 1), -1);
			CHECK_EQ(peek(page_of(late, i)), -1);
			CHECK_EQ(i >= 3 && i < 8 ? peek(page_of(part, i)) : -1, -1);
			/* In a system call it is an error. */
			CHECK_EQ(write(1, page_of(view, i), 0), 0);
			CHECK_EQ(gmem_sys_peek(&(char){ 0 }, page_of(view, i), 1), -EFAULT);
		}
		CHECK_EQ(peek(page_of(view, 1)), 1);
		CHECK_EQ(peek(page_of(late, 10)), 10);
		CHECK_EQ(byte_of(file, 10), 10);
		gmem_view_unmap(late);
	}
	/* A read across it ends there. */
	CHECK_ERR(gmem_file_read(file, 1 * P, (char[2 * P]){ 0 }, 2 * P), -EHWPOISON);
	gmem_view_unmap(part);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(every_state_user)
{
	every_state(GMEM_ENGINE_USER);
}

TEST(every_state_kernel)
{
	every_state(GMEM_ENGINE_KERNEL);
}

static void heals(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE), *other = view_of(file, 2, 4, PROT_READ);

	for (uint64_t i = 0; i < 8; i++)
		write_page(file, i, 7);
	poison(file, 1, 6);
	punch(file, 0, 3);
	CHECK_OK(gmem_file_fallocate(file, 3, 5 * (int64_t)P, 100 * (int64_t)P));
	for (uint64_t i = 0; i < 8; i++) {
		int want = i == 3 || i == 4 ? -1 : 0;

		if (want < 0)
			check_refused(file, i);
		else
			CHECK_EQ(byte_of(file, i), 0);
		CHECK_EQ(peek(page_of(view, i)), want);
		CHECK_EQ(i >= 2 && i < 6 ? peek(page_of(other, i)) : want, want);
		CHECK_EQ(gmem_file_page_state(file, i * P), want ? GMEM_PAGE_POISONED : GMEM_PAGE_REMOVED);
	}
	CHECK_EQ(poke(page_of(view, 2), 9), 0);
	CHECK_EQ(peek(page_of(other, 2)), 9);
	/* And is good for everything, failing again too. */
	poison(file, 2, 1);
	CHECK_EQ(peek(page_of(other, 2)), -1);
	/* No memory ahead for pages that are not healed. */
	CHECK_OK(gmem_file_fallocate(file, 1, 0, N * (int64_t)P));
	check_refused(file, 2);
	check_refused(file, 3);
	CHECK_EQ(peek(page_of(view, 3)), -1);
	gmem_view_unmap(other);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(heals_user)
{
	heals(GMEM_ENGINE_USER);
}

TEST(heals_kernel)
{
	heals(GMEM_ENGINE_KERNEL);
}

static void guests(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, 0);
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	uint64_t word = 1;

	CHECK_OK(set_slot(vm, 0, 16 * P, N * P, file, 0));
	for (uint64_t i = 0; i < 4; i++)
		store64(vcpu, (16 + i) * P, 70 + i);
	poison(file, 1, 2);
	CHECK_ERR(gmem_vcpu_load(vcpu, 17 * P + 8, &word, 8), -EHWPOISON);
	CHECK_EQ(exit_of(vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(exit_of(vcpu).gpa, 17 * P);
	CHECK_ERR(gmem_vcpu_store(vcpu, 18 * P, &word, 8), -EHWPOISON);
	CHECK_EQ(word, 1);
	CHECK_EQ(load64(vcpu, 16 * P), 70);
	CHECK_EQ(load64(vcpu, 19 * P), 73);
	punch(file, 1, 1);
	CHECK_EQ(load64(vcpu, 17 * P), 0);
	CHECK_ERR(gmem_vcpu_load(vcpu, 18 * P, &word, 8), -EHWPOISON);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

TEST(guests_user)
{
	guests(GMEM_ENGINE_USER);
}

TEST(guests_kernel)
{
	guests(GMEM_ENGINE_KERNEL);
}

/* ---- shared and private */

TEST(conversions_keep_it_poisoned)
{
	for (int by_mapping = 0; by_mapping < 2; by_mapping++) {
		struct gmem_file *file = file_on(GMEM_ENGINE_USER, by_mapping ? 0 : GMEM_FILE_STRICT);
		struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE), *late;

		view->by_mapping = by_mapping;
		for (uint64_t i = 0; i < 8; i++)
			write_page(file, i, 1 + (int)i);
		convert(file, 4, 4, PRIVATE);
		poison(file, 3, 2); /* one of each side */
		for (int round = 0; round < 3; round++) {
			convert(file, 0, 8, round == 1 ? 0 : PRIVATE);
			late = view_of(file, 0, N, PROT_READ);
			for (uint64_t i = 0; i < 8; i++) {
				bool bad = i == 3 || i == 4;
				int want = bad || round != 1 ? -1 : 1 + (int)i;

				if (bad)
					check_refused(file, i);
				CHECK_EQ(peek(page_of(view, i)), want);
				CHECK_EQ(peek(page_of(late, i)), want);
			}
			gmem_view_unmap(late);
		}
		/* Healed, and still private. */
		punch(file, 3, 2);
		CHECK_EQ(peek(page_of(view, 3)), -1);
		CHECK_ERR(gmem_file_read(file, 3 * P, &(char){ 0 }, 1), -EACCES);
		convert(file, 0, 8, 0);
		for (uint64_t i = 0; i < 8; i++)
			CHECK_EQ(peek(page_of(view, i)), i == 3 || i == 4 ? 0 : 1 + (int)i);
		gmem_view_unmap(view);
		gmem_file_free(file);
	}
}

TEST(private_pages_and_their_guests)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, GMEM_FILE_INIT_PRIVATE);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE);
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	uint64_t word;

	CHECK_OK(set_slot(vm, 0, 0, N * P, file, 0));
	store64(vcpu, 5 * P, 55);
	poison(file, 5, 1);
	CHECK_EQ(peek(page_of(view, 5)), -1);
	CHECK_ERR(gmem_vcpu_load(vcpu, 5 * P, &word, 8), -EHWPOISON);
	CHECK_EQ(exit_of(vcpu).flags, GMEM_EXIT_FLAG_PRIVATE);
	CHECK_ERR(gmem_populate(vm, 5, zeroes, 1, 0, NULL, NULL), -EHWPOISON);
	convert(file, 5, 1, 0);
	CHECK_EQ(peek(page_of(view, 5)), -1);
	check_refused(file, 5);
	convert(file, 5, 1, PRIVATE);
	punch(file, 5, 1);
	CHECK_EQ(load64(vcpu, 5 * P), 0);
	CHECK_EQ(peek(page_of(view, 5)), -1);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* ---- who serves it */

TEST(a_pager_brings_it_in_no_more)
{
	for (uint32_t flags = 0; flags <= GMEM_PAGER_REMOVE_DISCARDS; flags += GMEM_PAGER_REMOVE_DISCARDS) {
		struct src src = SRC(.id = 3, .nowait = true);
		struct gmem_source *source = source_of(&src);
		struct gmem_pager *pager = new_pager(2, flags, NULL);
		struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0);
		struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE);
		struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
		struct gmem_vcpu *vcpu = new_vcpu(vm);

		CHECK_OK(set_slot(vm, 0, 0, N * P, file, 0));
		CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
		CHECK(page_is(3, 2 * P, page_of(view, 2)));
		poison(file, 2, 3);
		for (uint64_t i = 2; i < 5; i++) {
			CHECK_EQ(peek(page_of(view, i)), -1);
			CHECK_ERR(gmem_vcpu_load(vcpu, i * P, &(char){ 0 }, 1), -EHWPOISON);
			check_refused(file, i);
		}
		CHECK(page_is(3, 5 * P, page_of(view, 5)));
		CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
		CHECK_EQ(gmem_pager_unregister(pager), 3);
		check_refused(file, 3);
		/* Zero, and not the source's, from then on. */
		punch(file, 2, 2);
		CHECK_EQ(byte_of(file, 2), 0);
		CHECK_EQ(peek(page_of(view, 2)), flags ? -1 : 0);
		CHECK_EQ(load64(vcpu, 3 * P), 0);
		CHECK_EQ(peek(page_of(view, 4)), -1);
		CHECK(page_is(3, 6 * P, page_of(view, 6)));
		/* It has been let go of. */
		poison(file, 6, 1);
		if (!flags)
			CHECK_EQ(peek(page_of(view, 6)), -1);
		gmem_vcpu_free(vcpu);
		gmem_vm_free(vm);
		gmem_pager_free(pager);
		gmem_view_unmap(view);
		gmem_file_free(file);
		gmem_source_unref(source);
	}
}

/* A view that was marked when it was mapped can be served all the same. */
TEST(a_marked_view_is_served)
{
	for (uint32_t flags = 0; flags <= GMEM_PAGER_REMOVE_DISCARDS; flags += GMEM_PAGER_REMOVE_DISCARDS) {
		struct src src = SRC(.id = 3, .nowait = true);
		struct gmem_source *source = source_of(&src);
		struct gmem_pager *pager = new_pager(2, flags, NULL);
		struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0);
		struct gmem_view *view;

		poison(file, 2, 3);
		view = view_of(file, 0, N, PROT_READ | PROT_WRITE);
		CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
		CHECK(page_is(3, 5 * P, page_of(view, 5)));
		CHECK_EQ(peek(page_of(view, 2)), -1);
		CHECK_EQ(peek(page_of(view, 4)), -1);
		gmem_pager_free(pager);
		gmem_view_unmap(view);
		gmem_file_free(file);
		gmem_source_unref(source);
	}
}

/* One that is bringing the page in, as the server behind a keeper does it. */
struct filler {
	struct gmem_file *file;
	uint64_t off;
	pthread_barrier_t inserted, go_on;
};

static void *fill_one(void *arg)
{
	struct filler *f = arg;
	struct gmem_folio folio;
	char buf[P];

	memset(buf, 'f', P);
	CHECK_EQ(f->file->ops->alloc(f->file, f->off, 1, &folio), 0);
	folio.data = buf;
	gmem_rwlock_lock_shared(&f->file->invalidate_lock);
	CHECK_EQ(f->file->ops->insert(f->file, &folio), 0);
	pthread_barrier_wait(&f->inserted);
	pthread_barrier_wait(&f->go_on);
	CHECK_EQ(pwrite(gmem_file_fd(f->file), buf, P, (off_t)f->off), (ssize_t)P);
	f->file->ops->publish(f->file, &folio);
	gmem_rwlock_unlock_shared(&f->file->invalidate_lock);
	return NULL;
}

/* It drops the page; healed meanwhile it is zero, whatever is written late. */
TEST(poisoned_while_somebody_fills_it)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0);
	struct filler f;

	CHECK_OK(gmem_file_open_kept(gmem_file_fd(file), gmem_file_state_fd(file), &f.file));
	pthread_barrier_init(&f.inserted, NULL, 2);
	pthread_barrier_init(&f.go_on, NULL, 2);
	for (uint64_t heal = 0; heal < 3; heal++) {
		pthread_t thread;

		f.off = heal * P;
		thread = start(fill_one, &f);
		pthread_barrier_wait(&f.inserted);
		if (heal == 2)
			punch(file, heal, 1);
		poison(file, heal, 1);
		CHECK_EQ(gmem_file_page_state(file, f.off), GMEM_PAGE_POISONED);
		CHECK_ERR(gmem_file_read(file, f.off, &(char){ 0 }, 1), -EHWPOISON);
		if (heal == 1)
			punch(file, heal, 1);
		pthread_barrier_wait(&f.go_on);
		join(thread);
		if (heal == 1)
			CHECK_EQ(byte_of(file, heal), 0);
		else
			check_refused(file, heal);
		punch(file, heal, 1);
		CHECK_EQ(byte_of(file, heal), 0);
		CHECK_EQ(gmem_file_page_state(file, f.off), GMEM_PAGE_REMOVED);
	}
	pthread_barrier_destroy(&f.inserted);
	pthread_barrier_destroy(&f.go_on);
	gmem_file_free(f.file);
	gmem_file_free(file);
}

/* ---- other objects */

TEST(another_object_sees_it)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0), *other;
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE), *late;

	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &other));
	write_page(file, 1, 8);
	poison(file, 1, 1);
	check_refused(other, 1);
	late = view_of(other, 0, N, PROT_READ);
	CHECK_EQ(peek(page_of(late, 1)), -1);
	CHECK_EQ(peek(page_of(late, 2)), 0);
	/* Who punches lets its own views in. */
	punch(other, 1, 1);
	CHECK_EQ(peek(page_of(late, 1)), 0);
	CHECK_EQ(byte_of(file, 1), 0);
	CHECK_EQ(peek(page_of(view, 1)), -1);
	gmem_view_unmap(late);
	gmem_view_unmap(view);
	gmem_file_free(other);
	gmem_file_free(file);
}

TEST(a_forked_child_sees_it)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE), *late;
	int status;
	pid_t pid;

	write_page(file, 1, 8);
	poison(file, 1, 1);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		/* Whatever is where the parent's view was is not the library's to touch. */
		char *here = mmap(gmem_view_addr(view), N * P, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

		CHECK(here == gmem_view_addr(view));
		memset(here, 'h', N * P);
		check_refused(file, 1);
		CHECK_ERR(gmem_file_poison(file, 0, P), -EIO);
		late = view_of(file, 0, N, PROT_READ);
		CHECK_EQ(peek(page_of(late, 1)), -1);
		punch(file, 1, 1);
		CHECK_EQ(peek(page_of(late, 1)), 0);
		CHECK_EQ(here[P], 'h');
		gmem_view_unmap(late);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(byte_of(file, 1), 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* ---- a view that cannot be marked */

TEST(without_a_descriptor)
{
	struct gmem_file *file = file_on(GMEM_ENGINE_USER, 0);
	struct gmem_view *view = view_of(file, 0, N, PROT_READ | PROT_WRITE);

	write_page(file, 1, 8);
	CHECK_EQ(peek(page_of(view, 1)), 8);
	uffd_open_err = -EMFILE;
	CHECK_ERR(gmem_file_poison(file, P, P), -EMFILE);
	CHECK_ERR(gmem_view_map(file, 0, P * 2, PROT_READ, &(struct gmem_view *){ NULL }), -EMFILE);
	uffd_open_err = 0;
	/* Poisoned all the same, and nothing of it is left. */
	check_refused(file, 1);
	poison(file, 1, 1);
	CHECK_EQ(peek(page_of(view, 1)), -1);
	punch(file, 1, 1);
	CHECK_EQ(peek(page_of(view, 1)), 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}
