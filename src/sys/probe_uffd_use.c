/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/scratch.h"
#include "sys/uapi.h"

#define PATTERN 0x5a
#define PAGEMAP_WP (1ULL << 57)

/* A registered mapping and its descriptor, for one try. */
struct use {
	struct gmem_scratch mem;
	int uffd;
};

static void end(struct use *use)
{
	if (use->uffd >= 0)
		close(use->uffd);
	gmem_scratch_unmap(&use->mem);
}

static int begin(struct gmem_probe *probe, struct use *use, enum gmem_scratch_kind kind, size_t npages,
		 uint64_t features)
{
	int rc;

	use->mem = (struct gmem_scratch){ .fd = -1, .vm = -1 };
	use->uffd = gmem_probe_uffd_open(probe, features, NULL);
	if (use->uffd < 0)
		return use->uffd;
	rc = gmem_probe_fd(probe, gmem_scratch_map(&use->mem, kind, npages));
	if (rc)
		end(use);
	return rc;
}

static int enlist(struct use *use, uint64_t mode)
{
	struct uffdio_register reg = { .range = { .start = (uintptr_t)use->mem.addr, .len = use->mem.len },
				       .mode = mode };

	return gmem_sys_ioctl(use->uffd, UFFDIO_REGISTER, &reg);
}

/*
 * Looks at a byte once nothing can wait for it any more: a command that claimed success and did nothing shows as a
 * zero byte, not as a reader that hangs.
 */
static int look(struct use *use, size_t off)
{
	struct uffdio_range range = { .start = (uintptr_t)use->mem.addr, .len = use->mem.len };
	unsigned char byte;
	int rc = gmem_sys_ioctl(use->uffd, UFFDIO_UNREGISTER, &range);

	if (rc)
		return rc;
	rc = (int)gmem_sys_peek(&byte, use->mem.addr + off, 1);
	return rc < 0 ? rc : byte;
}

static int expect(int got, int want)
{
	return got < 0 ? got : got == want ? 0 : -EIO;
}

static int use_copy(struct gmem_probe *probe)
{
	struct gmem_scratch src;
	struct uffdio_copy copy;
	struct use use;
	int rc = begin(probe, &use, GMEM_SCRATCH_SHMEM, 1, 0);

	if (rc)
		return rc;
	rc = gmem_scratch_map(&src, GMEM_SCRATCH_ANON, 1);
	if (!rc)
		rc = enlist(&use, UFFDIO_REGISTER_MODE_MISSING);
	if (!rc) {
		memset(src.addr, PATTERN, src.len);
		copy = (struct uffdio_copy){ .dst = (uintptr_t)use.mem.addr,
					     .src = (uintptr_t)src.addr,
					     .len = src.len };
		rc = gmem_sys_ioctl(use.uffd, UFFDIO_COPY, &copy);
	}
	if (!rc)
		rc = expect(look(&use, 0), PATTERN);
	gmem_scratch_unmap(&src);
	end(&use);
	return rc;
}

