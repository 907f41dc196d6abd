/* SPDX-License-Identifier: MIT */
#include "file/anon.h"
#include "file/tenure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"

#define MAX_NAME 64

static int check_opts(uint64_t len, const struct gmem_file_opts *opts)
{
	if (!len || !gmem_page_aligned(len) || len > INT64_MAX)
		return gmem_err(-EINVAL, "gmem_file_create: length %llu: not a multiple of %u above 0",
				(unsigned long long)len, GMEM_PAGE_SIZE);
	if (!opts)
		return 0;
	if (!gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_file_create: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (opts->flags & ~(GMEM_FILE_INIT_PRIVATE | GMEM_FILE_STRICT | GMEM_FILE_NO_MMAP | GMEM_FILE_HUGETLB |
			    GMEM_FILE_THP | GMEM_FILE_HUGE_FALLBACK))
		return gmem_err(-EINVAL, "gmem_file_create: flags 0x%x: unknown", opts->flags);
	if (opts->needs &
	    ~(GMEM_NEED_CONVERSION | GMEM_NEED_USERFAULT | GMEM_NEED_NUMA | GMEM_NEED_VCPU | GMEM_NEED_KVM_SLOT))
		return gmem_err(-EINVAL, "gmem_file_create: needs 0x%x: unknown", opts->needs);
	if (opts->engine != GMEM_ENGINE_AUTO && opts->engine != GMEM_ENGINE_USER && opts->engine != GMEM_ENGINE_KERNEL)
		return gmem_err(-EINVAL, "gmem_file_create: engine %d: unknown", (int)opts->engine);
	if (opts->name && (!*opts->name || strlen(opts->name) > MAX_NAME || strchr(opts->name, '/')))
		return gmem_err(-EINVAL, "gmem_file_create: name \"%s\": empty, longer than %d or with a '/'",
				opts->name, MAX_NAME);
	return gmem_hugetlb_check(len, opts->flags);
}

/* A page that children made by fork(2) find wiped; NULL: the kernel, or who plays it, does not do that. */
static struct gmem_file_own *map_own(void)
{
	struct gmem_file_own *own =
		mmap(NULL, GMEM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (own == MAP_FAILED)
		return NULL;
	/* Some emulators take any advice for a hint, and do nothing: they take also one that does not exist. */
	if (madvise(own, GMEM_PAGE_SIZE, MADV_WIPEONFORK) || !madvise(own, GMEM_PAGE_SIZE, -1)) {
		munmap(own, GMEM_PAGE_SIZE);
		return NULL;
	}
	own->ours = 1;
	return own;
}

struct gmem_file *gmem_file_new(void)
{
	struct gmem_file *file = calloc(1, sizeof(*file));

	if (!file)
		return NULL;
	file->own = map_own();
	file->pid = getpid();
	gmem_rwlock_init(&file->invalidate_lock, GMEM_LOCK_INVALIDATE);
	gmem_rwlock_init(&file->removals, GMEM_LOCK_LEAF);
	pthread_mutex_init(&file->gates_m, NULL);
	file->fd = -1;
	file->kvm_vm = -1;
	file->state.fd = -1;
	file->maps_fd = -1;
	file->empty_fd = -1;
	file->gates_uffd = -1;
	file->round.life = -1;
	atomic_store(&file->refs, 1);
	return file;
}

int gmem_file_create(uint64_t len, const struct gmem_file_opts *opts, struct gmem_file **ret)
{
	char name[MAX_NAME + sizeof("gmem-")];
	struct gmem_file *file;
	struct stat st;
	int err;

	err = check_opts(len, opts);
	if (err)
		return err;
	file = gmem_file_new();
	if (!file)
		return gmem_err_sys(-ENOMEM, "gmem_file_create");
	snprintf(name, sizeof(name), "gmem-%s", opts && opts->name ? opts->name : "ram");
	file->len = len;
	file->flags = opts ? opts->flags : 0;
	err = gmem_engine_make(file, opts, name);
	if (err)
		goto out_free;
	err = gmem_state_create(&file->state, len >> GMEM_PAGE_SHIFT, file->flags & GMEM_FILE_INIT_PRIVATE);
	if (err) {
		gmem_err_prefix(err, "gmem_file_create");
		goto out_free;
	}
	if (fstat(file->fd, &st)) {
		err = gmem_err_sys(-errno, "gmem_file_create: fstat");
		goto out_free;
	}
	file->state.header->engine = file->engine;
	file->state.header->flags = file->flags;
	file->state.header->dev = st.st_dev;
	file->state.header->ino = st.st_ino;
	*ret = file;
	return 0;

out_free:
	gmem_file_free(file);
	return err;
}

/* The engine of a file that was opened is what its maker chose. */
static int set_engine(struct gmem_file *file)
{
	uint32_t engine = file->state.header->engine;

	if (engine != GMEM_ENGINE_USER && engine != GMEM_ENGINE_KERNEL)
		return gmem_err(-EINVAL, "gmem_file_open: engine %u: unknown", engine);
	file->engine = engine;
	file->flags = file->state.header->flags;
	gmem_file_set_backing(file);
	file->why = strdup(engine == GMEM_ENGINE_USER ? "user engine: its maker's choice" :
							"kernel engine: its maker's choice");
	return file->why ? 0 : gmem_err_sys(-ENOMEM, "gmem_file_open");
}

static int open_as(uint32_t use, int fd, int state_fd, struct gmem_file **ret)
{
	struct gmem_file *file;
	struct stat st;
	int err;

	if (fstat(fd, &st))
		return gmem_err_sys(-errno, "gmem_file_open: memory");
	file = gmem_file_new();
	if (!file)
		return gmem_err_sys(-ENOMEM, "gmem_file_open");
	err = gmem_state_open(&file->state, state_fd);
	if (err) {
		gmem_err_prefix(err, "gmem_file_open");
		goto out_free;
	}
	if (file->state.header->dev != st.st_dev || file->state.header->ino != st.st_ino ||
	    (uint64_t)st.st_size != file->state.npages << GMEM_PAGE_SHIFT) {
		err = gmem_err(-EINVAL, "gmem_file_open: this page-state table belongs to another memory file");
		goto out_free;
	}
	file->opened = true;
	err = gmem_state_claim(&file->state, use);
	if (err) {
		gmem_err(err, use == GMEM_USE_PEER ?
				      "gmem_file_open: this memory has, or had, guests: only the object "
				      "that made it can tell them what is absent" :
				      "gmem_file_open: this memory has, or had, private pages or guests");
		goto out_free;
	}
	file->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (file->fd < 0) {
		err = gmem_err_sys(-errno, "gmem_file_open");
		goto out_free;
	}
	file->len = (uint64_t)st.st_size;
	err = set_engine(file);
	if (err)
		goto out_free;
	*ret = file;
	return 0;

out_free:
	gmem_file_free(file);
	return err;
}

int gmem_file_open_kept(int fd, int state_fd, struct gmem_file **ret)
{
	return open_as(GMEM_USE_KEEPER, fd, state_fd, ret);
}

int gmem_file_open(int fd, int state_fd, struct gmem_file **ret)
{
	struct gmem_file *file = NULL;
	int err = open_as(GMEM_USE_PEER, fd, state_fd, &file);

	if (err)
		return err;
	err = gmem_peer_join(file);
	if (err) {
		gmem_file_free(file);
		return err;
	}
	*ret = file;
	return 0;
}

bool gmem_file_ours(const struct gmem_file *file)
{
	/* getpid(2) is a system call, a fifth of what it takes to let the host into a page again. */
	return file->own ? file->own->ours : file->pid == getpid();
}

void gmem_file_get(struct gmem_file *file)
{
	atomic_fetch_add_explicit(&file->refs, 1, memory_order_relaxed);
}

static void destroy(struct gmem_file *file)
{
	/* In a forked child threads seem to sleep in it that are not there, and it would wait for them. */
	bool ours = gmem_file_ours(file);
	struct gmem_supply *next;

	gmem_peer_leave(file);
	if (file->round.life >= 0)
		close(file->round.life);
	for (struct gmem_supply *s = file->supplies; s; s = next) {
		next = s->next;
		free(s);
	}
	gmem_file_close_window(file);
	gmem_hugetlb_destroy(file);
	if (file->pins)
		munmap(file->pins, (file->len >> GMEM_PAGE_SHIFT) * sizeof(uint32_t));
	if (file->own)
		munmap(file->own, GMEM_PAGE_SIZE);
	gmem_state_close(&file->state);
	if (file->fd >= 0)
		close(file->fd);
	if (file->kvm_vm >= 0)
		close(file->kvm_vm);
	free(file->why);
	gmem_tenure_destroy(file);
	free(file->bindings.at);
	if (file->maps_fd >= 0)
		close(file->maps_fd);
	if (file->empty_fd >= 0)
		close(file->empty_fd);
	if (file->gates_uffd >= 0)
		close(file->gates_uffd);
	if (ours) {
		gmem_rwlock_destroy(&file->removals);
		gmem_rwlock_destroy(&file->invalidate_lock);
	}
	pthread_mutex_destroy(&file->gates_m);
	free(file);
}

void gmem_file_put(struct gmem_file *file)
{
	/* Acquire and release: the last one sees what all others did. */
	if (atomic_fetch_sub_explicit(&file->refs, 1, memory_order_acq_rel) == 1)
		destroy(file);
}

void gmem_file_free(struct gmem_file *file)
{
	if (!file)
		return;
	/* A child made by fork(2) has copies of them, whose locks may be held by threads it does not have. */
	if (gmem_file_ours(file))
		gmem_file_close_bindings(file);
	gmem_file_put(file);
}

uint64_t gmem_file_size(const struct gmem_file *file)
{
	return file->len;
}

uint64_t gmem_file_page_size(const struct gmem_file *file)
{
	return file->page_size;
}

int gmem_file_fd(const struct gmem_file *file)
{
	/* From now on there may be mappings that are no views: gmem_foreign_look(). */
	atomic_store(&file->state.header->exported, 1);
	return file->fd;
}

int gmem_file_kvm_vm(const struct gmem_file *file)
{
	return file->kvm_vm;
}

enum gmem_engine gmem_file_engine(const struct gmem_file *file)
{
	return file->engine;
}

const char *gmem_file_explain(const struct gmem_file *file)
{
	return file->why;
}

int gmem_file_state_fd(const struct gmem_file *file)
{
	return file->state.fd;
}

void gmem_file_set_generation(struct gmem_file *file, uint32_t generation)
{
	file->generation = generation;
}

int gmem_file_check_range(const struct gmem_file *file, const char *who, uint64_t off, uint64_t len)
{
	if (!len || !gmem_page_aligned(off) || !gmem_page_aligned(len))
		return gmem_err(-EINVAL, "%s: off 0x%llx, len 0x%llx: not multiples of %u, or empty", who,
				(unsigned long long)off, (unsigned long long)len, GMEM_PAGE_SIZE);
	if (!gmem_range_inside(off, len, file->len))
		return gmem_err(-ERANGE, "%s: off 0x%llx, len 0x%llx: past the end (0x%llx)", who,
				(unsigned long long)off, (unsigned long long)len, (unsigned long long)file->len);
	return 0;
}

int gmem_file_page_state(const struct gmem_file *file, uint64_t off)
{
	uint32_t word;

	if (off >= file->len)
		return gmem_err(-ERANGE, "gmem_file_page_state: off 0x%llx: past the end (0x%llx)",
				(unsigned long long)off, (unsigned long long)file->len);
	word = gmem_state_word(&file->state, off >> GMEM_PAGE_SHIFT);
	if (word & GMEM_WORD_POISONED)
		return GMEM_PAGE_POISONED;
	switch (gmem_word_content(word)) {
	case GMEM_WORD_UPTODATE:
		return GMEM_PAGE_UPTODATE;
	case GMEM_WORD_REMOVED:
		return GMEM_PAGE_REMOVED;
	default:
		return word & GMEM_WORD_LOCKED ? GMEM_PAGE_FILLING : GMEM_PAGE_ABSENT;
	}
}

/* Bytes of memory in use; a guest_memfd does not say, but what can be mapped of it can be looked at. */
static uint64_t resident(const struct gmem_file *file, const struct stat *st)
{
	uint64_t sum = 0;
	int64_t at, end;

	if (file->engine == GMEM_ENGINE_USER)
		return (uint64_t)st->st_blocks * 512;
	if (file->flags & GMEM_FILE_NO_MMAP)
		return 0;
	for (at = file->ops->next_data(file, 0); at >= 0; at = file->ops->next_data(file, (uint64_t)end)) {
		end = file->ops->next_hole(file, (uint64_t)at);
		if (end < 0)
			end = (int64_t)file->len;
		sum += (uint64_t)(end - at);
	}
	return sum;
}

int gmem_file_query(const struct gmem_file *file, struct gmem_file_counts *counts)
{
	struct gmem_file_counts c = { .size = sizeof(c) };
	struct stat st = { 0 };

	if (counts->size < sizeof(c))
		return gmem_err(-EINVAL, "gmem_file_query: size %zu: expected %zu", counts->size, sizeof(c));
	if (!gmem_file_anon(file) && fstat(file->fd, &st))
		return gmem_err_sys(-errno, "gmem_file_query");
	for (uint64_t page = 0; page < file->state.npages; page++) {
		if (page % (GMEM_PAGE_SIZE / sizeof(uint32_t)) == 0) {
			uint64_t next = gmem_min_u64(gmem_state_next_used(&file->state, page), file->state.npages);

			c.absent += next - page;
			page = next;
			if (page == file->state.npages)
				break;
		}
		switch (gmem_file_page_state(file, page << GMEM_PAGE_SHIFT)) {
		case GMEM_PAGE_ABSENT:
			c.absent++;
			break;
		case GMEM_PAGE_FILLING:
			c.filling++;
			break;
		case GMEM_PAGE_UPTODATE:
			c.uptodate++;
			break;
		case GMEM_PAGE_REMOVED:
			c.removed++;
			break;
		default:
			c.poisoned++;
			break;
		}
	}
	c.resident = resident(file, &st);
	*counts = c;
	return 0;
}

pid_t gmem_file_want_fill(struct gmem_file *file)
{
	atomic_store(&file->state.header->fill_wanted, 1);
	return gmem_state_server_alive(&file->state) ? atomic_load(&file->state.header->server_pid) : 0;
}
