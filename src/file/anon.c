/* SPDX-License-Identifier: MIT */
#include "file/anon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "file/backing.h"
#include "sys/hugepages.h"

int gmem_file_check_bytes(const struct gmem_file *file, const char *who)
{
	if (!gmem_file_anon(file))
		return 0;
	return gmem_err(-EOPNOTSUPP, "%s: the memory of another process: its bytes are not here", who);
}

/* ---- backing operations: the table's, and no bytes */

static int adopt(struct gmem_file *file, uint64_t off, uint32_t max)
{
	int n = gmem_backing_absent(file, off);

	return n <= 0 ? n : (int)max;
}

static int insert(struct gmem_file *file, struct gmem_folio *folio)
{
	return -EOPNOTSUPP;
}

static int read_bytes(struct gmem_file *file, uint64_t off, void *buf, uint64_t len)
{
	return -EOPNOTSUPP;
}

static int write_bytes(struct gmem_file *file, uint64_t off, const void *buf, uint64_t len)
{
	return -EOPNOTSUPP;
}

static int allocate(struct gmem_file *file, uint64_t off, uint64_t len)
{
	return -EOPNOTSUPP;
}

/* What is given up of a page on its way in was never copied. */
static int punch(struct gmem_file *file, uint64_t off, uint64_t len)
{
	return 0;
}

static int64_t nowhere(const struct gmem_file *file, uint64_t off)
{
	return -ENXIO;
}

const struct gmem_backing_ops gmem_anon_backing = {
	.can_userfault = gmem_backing_can_userfault,
	.present = gmem_backing_present,
	.lookup = gmem_backing_lookup,
	.adopt = adopt,
	.alloc = gmem_backing_alloc,
	.insert = insert,
	.publish = gmem_backing_publish,
	.remove = gmem_backing_remove,
	.read = read_bytes,
	.write = write_bytes,
	.allocate = allocate,
	.punch = punch,
	.next_data = nowhere,
	.next_hole = nowhere,
};

/* ---- making one */

static int check(uint64_t len, uint64_t page_size)
{
	if (page_size != GMEM_PAGE_SIZE && page_size != GMEM_HUGE_SIZE)
		return gmem_err(-EINVAL, "gmem_file_create_anon: page size %llu: neither %u nor %llu",
				(unsigned long long)page_size, GMEM_PAGE_SIZE, (unsigned long long)GMEM_HUGE_SIZE);
	if (!len || (len & (page_size - 1)) || len > INT64_MAX)
		return gmem_err(-EINVAL, "gmem_file_create_anon: length %llu: not a multiple of %llu above 0",
				(unsigned long long)len, (unsigned long long)page_size);
	return 0;
}

/*
 * The lock is of a description of our own, which goes with the process: one that the caller keeps in a store would keep
 * the lock too, and no successor would ever get it.
 */
static int open_locked(int state_fd)
{
	char path[32];
	int fd, err;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", state_fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return gmem_err_sys(-errno, "gmem_file_create_anon: state_fd %d", state_fd);
	if (!flock(fd, LOCK_EX | LOCK_NB))
		return fd;
	err = errno == EWOULDBLOCK ?
		      gmem_err(-EBUSY, "gmem_file_create_anon: somebody serves this memory: its states are locked") :
		      gmem_err_sys(-errno, "gmem_file_create_anon: lock of the states");
	close(fd);
	return err;
}

/*
 * A server that was killed while it made the table has brought no page in: its generation, which is said last, is not
 * there. The table is made again.
 */
static int drop_unfinished(int fd, struct stat *st)
{
	struct gmem_state_header header = { 0 };

	if (!st->st_size)
		return 0;
	if (pread(fd, &header, sizeof(header), 0) < 0)
		return gmem_err_sys(-errno, "gmem_file_create_anon: states");
	if (atomic_load(&header.generation) || (header.magic && header.magic != GMEM_STATE_MAGIC))
		return 0;
	if (ftruncate(fd, 0))
		return gmem_err_sys(-errno, "gmem_file_create_anon: states");
	st->st_size = 0;
	return 0;
}

/* A file of states that another server has left, or an empty one. */
static int take_states(struct gmem_file *file, int state_fd)
{
	struct stat st;
	int fd = open_locked(state_fd), err;

	if (fd < 0)
		return fd;
	err = fstat(fd, &st) ? gmem_err_sys(-errno, "gmem_file_create_anon: state_fd %d", state_fd) :
			       drop_unfinished(fd, &st);
	if (err)
		;
	else if (!st.st_size)
		err = gmem_state_create_in(&file->state, fd, file->len >> GMEM_PAGE_SHIFT);
	else
		err = gmem_state_open_in(&file->state, fd);
	if (err) {
		close(fd);
		return err;
	}
	if (file->state.npages << GMEM_PAGE_SHIFT != file->len ||
	    (st.st_size && file->state.header->flags != file->flags))
		return gmem_err(-EINVAL, "gmem_file_create_anon: these states are of a memory of %llu bytes%s",
				(unsigned long long)file->state.npages << GMEM_PAGE_SHIFT,
				file->state.header->flags & GMEM_FILE_HUGETLB ? " in huge pages" : "");
	return 0;
}

/* Page locks of servers before this one are of dead ones: their states' lock is ours. */
static int raise_generation(struct gmem_file *file)
{
	uint32_t next = atomic_load(&file->state.header->generation) + 1;

	if (next > GMEM_MAX_GENERATION - 1)
		return gmem_err(-EOVERFLOW, "gmem_file_create_anon: this memory has had too many servers");
	atomic_store(&file->state.header->generation, next);
	atomic_store(&file->state.header->server_pid, getpid());
	gmem_file_set_generation(file, next);
	return 0;
}

int gmem_file_create_anon(uint64_t len, uint64_t page_size, int state_fd, struct gmem_file **ret)
{
	struct gmem_file *file;
	int err = check(len, page_size);

	if (err)
		return err;
	file = gmem_file_new();
	if (!file)
		return gmem_err_sys(-ENOMEM, "gmem_file_create_anon");
	file->len = len;
	file->engine = GMEM_ENGINE_USER;
	file->flags = GMEM_FILE_ANON | (page_size == GMEM_HUGE_SIZE ? GMEM_FILE_HUGETLB : 0);
	gmem_file_set_backing(file);
	file->why = strdup("another process's memory: its pages go there, and their states are kept here");
	err = file->why ? 0 : gmem_err_sys(-ENOMEM, "gmem_file_create_anon");
	if (!err)
		err = state_fd < 0 ? gmem_state_create(&file->state, len >> GMEM_PAGE_SHIFT, false) :
				     take_states(file, state_fd);
	if (!err) {
		file->state.header->engine = file->engine;
		file->state.header->flags = file->flags;
		err = raise_generation(file);
	}
	if (err) {
		gmem_file_free(file);
		return gmem_err_prefix(err, "gmem_file_create_anon");
	}
	*ret = file;
	return 0;
}
