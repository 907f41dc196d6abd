/* SPDX-License-Identifier: MIT */
/* Worlds of the differential test: made, looked at, ended. */
#define TAP_NO_MAIN
#include "differential.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file/file.h"
#include "sys/kvm.h"
#include "sys/memfd.h"
#include "sys/probe.h"
#include "sys/scratch.h"
#include "sys/uapi.h"
#include "sys/uffd.h"
#include "tap.h"

#include "memfd_vm.h"

/* ---- drawing */

static uint64_t odd_number(uint64_t *rng, uint64_t npages)
{
	static const uint64_t some[] = { 0, 1, P - 1, P + 1, 1ull << 31, 1ull << 51, 1ull << 63, 0 - P, UINT64_MAX };
	uint64_t r = tap_rand(rng);

	switch (r % 4) {
	case 0:
		return some[(r >> 8) % (sizeof(some) / sizeof(some[0]))];
	case 1:
		return npages * P;
	case 2:
		return (npages + (r >> 8) % 4) * P;
	default:
		return (r >> 8) % (npages * P + P);
	}
}

struct args diff_draw(uint64_t seed, uint64_t number, uint64_t npages)
{
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_WRITE
	};
	uint64_t rng = seed * 0x9e3779b97f4a7c15ull + number, first, r;
	struct args a = { 0 };

	(void)tap_rand(&rng);
	r = tap_rand(&rng);
	first = tap_rand(&rng) % npages;
	a.off = first * P;
	a.len = (1 + tap_rand(&rng) % (npages - first)) * P;
	if (a.len > 8 * P && r % 4)
		a.len = (1 + tap_rand(&rng) % 8) * P;
	if ((r >> 8) % 8 == 0)
		a.len = odd_number(&rng, npages);
	if ((r >> 16) % 12 == 0)
		a.off = odd_number(&rng, npages);
	a.at = tap_rand(&rng);
	a.n = tap_rand(&rng);
	a.which = (uint32_t)(r >> 24) & 0xff;
	a.kind = (uint32_t)tap_rand(&rng);
	a.byte = (uint32_t)(r >> 32) & 0xff;
	a.prot = prots[(r >> 40) % (sizeof(prots) / sizeof(prots[0]))];
	for (int i = 0; i < 4; i++)
		a.more[i] = tap_rand(&rng);
	return a;
}

/* ---- accesses */

static sigjmp_buf caught_jmp;
static volatile sig_atomic_t armed;
static siginfo_t caught;

static void on_signal(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (!armed) {
		signal(sig, SIG_DFL);
		return;
	}
	caught = *info;
	siglongjmp(caught_jmp, 1);
}

/* The handler blocks no signal, so there is no mask to restore; but a sanitizer's may block all of them. */
#ifdef __SANITIZE_THREAD__
#define SAVE_MASK 1
#else
#define SAVE_MASK 0
#endif

static void catch_signals(void)
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

static void set_signal(const char *base, struct answer *r)
{
	r->sig = caught.si_signo;
	r->code = caught.si_code;
	r->value[0] = (uint64_t)((const char *)caught.si_addr - base);
}

void diff_read(const char *base, const char *p, uint64_t len, struct answer *r)
{
	static volatile uint64_t sum;
	const volatile unsigned char *bytes = (const volatile unsigned char *)p;

	sum = 0;
	if (sigsetjmp(caught_jmp, SAVE_MASK)) {
		set_signal(base, r);
	} else {
		armed = 1;
		for (uint64_t i = 0; i < len; i++)
			sum = sum * 31 + bytes[i];
	}
	armed = 0;
	r->sum = sum;
}

void diff_write(const char *base, char *p, uint64_t len, uint32_t byte, struct answer *r)
{
	volatile unsigned char *bytes = (volatile unsigned char *)p;

	if (sigsetjmp(caught_jmp, SAVE_MASK)) {
		set_signal(base, r);
	} else {
		armed = 1;
		for (uint64_t i = 0; i < len; i++)
			bytes[i] = diff_pattern(byte, i);
	}
	armed = 0;
}

uint64_t diff_sum(const void *p, uint64_t len)
{
	const unsigned char *bytes = p;
	uint64_t sum = 0;

	for (uint64_t i = 0; i < len; i++)
		sum = sum * 31 + bytes[i];
	return sum;
}

