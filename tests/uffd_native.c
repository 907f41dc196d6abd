/* SPDX-License-Identifier: MIT */
/*
 * A guest_memfd that takes userfaults, used as it is. No kernel that could be had has one, so it is faked at the seam:
 * KVM's file is a memfd, which takes them, and what is known of the posted series is put over that. There is no write
 * protection; MISSING and MINOR are; a conversion takes the host's translations away, a fault is raised before a page's
 * side is looked at, and UFFDIO_CONTINUE does not look at it at all, so that this library has to.
 */
#include "uffd_util.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "sys/kvm.h"
#include "sys/scratch.h"

#define PAGES 32ull

/* The kernel. */
static struct {
	bool takes_none; /* but one of today */
	ino_t ino;
	_Atomic bool private[PAGES];
	struct {
		uint64_t hva, len;
	} registered;
	unsigned int modes;
	_Atomic uint64_t continued, wrong;
} kernel;

int __wrap_gmem_kvm_open(void);
int __wrap_gmem_kvm_vm_create(int kvm, unsigned long type);
int __wrap_gmem_kvm_check(int fd, unsigned long cap);
int __wrap_gmem_kvm_memfd_create(int vm, uint64_t len, uint64_t flags);
int __wrap_gmem_kvm_memfd_attributes_set(int fd, uint64_t off, uint64_t len, uint64_t attributes, uint64_t *ret);
int __real_gmem_scratch_map(struct gmem_scratch *scratch, enum gmem_scratch_kind kind, size_t npages);
int __wrap_gmem_scratch_map(struct gmem_scratch *scratch, enum gmem_scratch_kind kind, size_t npages);
int __real_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __real_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

int __wrap_gmem_kvm_open(void)
{
	return open("/dev/null", O_RDWR | O_CLOEXEC);
}

int __wrap_gmem_kvm_vm_create(int kvm, unsigned long type)
{
	(void)kvm, (void)type;
	return open("/dev/null", O_RDWR | O_CLOEXEC);
}

int __wrap_gmem_kvm_check(int fd, unsigned long cap)
{
	(void)fd;
	return cap == KVM_CAP_GUEST_MEMFD_FLAGS ? GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED : 1;
}

int __wrap_gmem_kvm_memfd_create(int vm, uint64_t len, uint64_t flags)
{
	int fd = memfd_create("fake-guest-memfd", MFD_CLOEXEC);
	struct stat st;

	(void)vm, (void)flags;
	CHECK_EQ(ftruncate(fd, (off_t)len), 0);
	CHECK_EQ(fstat(fd, &st), 0);
	kernel.ino = st.st_ino;
	return fd;
}

int __wrap_gmem_kvm_memfd_attributes_set(int fd, uint64_t off, uint64_t len, uint64_t attributes, uint64_t *ret)
{
	(void)fd, (void)ret;
	for (uint64_t page = off / P; page < (off + len) / P; page++)
		atomic_store(&kernel.private[page], attributes & GMEM_ATTRIBUTE_PRIVATE);
	if (kernel.registered.len)
		CHECK_EQ(madvise((char *)(uintptr_t)kernel.registered.hva + off, len, MADV_DONTNEED), 0);
	return 0;
}

int __wrap_gmem_scratch_map(struct gmem_scratch *scratch, enum gmem_scratch_kind kind, size_t npages)
{
	return __real_gmem_scratch_map(scratch, kind == GMEM_SCRATCH_GMEM ? GMEM_SCRATCH_SHMEM : kind, npages);
}

int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode)
{
	if (kernel.takes_none || (mode & GMEM_SYS_UFFD_WP))
		return -EINVAL;
	if (len == PAGES * P) {
		kernel.registered.hva = hva;
		kernel.registered.len = len;
		kernel.modes = mode;
	}
	return __real_gmem_sys_uffd_register(uffd, hva, len, mode);
}

