/* SPDX-License-Identifier: MIT */
/* Views of the two files, and system calls on their addresses. */
#define TAP_NO_MAIN
#include "differential.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "sys/call.h"
#include "sys/uapi.h"
#include "sys/uffd.h"
#include "tap.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* ---- mapping */

static bool can_map(const struct world *w, const struct args *a)
{
	return w->side[KERNEL].file && w->side[USER].file && !diff_view(&w->side[KERNEL], a) &&
	       !diff_view(&w->side[USER], a);
}

/* What mmap(2) of the same descriptor says to the same; the library alone has lengths that are not whole pages. */
static long by_mmap(const struct side *s, const struct args *a, int prot)
{
	void *p;

	if (a->off % P || a->len % P || (prot & ~(PROT_READ | PROT_WRITE)))
		return -EINVAL;
	p = mmap(NULL, a->len, prot, MAP_SHARED | MAP_NORESERVE, gmem_file_fd(s->file), (off_t)a->off);
	if (p == MAP_FAILED)
		return -errno;
	munmap(p, a->len);
	return 0;
}

/* The library on the kernel's file, the kernel itself, and the library on the user engine's: three answers. */
static void run_map(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	int prot = a->kind % 16 ? a->prot : (int)(a->more[0] % 16);
	struct gmem_view **at = &s->view[a->which % NVIEWS];

	(void)w;
	r->ret = gmem_view_map(s->file, a->off, a->len, prot, at);
	r->value[0] = (uint64_t)(s->who == KERNEL ? by_mmap(s, a, prot) : r->ret);
	if (!r->ret)
		r->value[1] = gmem_view_len(*at);
}

static void run_unmap(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w, (void)r;
	gmem_view_unmap(s->view[a->which % NVIEWS]);
	s->view[a->which % NVIEWS] = NULL;
}

/* The second half goes where there is no view yet. */
static struct gmem_view **second(struct side *s, const struct args *a)
{
	return &s->view[a->more[2] % NVIEWS];
}

static bool can_split(const struct world *w, const struct args *a)
{
	return diff_have_view(w, a) && !w->side[KERNEL].view[a->more[2] % NVIEWS] &&
	       !w->side[USER].view[a->more[2] % NVIEWS];
}

static void run_split(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct gmem_view *view = diff_view(s, a);
	uint64_t len = a->kind % 8 ? a->at % gmem_view_len(view) & ~(P - 1) : a->len;

	(void)w;
	r->ret = gmem_view_split(view, len, second(s, a));
	r->value[0] = gmem_view_len(view);
	if (!r->ret)
		r->value[1] = gmem_view_len(*second(s, a));
}

/* Longer, shorter, elsewhere. Whether there is room to stay is a matter of the address space, so it must go. */
static void run_remap(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct gmem_view *view = diff_view(s, a);
	uint64_t len = a->kind % 8 ? (1 + a->n % (w->npages + 4)) * P : a->len, room = (len + 2 * P - 1) & ~(P - 1);
	bool shrink = len <= gmem_view_len(view);
	char *to = NULL;

	if (!shrink || a->kind & 8) {
		to = len && len < 1ull << 40 ?
			     mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) :
			     MAP_FAILED;
		if (to == MAP_FAILED)
			to = NULL;
	}
	r->ret = gmem_view_remap(view, len, to);
	r->value[0] = gmem_view_len(view);
	if (to)
		munmap(r->ret ? to : to + len, r->ret ? room : room - len);
}

/* ---- parts of a view */

static char *base(const struct side *s, const struct args *a)
{
	return gmem_view_addr(diff_view(s, a));
}

static uint64_t size(const struct side *s, const struct args *a)
{
	return gmem_view_len(diff_view(s, a));
}

/* Some bytes of it. */
static void part(const struct side *s, const struct args *a, uint64_t max, uint64_t *at, uint64_t *n)
{
	uint64_t len = size(s, a);

	*at = a->at % len;
	*n = a->n % max;
	if (*n > len - *at)
		*n = len - *at;
}