long diff_errno(long ret)
{
	return ret < 0 ? -errno : ret;
}

/* ---- comparing */

static const char *compare_page(struct world *w, uint64_t page, bool on_kernel)
{
	static const char zeroes[P];
	const char *k = on_kernel ? w->side[KERNEL].eye + page * P : zeroes, *u = w->side[USER].eye + page * P;
	static char text[160];
	static volatile int differ;

	differ = 0;
	if (!sigsetjmp(caught_jmp, SAVE_MASK)) {
		armed = 1;
		differ = memcmp(k, u, P);
	}
	armed = 0;
	if (!differ)
		return NULL;
	for (unsigned int i = 0; i < P; i++)
		if (k[i] != u[i]) {
			snprintf(text, sizeof(text), "byte 0x%x of page %llu: kernel 0x%02x, user 0x%02x", i,
				 (unsigned long long)page, (unsigned char)k[i], (unsigned char)u[i]);
			break;
		}
	return text;
}

static const char *compare_memory(struct world *w, uint64_t first, uint64_t n)
{
	static unsigned char core[SIDES][2048];
	static char text[160];
	const char *bad = NULL;

	for (int i = 0; i < SIDES; i++)
		if (mincore(w->side[i].eye + first * P, n * P, core[i]))
			return "mincore: failed";
	for (uint64_t i = 0; i < n && !bad; i++) {
		bool k = core[KERNEL][i] & 1, u = core[USER][i] & 1;

		/* Memory that was given twice to a memfd, and not written to, counts as written. */
		if (k != u && !w->large && !(w->prepared && u)) {
			snprintf(text, sizeof(text), "page %llu: memory kernel %d, user %d",
				 (unsigned long long)(first + i), k, u);
			return text;
		}
		if (k || u)
			bad = compare_page(w, first + i, k || w->large);
	}
	return bad;
}

static const char *compare_states(struct world *w, uint64_t first, uint64_t n)
{
	static char text[160];

	if (!w->side[KERNEL].file || !w->side[USER].file)
		return NULL;
	for (uint64_t i = first; i < first + n; i++) {
		int k = gmem_file_page_state(w->side[KERNEL].file, i * P);
		int u = gmem_file_page_state(w->side[USER].file, i * P);

		if (k != u) {
			snprintf(text, sizeof(text), "page %llu: state kernel %d, user %d", (unsigned long long)i, k,
				 u);
			return text;
		}
	}
	return NULL;
}

const char *diff_compare_bytes(struct world *w, uint64_t off, uint64_t len)
{
	uint64_t first = off / P, n;
	const char *bad;

	if (first >= w->npages)
		return NULL;
	n = w->npages - first;
	if (len / P + 1 < n)
		n = len / P + 1;
	bad = compare_states(w, first, n);
	if (!bad && w->side[KERNEL].eye && w->side[USER].eye)
		bad = compare_memory(w, first, n);
	return bad;
}

/* ---- worlds */

static void *reserve(uint64_t len)
{
	void *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		FAIL("mmap: %s", strerror(errno));
	return p;
}

