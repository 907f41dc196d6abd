/* SPDX-License-Identifier: MIT */
/* Operations of the library on the two files. */
#define TAP_NO_MAIN
#include "differential.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "sys/kvm.h"
#include "sys/uapi.h"
#include "tap.h"

#define MAX_IO (24 * P)
/* Whose page states do not fit into an address space, of which a sanitizer leaves less. */
#ifdef __SANITIZE_THREAD__
#define HUGE_SIZE (1ull << 50)
#else
#define HUGE_SIZE (1ull << 56)
#endif

static unsigned char buffer[MAX_IO];

/* ---- making files */

static uint64_t some_size(const struct args *a)
{
	static const uint64_t sizes[] = {
		P, 0, 1, P - 1, P + 1, 1ull << 30, 1ull << 40, 1ull << 62, (1ull << 63) - P, 1ull << 63, UINT64_MAX
	};

	return a->kind % 2 ? sizes[a->at % (sizeof(sizes) / sizeof(sizes[0]))] : a->len;
}

static uint32_t some_flags(const struct args *a)
{
	return (uint32_t)(a->more[2] % 16 ? a->n % 8 : 1u << a->n % 32);
}

static void run_create(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	/* A caller of another version may have a longer structure. */
	struct {
		struct gmem_file_opts opts;
		char longer[64];
	} o = { 0 };
	struct gmem_file *file;

	o.longer[0] = (char)(a->more[1] >> 8 & 1);
	o.opts = (struct gmem_file_opts){
		.size = a->more[0] % 16 ? sizeof(o.opts) : a->more[1] % sizeof(o),
		.engine = s->who == KERNEL ? GMEM_ENGINE_KERNEL : GMEM_ENGINE_USER,
		.flags = some_flags(a),
		.needs = (uint32_t)(a->more[3] % 4 ? 0 : 1u << (a->more[3] >> 8) % 7),
		.kvm_vm = s->vm,
		.name = a->byte % 16 ? NULL :
			a->byte % 32 ? "" :
				       "a name",
	};

	(void)w;
	if (s->who == USER)
		o.opts.kvm_vm = 0;
	r->ret = gmem_file_create(some_size(a), &o.opts, &file);
	if (r->ret)
		return;
	r->value[0] = gmem_file_size(file);
	r->value[1] = (uint64_t)gmem_file_page_state(file, 0);
	CHECK_OK(gmem_file_attributes(file, 0, &r->value[2], &r->value[3]));
	gmem_file_free(file);
}

static enum difference excuse_create(const struct world *w, const struct args *a, const struct answer *k,
				     const struct answer *u, unsigned int *heal)
{
	(void)w, (void)a, (void)heal;
	/* Strict mode and needs; the other way round KVM slots. Both right, and nothing else wrong. */
	if (some_size(a) >= HUGE_SIZE && (k->ret == -ENOMEM || u->ret == -ENOMEM) &&
	    (k->ret == -EOPNOTSUPP || u->ret == -EOPNOTSUPP))
		return DIFF_NEEDS;
	/* Huge pages, of which there may be none. */
	if ((some_flags(a) & GMEM_FILE_HUGETLB) && k->ret == -EOPNOTSUPP && u->ret == -ENOMEM)
		return DIFF_NEEDS;
	if ((k->ret == -EOPNOTSUPP && u->ret == 0) || (k->ret == 0 && u->ret == -EOPNOTSUPP))
		return DIFF_NEEDS;
	return SAME;
}