/* Some pages of it, or bytes where `a` says so. */
static void pages(const struct side *s, const struct args *a, uint64_t *at, uint64_t *n)
{
	part(s, a, 16 * P, at, n);
	if (a->more[3] % 16)
		*at &= ~(P - 1);
	if (!*n && a->more[3] % 8)
		*n = P;
}

static void run_load(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;

	(void)w;
	part(s, a, a->kind % 4 ? 256 : 3 * P, &at, &n);
	diff_read(base(s, a), base(s, a) + at, n, r);
}

static void run_store(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;

	(void)w;
	part(s, a, a->kind % 4 ? 256 : 3 * P, &at, &n);
	diff_write(base(s, a), base(s, a) + at, n, a->byte, r);
}

/* The same signal at the same place; a marker has another si_code. */
static enum difference excuse_touch(const struct world *w, const struct args *a, const struct answer *k,
				    const struct answer *u, unsigned int *heal)
{
	struct answer same = *k;

	(void)a, (void)heal;
	same.code = u->code;
	if (!diff_private(w) && !w->converts)
		return SAME;
	return k->sig == SIGBUS && k->code == BUS_ADRERR && !memcmp(&same, u, sizeof(same)) ? DIFF_MARKERS : SAME;
}

static const int advices[] = {
	MADV_NORMAL,	  MADV_RANDOM,
	MADV_SEQUENTIAL,  MADV_WILLNEED,
	MADV_DONTNEED,	  MADV_REMOVE,
	MADV_REMOVE,	  MADV_HUGEPAGE,
	MADV_NOHUGEPAGE,  MADV_MERGEABLE,
	MADV_COLLAPSE,	  MADV_FREE,
	MADV_DONTDUMP,	  MADV_DODUMP,
	MADV_COLD,	  MADV_PAGEOUT,
	MADV_DONTNEED,	  MADV_POPULATE_READ,
	MADV_WIPEONFORK,  MADV_DONTFORK,
	MADV_DOFORK,	  MADV_POPULATE_WRITE,
	MADV_UNMERGEABLE, MADV_DONTNEED_LOCKED,
	MADV_KEEPONFORK,  77,
};

static int advice(const struct args *a)
{
	return advices[a->kind % (sizeof(advices) / sizeof(advices[0]))];
}

/* It takes the markers of private pages away with the translations, as gmem_view(3) says. */
static bool unmarks(const struct world *w, const struct args *a)
{
	return (diff_private(w) || w->converts) && (advice(a) == MADV_DONTNEED || advice(a) == MADV_DONTNEED_LOCKED);
}

static void run_madvise(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;

	pages(s, a, &at, &n);
	r->ret = diff_errno(madvise(base(s, a) + at, n, advice(a)));
	if (unmarks(w, a)) {
		diff_read(base(s, a), base(s, a) + at, 1, r);
		run_unmap(w, s, a, r);
	}
}

static enum difference excuse_madvise(const struct world *w, const struct args *a, const struct answer *k,
				      const struct answer *u, unsigned int *heal)
{
	int how = advice(a);

	if (how == MADV_COLLAPSE && k->ret == -EINVAL)
		return DIFF_COLLAPSE;
	if ((how == MADV_POPULATE_READ || how == MADV_POPULATE_WRITE) && diff_private(w) && k->ret == -EFAULT &&
	    u->ret == -EHWPOISON)
		return DIFF_MARKERS;
	return unmarks(w, a) && k->ret == u->ret && k->sig == SIGBUS ? DIFF_MARKERS : SAME;
}

static void run_mprotect(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;

	(void)w;
	pages(s, a, &at, &n);
	r->ret = diff_errno(mprotect(base(s, a) + at, n, a->kind % 16 ? a->prot : a->prot | PROT_EXEC));
}

static enum difference excuse_mprotect(const struct world *w, const struct args *a, const struct answer *k,
				       const struct answer *u, unsigned int *heal)
{
	(void)w;
	if (a->kind % 16 || k->ret != -EACCES || u->ret)
		return SAME;
	*heal = HEAL_VIEW;
	return DIFF_EXEC;
}