void diff_map_reset(struct raw_map *m)
{
	if (mmap(m->room, MAP_ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		FAIL("mmap: %s", strerror(errno));
	*m = (struct raw_map){ .room = m->room };
}

static void make_machines(struct world *w)
{
	for (int i = 0; i < SIDES; i++) {
		if (w->slots && i == KERNEL)
			continue;
		CHECK_OK(gmem_vm_create(NULL, &w->side[i].gvm));
		CHECK_OK(gmem_vcpu_create(w->side[i].gvm, NULL, &w->side[i].vcpu));
	}
}

static bool make_files(struct world *w, bool own_vm)
{
	struct side *k = &w->side[KERNEL], *u = &w->side[USER];
	struct gmem_file_opts opts = { .size = sizeof(opts), .engine = GMEM_ENGINE_KERNEL, .flags = w->flags };
	int err;

	if (own_vm)
		opts.kvm_vm = k->vm = memfd_vm();
	err = gmem_file_create(w->npages * P, &opts, &k->file);
	if (err) {
		if (k->vm >= 0)
			close(k->vm);
		return false;
	}
	if (!own_vm)
		k->vm = fcntl(gmem_file_kvm_vm(k->file), F_DUPFD_CLOEXEC, 0);
	opts = (struct gmem_file_opts){ .size = sizeof(opts), .engine = GMEM_ENGINE_USER, .flags = w->flags };
	CHECK_OK(gmem_file_create(w->npages * P, &opts, &u->file));
	return true;
}

/* What the kernel's file takes, tried on another one. */
static void ask_kernel(struct world *w)
{
	static bool asked, policy, userfaults;
	struct gmem_scratch mem;

	if (!asked && !gmem_scratch_map(&mem, GMEM_SCRATCH_GMEM, 1)) {
		int uffd = gmem_sys_uffd_open(0, NULL);

		asked = true;
		policy = !gmem_probe_policy(&mem);
		if (uffd >= 0) {
			userfaults = !gmem_sys_uffd_register(uffd, (uint64_t)(uintptr_t)mem.addr, mem.len,
							     GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR);
			close(uffd);
		}
		gmem_scratch_unmap(&mem);
	}
	w->policy = policy;
	w->userfaults = userfaults;
	w->converts = w->side[KERNEL].file->kernel_converts;
}

static void make_eyes(struct world *w)
{
	if (diff_private(w) || diff_unmapped(w))
		return;
	for (int i = 0; i < SIDES; i++) {
		void *p = mmap(NULL, w->npages * P, PROT_READ, MAP_SHARED, gmem_file_fd(w->side[i].file), 0);

		if (p == MAP_FAILED)
			FAIL("mmap of the file: %s", strerror(errno));
		w->side[i].eye = p;
	}
}

/* A byte that is written may give memory to more pages than one: the system's choice, which may change. */
static bool shared_memory_is_large(void)
{
	int fd = gmem_memfd_create("gmem-probe", 64 * P);
	struct stat st = { 0 };

	CHECK(fd >= 0);
	CHECK_EQ(pwrite(fd, "", 1, 0), 1);
	CHECK_EQ(fstat(fd, &st), 0);
	close(fd);
	return (uint64_t)st.st_blocks * 512 > P;
}

bool diff_world_begin(struct world *w, uint64_t seed, uint64_t number)
{
	static const uint32_t sizes[] = { 1, 2, 3, 5, 8, 17, 24, 32, 33, 48, 64 };
	uint64_t rng = seed ^ (number * 0xd1342543de82ef95ull + 1), r = tap_rand(&rng), kind = (r >> 16) % 12;

	catch_signals();
	*w = (struct world){ .npages = sizes[r % (sizeof(sizes) / sizeof(sizes[0]))], .slots = (r >> 8) & 1 };
	if ((r >> 32) % 16 == 0)
		w->npages = 1100;
	w->large = w->npages >= 512 || shared_memory_is_large();
	if (kind == 0 || kind == 1)
		w->flags |= GMEM_FILE_INIT_PRIVATE;
	if (kind == 1 || kind == 2)
		w->flags |= GMEM_FILE_NO_MMAP;
	for (int i = 0; i < SIDES; i++) {
		w->side[i].who = i;
		w->side[i].vm = -1;
		for (unsigned int j = 0; j < NDUPS; j++)
			w->side[i].dup[j] = -1;
	}
	if (!make_files(w, (r >> 40) & 1))
		return false;
	ask_kernel(w);
	for (int i = 0; i < SIDES; i++)
		for (unsigned int j = 0; j < NMAPS; j++)
			w->side[i].map[j].room = reserve(MAP_ROOM);
	make_machines(w);
	make_eyes(w);
	return true;
}

static void end_side(struct world *w, struct side *s)
{
	for (unsigned int i = 0; i < NVIEWS; i++)
		gmem_view_unmap(s->view[i]);
	for (unsigned int i = 0; i < NMAPS; i++)
		munmap(s->map[i].room, MAP_ROOM);
	for (unsigned int i = 0; i < NDUPS; i++)
		if (s->dup[i] >= 0)
			close(s->dup[i]);
	if (s->eye)
		munmap(s->eye, w->npages * P);
	gmem_file_free(s->file);
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->gvm);
	if (s->vm >= 0)
		close(s->vm);
}

void diff_world_end(struct world *w)
{
	for (int i = 0; i < SIDES; i++)
		end_side(w, &w->side[i]);
}