static int use_continue(struct gmem_probe *probe)
{
	struct gmem_uffdio_continue cont;
	const unsigned char byte = PATTERN;
	struct use use;
	int rc = begin(probe, &use, GMEM_SCRATCH_SHMEM, 1, 0);

	if (rc)
		return rc;
	rc = enlist(&use, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
	if (!rc && pwrite(use.mem.fd, &byte, 1, 0) != 1)
		rc = -errno;
	if (!rc) {
		cont = (struct gmem_uffdio_continue){ .range = { .start = (uintptr_t)use.mem.addr,
								 .len = use.mem.page } };
		rc = gmem_sys_ioctl(use.uffd, UFFDIO_CONTINUE, &cont);
		if (!rc && cont.mapped != (int64_t)use.mem.page)
			rc = -EIO;
	}
	if (!rc)
		rc = expect(look(&use, 0), PATTERN);
	end(&use);
	return rc;
}

static int use_zeropage(struct gmem_probe *probe)
{
	struct uffdio_zeropage zero;
	struct use use;
	int rc = begin(probe, &use, GMEM_SCRATCH_ANON, 1, 0);

	if (rc)
		return rc;
	rc = enlist(&use, UFFDIO_REGISTER_MODE_MISSING);
	if (!rc) {
		zero = (struct uffdio_zeropage){ .range = { .start = (uintptr_t)use.mem.addr, .len = use.mem.page } };
		rc = gmem_sys_ioctl(use.uffd, UFFDIO_ZEROPAGE, &zero);
		if (!rc && zero.zeropage != (int64_t)use.mem.page)
			rc = -EIO;
	}
	if (!rc)
		rc = expect(look(&use, 0), 0);
	end(&use);
	return rc;
}

static int use_move(struct gmem_probe *probe)
{
	struct gmem_uffdio_move move;
	struct use use;
	int rc = begin(probe, &use, GMEM_SCRATCH_ANON, 2, UFFD_FEATURE_MOVE);

	if (rc)
		return rc;
	memset(use.mem.addr, PATTERN, use.mem.page);
	rc = enlist(&use, UFFDIO_REGISTER_MODE_MISSING);
	if (!rc) {
		move = (struct gmem_uffdio_move){ .dst = (uintptr_t)use.mem.addr + use.mem.page,
						  .src = (uintptr_t)use.mem.addr,
						  .len = use.mem.page };
		rc = gmem_sys_ioctl(use.uffd, UFFDIO_MOVE, &move);
	}
	if (!rc)
		rc = expect(look(&use, use.mem.page), PATTERN);
	end(&use);
	return rc;
}

/* 1: the page is write-protected by userfaultfd, 0: it is not. */
static int write_protected(const char *addr, size_t page)
{
	uint64_t entry;
	int fd = gmem_sys_open("/proc/self/pagemap", O_RDONLY);
	ssize_t n;
	int rc;

	if (fd < 0)
		return fd;
	n = pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)addr / page * sizeof(entry)));
	rc = n < 0 ? -errno : n != sizeof(entry) ? -EIO : (entry & PAGEMAP_WP) != 0;
	close(fd);
	return rc;
}

static int use_wp(struct gmem_probe *probe, enum gmem_scratch_kind kind, uint64_t features, bool touch, bool write)
{
	struct uffdio_writeprotect wp;
	struct use use;
	int rc = begin(probe, &use, kind, 1, features);

	if (rc)
		return rc;
	if (touch)
		*(volatile char *)use.mem.addr = PATTERN;
	rc = enlist(&use, UFFDIO_REGISTER_MODE_WP);
	if (!rc) {
		wp = (struct uffdio_writeprotect){ .range = { .start = (uintptr_t)use.mem.addr, .len = use.mem.page },
						   .mode = UFFDIO_WRITEPROTECT_MODE_WP };
		rc = gmem_sys_ioctl(use.uffd, UFFDIO_WRITEPROTECT, &wp);
	}
	if (!rc)
		rc = expect(write_protected(use.mem.addr, use.mem.page), 1);
	/* Asynchronous: the write goes through by itself and leaves its trace. */
	if (!rc && write) {
		*(volatile char *)use.mem.addr = 1;
		rc = expect(write_protected(use.mem.addr, use.mem.page), 0);
	}
	end(&use);
	return rc;
}

/* A marker makes the page unreadable, outlives its registration, and MADV_DONTNEED takes it away. */
static int use_marker(struct gmem_probe *probe, enum gmem_scratch_kind kind)
{
	struct gmem_uffdio_poison poison;
	struct use use;
	int rc = begin(probe, &use, kind, 1, 0);

	if (rc)
		return rc;
	rc = enlist(&use, UFFDIO_REGISTER_MODE_MISSING);
	if (!rc) {
		poison = (struct gmem_uffdio_poison){ .range = { .start = (uintptr_t)use.mem.addr,
								 .len = use.mem.page } };
		rc = gmem_sys_ioctl(use.uffd, UFFDIO_POISON, &poison);
	}
	if (!rc) {
		rc = look(&use, 0);
		rc = rc == -EFAULT || rc == -EHWPOISON ? 0 : rc < 0 ? rc : -EIO;
	}
	/* Without a free huge page the page behind the marker cannot be looked at. */
	if (!rc && kind != GMEM_SCRATCH_HUGETLB) {
		unsigned char byte;

		rc = madvise(use.mem.addr, use.mem.len, MADV_DONTNEED) ? -errno :
									 (int)gmem_sys_peek(&byte, use.mem.addr, 1);
		rc = rc < 0 ? rc : 0;
	}
	end(&use);
	return rc;
}