/* Nothing else comes into the hole: it is reserved. */
static void run_munmap(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;

	(void)w;
	pages(s, a, &at, &n);
	n = (n + P - 1) & ~(P - 1);
	r->ret = diff_errno(munmap(base(s, a) + at, n));
	if (!r->ret && mmap(base(s, a) + at, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
			    0) == MAP_FAILED)
		FAIL("mmap: %s", strerror(errno));
}

static void run_mincore(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	unsigned char core[64] = { 0 };
	uint64_t at, n;

	pages(s, a, &at, &n);
	r->ret = diff_errno(mincore(base(s, a) + at, n, core));
	for (size_t i = 0; i < sizeof(core); i++)
		core[i] &= 1;
	/* Memory that nobody wrote to is told otherwise by the two. */
	if (!w->large && !w->prepared && !diff_private(w))
		r->sum = diff_sum(core, sizeof(core));
}

static void run_msync(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static const int flags[] = {
		MS_ASYNC, MS_SYNC, MS_INVALIDATE, MS_SYNC | MS_INVALIDATE, MS_SYNC | MS_ASYNC, 64
	};
	uint64_t at, n;

	(void)w;
	pages(s, a, &at, &n);
	r->ret = diff_errno(msync(base(s, a) + at, n, flags[a->kind % 6]));
}

static enum difference excuse_msync(const struct world *w, const struct args *a, const struct answer *k,
				    const struct answer *u, unsigned int *heal)
{
	bool sync = a->kind % 6 == 1 || a->kind % 6 == 3;

	(void)w, (void)heal;
	/* Where the memfd goes on it may come to a part that is locked. */
	return sync && k->ret == -EINVAL && (!u->ret || u->ret == -EBUSY) ? DIFF_SYNC : SAME;
}

static void run_mlock(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;

	(void)w;
	pages(s, a, &at, &n);
	r->ret = diff_errno(a->kind % 3 ? munlock(base(s, a) + at, n) : mlock(base(s, a) + at, n));
}

/* ---- policies */

static void run_mbind(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static const int modes[] = { MPOL_DEFAULT, MPOL_BIND, MPOL_PREFERRED, MPOL_INTERLEAVE, MPOL_LOCAL, 99 };
	unsigned long mask = a->more[0] % 4 ? 1 : a->more[0] >> 8 & 3;
	int mode = modes[a->kind % 6];
	uint64_t at, n;

	(void)w;
	pages(s, a, &at, &n);
	r->ret = gmem_sys_mbind(base(s, a) + at, n, mode, mode == MPOL_DEFAULT || mode == MPOL_LOCAL ? NULL : &mask,
				mode == MPOL_DEFAULT || mode == MPOL_LOCAL ? 0 : 64,
				a->more[1] % 8 ? 0 : MPOL_MF_STRICT);
}

/* Only what the mapping has mapped is looked at for being in the wrong place. */
static enum difference excuse_mbind(const struct world *w, const struct args *a, const struct answer *k,
				    const struct answer *u, unsigned int *heal)
{
	(void)w, (void)heal;
	return a->more[1] % 8 == 0 && ((!k->ret && u->ret == -EIO) || (k->ret == -EIO && !u->ret)) ? DIFF_MAPPED_PAGES :
												     SAME;
}

static void run_get_mempolicy(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	unsigned long mask[16] = { 0 };
	uint64_t at, n;
	int mode = -1;

	(void)w;
	part(s, a, P, &at, &n);
	r->ret = gmem_sys_get_mempolicy(&mode, mask, 1024, base(s, a) + at, MPOL_F_ADDR);
	r->value[0] = (uint64_t)mode;
	r->value[1] = mask[0];
}

/* The file's policy, which some other mapping of the same pages may have set. */
static bool no_policy(const struct world *w, const struct args *a)
{
	(void)a;
	return !w->policy;
}

/* ---- the kernel's own accesses */

static int null_fd[2] = { -1, -1 };

/* A pipe copies: /dev/null and /dev/zero need not touch the memory. */
static void run_syscall_read(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;

	(void)w;
	part(s, a, 2 * P, &at, &n);
	if (pipe2(null_fd, O_CLOEXEC | O_NONBLOCK))
		FAIL("pipe2: %s", strerror(errno));
	r->ret = diff_errno(write(null_fd[1], base(s, a) + at, n));
	close(null_fd[0]);
	close(null_fd[1]);
}