int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done)
{
	uint64_t first = (hva - kernel.registered.hva) / P;

	atomic_fetch_add(&kernel.continued, 1);
	for (uint64_t page = first; page < first + len / P; page++)
		if (atomic_load(&kernel.private[page]))
			atomic_fetch_add(&kernel.wrong, 1);
	return __real_gmem_sys_uffd_continue(uffd, hva, len, done);
}

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	(void)uffd, (void)hva, (void)len, (void)wake;
	*done = 0;
	return -EINVAL;
}

static struct scene begin(void)
{
	struct gmem_file_opts o = {
		.size = sizeof(o),
		.engine = GMEM_ENGINE_KERNEL,
		.needs = GMEM_NEED_USERFAULT | GMEM_NEED_CONVERSION,
	};
	struct scene s = { .len = PAGES * P };
	struct stat st;

	need_markers();
	catch_bus();
	memset(&kernel, 0, sizeof(kernel));
	CHECK_OK(gmem_file_create(s.len, &o, &s.file));
	CHECK_EQ(gmem_file_engine(s.file), GMEM_ENGINE_KERNEL);
	CHECK_EQ(fstat(gmem_file_fd(s.file), &st), 0);
	CHECK_EQ(st.st_ino, kernel.ino);
	s.view = new_view(s.file, 0, s.len);
	s.p = gmem_view_addr(s.view);
	s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_add_view(s.uffd, s.view));
	/* Its own, and as it has them. */
	CHECK_EQ(kernel.registered.hva, (uintptr_t)s.p);
	CHECK_EQ(kernel.modes, GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR);
	return s;
}

TEST(faults_and_answers)
{
	struct scene s = begin();
	struct gmem_uffd_event e;
	struct toucher t;
	char page[P];

	fill_page(1, 3 * P, page);
	start(&t, s.p + 3 * P + 8, false);
	e = next_event(s.uffd);
	CHECK_EQ(e.off, 3 * P);
	CHECK_EQ(e.flags, 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 3 * P, page, P), P);
	finish(&t, 0);
	CHECK_EQ(t.word, word_at(1, 3 * P + 8));
	CHECK_EQ(gmem_file_page_state(s.file, 3 * P), GMEM_PAGE_UPTODATE);
	CHECK(kernel.continued);
	CHECK_OK(gmem_file_write(s.file, 4 * P, page, P));
	start(&t, s.p + 4 * P, true);
	CHECK_EQ(next_event(s.uffd).flags, GMEM_UFFD_FAULT_MINOR | GMEM_UFFD_FAULT_WRITE);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 4 * P, page, P), -EEXIST);
	CHECK_EQ(next_event(s.uffd).flags, GMEM_UFFD_FAULT_MINOR | GMEM_UFFD_FAULT_WRITE);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 4 * P, P), P);
	finish(&t, 0);
	start(&t, s.p + 5 * P, true);
	CHECK_EQ(next_event(s.uffd).off, 5 * P);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 5 * P, P), -EFAULT);
	CHECK_EQ(gmem_uffd_zeropage(s.uffd, s.view, 5 * P, 2 * P), 2 * P);
	finish(&t, 0);
	CHECK(page_is_zero(s.p + 6 * P));
	/* Without markers: what stands in for them its touchers meet too. */
	start(&t, s.p + 8 * P, true);
	CHECK_EQ(next_event(s.uffd).off, 8 * P);
	CHECK_EQ(gmem_uffd_poison(s.uffd, s.view, 8 * P, P), P);
	finish(&t, SIGBUS);
	CHECK_EQ(touch(s.p + 8 * P), SIGBUS);
	CHECK_EQ(touch(s.p + 5 * P), 0);
	no_event(s.uffd);
	tear_down(&s);
}

TEST(write_protection)
{
	struct scene s = begin();
	struct gmem_view *other = new_view(s.file, 0, P);

	CHECK_ERR(gmem_uffd_register(s.uffd, other, GMEM_UFFD_MODE_WP), -EOPNOTSUPP);
	CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, 0, P, true), -EINVAL);
	gmem_view_unmap(other);
	tear_down(&s);
}