/* KVM's own call against the library's: flags and sizes. */
static void run_create_raw(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	/* Of what the kernel has: before Linux 6.18 no flag at all. */
	int known = gmem_kvm_check(w->side[KERNEL].vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	bool unknown = a->n % 8 == 0, map = a->n & 8 && known > 0 && known & GUEST_MEMFD_FLAG_MMAP;
	bool shared = a->n & 16 && known > 0 && known & GUEST_MEMFD_FLAG_INIT_SHARED;
	struct gmem_file_opts opts = { .size = sizeof(opts), .engine = GMEM_ENGINE_USER };
	struct gmem_file *file;

	if (s->who == KERNEL) {
		int fd = gmem_kvm_memfd_create(s->vm, some_size(a),
					       (map ? GUEST_MEMFD_FLAG_MMAP : 0) |
						       (shared ? GUEST_MEMFD_FLAG_INIT_SHARED : 0) |
						       (unknown ? 1ull << 31 : 0));

		r->ret = fd < 0 ? fd : 0;
		if (fd >= 0)
			close(fd);
		return;
	}
	opts.flags = (map ? 0 : GMEM_FILE_NO_MMAP) | (shared ? 0 : GMEM_FILE_INIT_PRIVATE) | (unknown ? 1u << 31 : 0);
	r->ret = gmem_file_create(some_size(a), &opts, &file);
	if (!r->ret)
		gmem_file_free(file);
}

static enum difference excuse_create_raw(const struct world *w, const struct args *a, const struct answer *k,
					 const struct answer *u, unsigned int *heal)
{
	(void)w, (void)heal;
	return k->ret == 0 && u->ret == -ENOMEM && some_size(a) >= HUGE_SIZE ? DIFF_SIZE : SAME;
}

/* ---- bytes */

static uint64_t io_off(const struct world *w, const struct args *a)
{
	return a->kind % 8 ? a->at % (w->npages * P) : a->off;
}

static uint64_t io_len(const struct world *w, const struct args *a)
{
	uint64_t off = io_off(w, a), room = off < w->npages * P ? w->npages * P - off : P;
	uint64_t len = a->n % (a->kind % 32 < 8 ? 64 : MAX_IO);

	return a->kind % 16 && len > room ? room : len;
}

static void run_read(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t len = io_len(w, a);

	memset(buffer, 0, len);
	r->ret = gmem_file_read(s->file, io_off(w, a), buffer, len);
	r->sum = diff_sum(buffer, len);
}

static void run_write(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t len = io_len(w, a);

	for (uint64_t i = 0; i < len; i++)
		buffer[i] = diff_pattern(a->byte, i);
	r->ret = gmem_file_write(s->file, io_off(w, a), buffer, len);
}

/* The user engine's file is not mapped either, but has read(2) and write(2). */
static enum difference excuse_io(const struct world *w, const struct args *a, const struct answer *k,
				 const struct answer *u, unsigned int *heal)
{
	(void)a;
	*heal = HEAL_STATES;
	return diff_unmapped(w) && !diff_private(w) && k->ret == -EACCES && !u->ret ? DIFF_OUT_OF_REACH : SAME;
}

static void run_punch(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w;
	r->ret = gmem_file_punch(s->file, a->off, a->len);
}

/* The kernel's own fallocate(2), the library's on the kernel's file, and on the user engine's: three answers. */
static void run_fallocate(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static const int modes[] = { FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
				     FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
				     FALLOC_FL_KEEP_SIZE, 0,
				     FALLOC_FL_PUNCH_HOLE };
	int mode = a->kind % 8 == 7 ? 1 << a->more[0] % 31 : modes[a->kind % 8];
	long kernel;

	r->ret = gmem_file_fallocate(s->file, mode, (int64_t)a->off, (int64_t)a->len);
	kernel = r->ret;
	if (s->who == KERNEL)
		kernel = diff_errno(fallocate(gmem_file_fd(s->file), mode, (off_t)a->off, (off_t)a->len));
	r->value[0] = (uint64_t)kernel;
	if (!r->ret && mode == FALLOC_FL_KEEP_SIZE)
		w->prepared = true;
}

/*
 * The library's word for it on both: no memory of this machine fails. What is seen of the page meanwhile is compared;
 * then it is healed, and the views go, for on the two they are marked in different ways, which system calls can tell.
 */
static void run_poison(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t len = a->kind % 2 ? P : a->len;
	unsigned char byte;

	(void)w;
	r->ret = gmem_file_poison(s->file, a->off, len);
	/* Others say that a view could not be marked; the pages are poisoned. */
	if (r->ret == -EINVAL || r->ret == -ERANGE)
		return;
	r->value[0] = (uint64_t)gmem_file_read(s->file, a->off, &byte, 1);
	r->value[1] = (uint64_t)gmem_file_write(s->file, a->off, &byte, 1) << 32 |
		      (uint64_t)gmem_file_page_state(s->file, a->off);
	for (unsigned int i = 0; i < NVIEWS; i++) {
		struct answer touch = { 0 };
		char *p = s->view[i] ? gmem_view_addr(s->view[i]) : NULL;

		if (p)
			diff_read(p, p, gmem_view_len(s->view[i]) < w->npages * P ? gmem_view_len(s->view[i]) : P,
				  &touch);
		r->value[2] = r->value[2] * 31 + (uint64_t)touch.sig;
		r->value[3] = r->value[3] * 31 + touch.value[0];
		gmem_view_unmap(s->view[i]);
		s->view[i] = NULL;
	}
	CHECK_OK(gmem_file_punch(s->file, a->off, len));
}

/* ---- states, pins, sides */

static void run_page_state(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w;
	r->ret = gmem_file_page_state(s->file, a->off);
}

static void run_query(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct gmem_file_counts c = { .size = a->kind % 16 ? sizeof(c) : a->n % sizeof(c) };

	r->ret = gmem_file_query(s->file, &c);
	if (r->ret)
		return;
	r->value[0] = c.absent;
	r->value[1] = c.filling | c.poisoned << 32;
	r->value[2] = c.uptodate | c.removed << 32;
	r->value[3] = w->large ? 0 : c.resident;
}

static enum difference excuse_query(const struct world *w, const struct args *a, const struct answer *k,
				    const struct answer *u, unsigned int *heal)
{
	struct answer same = *k;

	(void)a, (void)heal;
	same.value[3] = u->value[3];
	if (memcmp(&same, u, sizeof(same)) != 0 || k->value[3] > u->value[3])
		return SAME;
	return w->prepared || diff_private(w) || diff_unmapped(w) ? DIFF_RESIDENT : SAME;
}

static void run_pin(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w;
	r->ret = gmem_file_pin(s->file, a->off, a->len);
}

static void run_unpin(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w;
	r->ret = gmem_file_unpin(s->file, a->off, a->len);
}

static void run_attributes(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w;
	r->ret = gmem_file_attributes(s->file, a->off, &r->value[0], &r->value[1]);
}

static uint64_t wanted(const struct args *a)
{
	return a->kind % 8 ? (a->kind & 8 ? GMEM_ATTRIBUTE_PRIVATE : 0) : a->more[0] % 16;
}

static void run_set_attributes(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	uint64_t off = UINT64_MAX;

	(void)w;
	r->ret = gmem_file_set_attributes(s->file, a->off, a->len, wanted(a), &off);
	if (r->ret && r->ret != -EINVAL)
		r->value[0] = off;
}

/* Only what is refused can be compared where the kernel does not convert. */
static bool cannot_convert(const struct world *w, const struct args *a)
{
	uint64_t size = w->npages * P;

	if (w->converts || (wanted(a) & ~GMEM_ATTRIBUTE_PRIVATE))
		return false;
	return a->len && a->off % P == 0 && a->len % P == 0 && a->off <= size && a->len <= size - a->off;
}

static void run_want_fill(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w, (void)a;
	r->ret = gmem_file_want_fill(s->file);
}

static bool late(const struct world *w, const struct args *a)
{
	return w->side[KERNEL].file && w->side[USER].file && a->kind % 4 == 0;
}

static void run_free(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	(void)w, (void)a, (void)r;
	gmem_file_free(s->file);
	s->file = NULL;
}

const struct operation diff_file_ops[] = {
	{ "create", 3, NULL, run_create, excuse_create, NULL },
	{ "create-raw", 3, NULL, run_create_raw, excuse_create_raw, NULL },
	{ "read", 40, NULL, run_read, excuse_io, NULL },
	{ "write", 40, NULL, run_write, excuse_io, NULL },
	{ "punch", 30, NULL, run_punch, NULL, NULL },
	{ "fallocate", 30, NULL, run_fallocate, NULL, NULL },
	{ "poison", 5, NULL, run_poison, NULL, NULL },
	{ "page_state", 10, NULL, run_page_state, NULL, NULL },
	{ "query", 10, NULL, run_query, excuse_query, NULL },
	{ "pin", 10, NULL, run_pin, NULL, NULL },
	{ "unpin", 10, NULL, run_unpin, NULL, NULL },
	{ "attributes", 6, NULL, run_attributes, NULL, NULL },
	{ "set_attributes", 10, NULL, run_set_attributes, NULL, cannot_convert },
	{ "want_fill", 1, NULL, run_want_fill, NULL, NULL },
	{ "free", 4, late, run_free, NULL, NULL },
	{ 0 },
};