static void run_syscall_write(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static unsigned char from[2 * P];
	uint64_t at, n;

	(void)w;
	part(s, a, sizeof(from), &at, &n);
	for (uint64_t i = 0; i < n; i++)
		from[i] = diff_pattern(a->byte, i);
	r->ret = gmem_sys_poke(base(s, a) + at, from, n);
}

static void run_peek(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static unsigned char to[2 * P];
	uint64_t at, n;

	(void)w;
	part(s, a, sizeof(to), &at, &n);
	memset(to, 0, sizeof(to));
	r->ret = gmem_sys_peek(to, base(s, a) + at, n);
	r->sum = diff_sum(to, sizeof(to));
}

#define READ_IT 100

/* A child made by fork(2) has no view at that address. */
static void run_fork(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t at, n;
	int status = 0;
	pid_t pid;

	(void)w;
	part(s, a, P, &at, &n);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		FAIL("fork: %s", strerror(errno));
	if (!pid) {
		struct answer mine = { 0 };

		diff_read(base(s, a), base(s, a) + at, 1, &mine);
		_exit(mine.sig ? mine.sig : READ_IT);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	r->ret = status;
}

/* MADV_DOFORK gives a child the mapping, not its markers. */
static enum difference excuse_fork(const struct world *w, const struct args *a, const struct answer *k,
				   const struct answer *u, unsigned int *heal)
{
	(void)a, (void)heal;
	return (diff_private(w) || w->converts) && WEXITSTATUS(k->ret) == SIGBUS && WEXITSTATUS(u->ret) == READ_IT ?
		       DIFF_MARKERS :
		       SAME;
}

/* Registers the view for userfaults, and lets go of it. */
static void run_userfault(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	int uffd = gmem_sys_uffd_open(0, NULL);

	(void)w;
	r->ret = uffd;
	if (uffd < 0)
		return;
	r->ret = gmem_sys_uffd_register(uffd, (uint64_t)(uintptr_t)base(s, a), size(s, a),
					GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR);
	close(uffd);
}

static bool no_userfaults(const struct world *w, const struct args *a)
{
	(void)a;
	return !w->userfaults;
}

static bool shared_view(const struct world *w, const struct args *a)
{
	return !diff_private(w) && diff_have_view(w, a);
}

const struct operation diff_view_ops[] = {
	{ "view_map", 60, can_map, run_map, NULL, NULL },
	{ "view_unmap", 16, diff_have_view, run_unmap, NULL, NULL },
	{ "view_split", 10, can_split, run_split, NULL, NULL },
	{ "view_remap", 10, diff_have_view, run_remap, NULL, NULL },
	{ "view-munmap", 5, diff_have_view, run_munmap, NULL, NULL },
	{ "load", 60, diff_have_view, run_load, excuse_touch, NULL },
	{ "store", 60, diff_have_view, run_store, excuse_touch, NULL },
	{ "madvise", 40, diff_have_view, run_madvise, excuse_madvise, NULL },
	{ "mprotect", 12, diff_have_view, run_mprotect, excuse_mprotect, NULL },
	{ "mincore", 10, diff_have_view, run_mincore, NULL, NULL },
	{ "msync", 8, diff_have_view, run_msync, excuse_msync, NULL },
	{ "mlock", 8, diff_have_view, run_mlock, NULL, NULL },
	{ "mbind", 8, diff_have_view, run_mbind, excuse_mbind, NULL },
	{ "get_mempolicy", 8, diff_have_view, run_get_mempolicy, NULL, no_policy },
	{ "userfault", 2, shared_view, run_userfault, NULL, no_userfaults },
	{ "syscall-read", 16, diff_have_view, run_syscall_read, NULL, NULL },
	{ "syscall-write", 16, diff_have_view, run_syscall_write, NULL, NULL },
	{ "peek", 16, diff_have_view, run_peek, NULL, NULL },
	{ "fork", 1, diff_have_view, run_fork, excuse_fork, NULL },
	{ 0 },
};