static int use_user_mode_marker(struct gmem_probe *probe)
{
	int how = probe->uffd_how;
	int rc;

	probe->uffd_how = GMEM_UFFD_HOW_USER_MODE;
	rc = use_marker(probe, GMEM_SCRATCH_SHMEM);
	probe->uffd_how = how;
	return rc;
}

static void add(struct gmem_probe *probe, const char *name, int rc, const char *what, const char *advice)
{
	gmem_probe_fd(probe, rc);
	gmem_probe_add(probe, name, gmem_probe_status(rc), what, probe->uffd_how ? advice : "see userfaultfd.full",
		       "%s", gmem_probe_why(rc));
}

void gmem_probe_uffd_use(struct gmem_probe *probe)
{
	add(probe, "userfaultfd.copy", use_copy(probe), "UFFDIO_COPY filled a page of a memfd",
	    "Linux 4.11 or newer with CONFIG_USERFAULTFD=y");
	add(probe, "userfaultfd.continue", use_continue(probe), "UFFDIO_CONTINUE mapped a page filled through the file",
	    "Linux 5.14 or newer, 64-bit x86 or arm");
	add(probe, "userfaultfd.zeropage", use_zeropage(probe), "UFFDIO_ZEROPAGE filled an anonymous page",
	    "Linux 4.3 or newer with CONFIG_USERFAULTFD=y");
	add(probe, "userfaultfd.move", use_move(probe), "UFFDIO_MOVE moved an anonymous page",
	    "Linux 6.8 or newer; nothing in gmem needs it");
	add(probe, "userfaultfd.writeprotect",
	    use_wp(probe, GMEM_SCRATCH_SHMEM, UFFD_FEATURE_WP_HUGETLBFS_SHMEM, true, false),
	    "UFFDIO_WRITEPROTECT protected a page of a memfd", "Linux 5.19 or newer with CONFIG_PTE_MARKER_UFFD_WP=y");
	add(probe, "userfaultfd.wp_unpopulated",
	    use_wp(probe, GMEM_SCRATCH_ANON, UFFD_FEATURE_WP_UNPOPULATED, false, false),
	    "a page that was not there was write-protected", "Linux 6.4 or newer with CONFIG_PTE_MARKER_UFFD_WP=y");
	add(probe, "userfaultfd.wp_async", use_wp(probe, GMEM_SCRATCH_SHMEM, UFFD_FEATURE_WP_ASYNC, true, true),
	    "a write to a protected page went through and left its trace",
	    "Linux 6.7 or newer with CONFIG_PTE_MARKER_UFFD_WP=y");

	add(probe, "markers.anon", use_marker(probe, GMEM_SCRATCH_ANON),
	    "UFFDIO_POISON: a touch of the page is SIGBUS, anonymous memory", "Linux 6.6 or newer");
	add(probe, "markers.shmem", use_marker(probe, GMEM_SCRATCH_SHMEM),
	    "the same on a memfd: lost pages, and private pages of a host view", "Linux 6.6 or newer");
	add(probe, "markers.hugetlb", use_marker(probe, GMEM_SCRATCH_HUGETLB), "the same on huge pages",
	    "Linux 6.6 or newer with CONFIG_HUGETLBFS=y");
	add(probe, "markers.user_mode_only", use_user_mode_marker(probe),
	    "the same through a user-mode-only descriptor", "see userfaultfd.user_mode_only");
}