/* Nothing of this library's keeps the host out, and to wake it would only have it fault again: it is told. */
TEST(private_pages)
{
	struct scene s = begin();
	struct gmem_uffd_event e;
	char page[P] = "mine";
	struct toucher t;

	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, page, P), P);
	convert(s.file, 0, 2 * P, PRIVATE);
	for (uint64_t i = 0; i < 2; i++) {
		uint32_t minor = i ? 0 : GMEM_UFFD_FAULT_MINOR;

		start(&t, s.p + i * P, false);
		e = next_event(s.uffd);
		CHECK_EQ(e.flags, GMEM_UFFD_FAULT_PRIVATE | minor);
		CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, i * P, page, P), -EACCES);
		CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, i * P, P), -EACCES);
		CHECK_ERR(gmem_uffd_zeropage(s.uffd, s.view, i * P, P), -EACCES);
		CHECK_ERR(gmem_uffd_poison(s.uffd, s.view, i * P, P), -EACCES);
		CHECK(!goes_on(&t, 20));
		convert(s.file, i * P, P, 0);
		if (i)
			CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, P, page, P), P);
		else
			CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, P), P);
		finish(&t, 0);
		CHECK_STR(s.p + i * P, "mine");
	}
	CHECK_EQ(kernel.wrong, 0);
	tear_down(&s);
}

struct race {
	struct scene s;
	_Atomic bool stop;
	_Atomic uint64_t refused, done;
};

static void *press(void *arg)
{
	struct race *r = arg;
	uint64_t seed = (uintptr_t)&seed;
	static const char page[P];

	while (!atomic_load(&r->stop)) {
		uint64_t off = tap_rand(&seed) % PAGES * P;
		int64_t got = tap_rand(&seed) % 2 ? gmem_uffd_copy(r->s.uffd, r->s.view, off, page, P) :
						    gmem_uffd_continue(r->s.uffd, r->s.view, off, P);

		atomic_fetch_add(got == -EACCES ? &r->refused : &r->done, 1);
	}
	return NULL;
}

/* The kernel would map a private page: it is never asked to. */
TEST_TIMEOUT(never_asked_for_a_private_page, 60)
{
	uint64_t seed = tap_seed(), until = now_ms() + 1500;
	struct race r = { .s = begin() };
	pthread_t t[2];

	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, press, &r), 0);
	while (now_ms() < until || !atomic_load(&r.refused)) {
		uint64_t off = tap_rand(&seed) % PAGES * P;

		convert(r.s.file, off, P, tap_rand(&seed) % 2 ? PRIVATE : 0);
	}
	atomic_store(&r.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	CHECK(r.refused && kernel.continued);
	CHECK_EQ(kernel.wrong, 0);
	tear_down(&r.s);
}

/* One of today's: it is said what is lacking. */
TEST(a_kernel_that_takes_none)
{
	struct gmem_file_opts o = { .size = sizeof(o), .needs = GMEM_NEED_USERFAULT };
	struct gmem_uffd *uffd = new_uffd(0);
	struct gmem_file *file;
	struct gmem_view *view;

	memset(&kernel, 0, sizeof(kernel));
	kernel.takes_none = true;
	o.engine = GMEM_ENGINE_KERNEL;
	CHECK_ERR(gmem_file_create(PAGES * P, &o, &file), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "userfaults");
	o.needs = 0;
	CHECK_OK(gmem_file_create(PAGES * P, &o, &file));
	view = new_view(file, 0, PAGES * P);
	CHECK_ERR(gmem_uffd_add_view(uffd, view), -EINVAL);
	CHECK_HAS(gmem_last_error(), "guest_memfd");
	gmem_view_unmap(view);
	gmem_file_free(file);
	o.engine = GMEM_ENGINE_AUTO;
	o.needs = GMEM_NEED_USERFAULT;
	CHECK_OK(gmem_file_create(PAGES * P, &o, &file));
	CHECK_EQ(gmem_file_engine(file), GMEM_ENGINE_USER);
	gmem_file_free(file);
	gmem_uffd_free(uffd);
}
