/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>

#include "base/err.h"
#include "gmem.h"
#include "link/serve/hello_parts.h"
#include "sys/descriptor.h"
#include "sys/uapi.h"

static int check_uffd(const struct gmem_hello_message *m, int fd, size_t number, uint64_t *ret_features)
{
	/* What a pager needs of a memory file's. */
	const uint64_t attach = m->page_size == GMEM_HELLO_HUGE_PAGE ?
					UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS :
					UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
	int err = gmem_fd_uffd_features(fd, ret_features);

	if (err == -EINVAL)
		return gmem_err(-EBADF, "descriptor %zu is a userfaultfd without UFFDIO_API", number);
	if (err == -EBADF)
		return gmem_err(-EBADF, "descriptor %zu is no userfaultfd", number);
	if (err)
		return gmem_err_sys(err, "descriptor %zu", number);
	if (*ret_features & UFFD_FEATURE_EVENT_FORK)
		return gmem_err(-EBADF, "descriptor %zu is a userfaultfd that hands out descriptors (EVENT_FORK)",
				number);
	if (m->kind == GMEM_HELLO_ATTACH && (*ret_features & attach) != attach)
		return gmem_err(
			-EBADF,
			"descriptor %zu is a userfaultfd without what memory files need (MISSING_SHMEM, MINOR_SHMEM)",
			number);
	return 0;
}

/* One end of what the regions take of the memory file. */
static uint64_t file_end(const struct gmem_hello_message *m)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < m->nregions; i++)
		if (m->regions[i].file_off + m->regions[i].len > end)
			end = m->regions[i].file_off + m->regions[i].len;
	return end;
}

static int check_memfd(int fd, const char *what, int seals, uint64_t min_len)
{
	uint64_t len;
	int err = gmem_fd_memfd_size(fd, seals, &len);

	if (err == -EPERM)
		return gmem_err(-EBADF, "the %s is not sealed against a change of its size", what);
	if (err)
		return gmem_err(-EBADF, "the %s is no memory file", what);
	if (len < min_len)
		return gmem_err(-EBADF, "the %s has %llu bytes, not %llu", what, (unsigned long long)len,
				(unsigned long long)min_len);
	return 0;
}

static int check_guest_memfd(int fd)
{
	int r = gmem_fd_is_guest_memfd(fd);

	if (r < 0)
		return gmem_err_sys(r, "descriptor 1");
	return r ? 0 : gmem_err(-EBADF, "descriptor 1 is no guest_memfd");
}

void gmem_hello_fds_wanted(const struct gmem_hello_message *m, size_t *ret_min, size_t *ret_max)
{
	switch (m->kind) {
	case GMEM_HELLO_ATTACH:
		*ret_min = *ret_max = m->nuffds + 2;
		break;
	case GMEM_HELLO_GUEST_MEMFD:
		*ret_min = 2;
		*ret_max = 3;
		break;
	default:
		*ret_min = 1;
		*ret_max = 1;
	}
}

/* By their number alone; the text of that branch has not always said what it is. */
static bool without_saying(const struct gmem_hello_message *m, size_t nfds)
{
	return m->kind == GMEM_HELLO_FIRECRACKER && !m->no_guest_memfd && nfds == 3;
}

static int check_others(const struct gmem_hello_message *m, const int *fds, size_t nfds)
{
	const int size_seals = F_SEAL_SHRINK | F_SEAL_GROW;
	int err = 0;

	if (m->kind == GMEM_HELLO_ATTACH) {
		err = check_memfd(fds[m->nuffds], "memory file", size_seals, file_end(m));
		return err ? err : check_memfd(fds[m->nuffds + 1], "page-state table", size_seals, GMEM_PAGE_SIZE);
	}
	if (nfds > 1)
		err = check_guest_memfd(fds[1]);
	/* A bit a page. */
	if (!err && nfds > 2)
		err = check_memfd(fds[2], "userfault bitmap", 0, (m->total_len / GMEM_PAGE_SIZE + 7) / 8);
	return err;
}

int gmem_hello_give_fds(struct gmem_hello_message *m, const int *fds, size_t nfds)
{
	uint64_t features[GMEM_HELLO_MAX_UFFDS];
	size_t min, max;
	int err;

	gmem_hello_fds_wanted(m, &min, &max);
	if (nfds < min)
		return gmem_err(-EPROTO, "%zu descriptors, not %zu", nfds, min);
	if (nfds > max && !without_saying(m, nfds))
		return gmem_err(-EPROTO, "%zu descriptors, more than %zu", nfds, max);
	for (uint32_t i = 0; i < m->nuffds; i++) {
		err = check_uffd(m, fds[i], i, &features[i]);
		if (err)
			return err;
	}
	err = check_others(m, fds, nfds);
	if (err)
		return err;
	for (uint32_t i = 0; i < m->nuffds; i++) {
		m->uffds[i] = fds[i];
		m->uffd_features[i] = features[i];
	}
	if (without_saying(m, nfds))
		m->kind = GMEM_HELLO_GUEST_MEMFD;
	if (m->kind == GMEM_HELLO_FIRECRACKER)
		return 0;
	m->memory_fd = fds[m->nuffds];
	if (m->kind == GMEM_HELLO_ATTACH)
		m->state_fd = fds[m->nuffds + 1];
	else if (nfds > 2)
		m->bitmap_fd = fds[2];
	return 0;
}

size_t gmem_hello_fds(const struct gmem_hello_message *m, int fds[GMEM_HELLO_MAX_FDS])
{
	size_t n = 0;

	for (uint32_t i = 0; i < m->nuffds; i++)
		fds[n++] = m->uffds[i];
	if (m->kind != GMEM_HELLO_FIRECRACKER)
		fds[n++] = m->memory_fd;
	if (m->kind == GMEM_HELLO_ATTACH)
		fds[n++] = m->state_fd;
	else if (m->kind == GMEM_HELLO_GUEST_MEMFD && m->bitmap_fd >= 0)
		fds[n++] = m->bitmap_fd;
	return n;
}
