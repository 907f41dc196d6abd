/* SPDX-License-Identifier: MIT */
/* Poison, punch, conversion and touch in any order, and at the same time. */
#define TAP_NO_MAIN
#include "tap.h"

#include "poison_util.h"

/* ---- in any order: an array that does the same */

struct model {
	struct gmem_file *file;
	struct gmem_view *views[3];
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	bool poisoned[N], private[N];
	unsigned char byte[N];
};

static void check_page(struct model *m, uint64_t i)
{
	unsigned char byte = 0;
	int err = gmem_file_read(m->file, i * P + 77, &byte, 1);
	int want = m->private[i] ? -EACCES : m->poisoned[i] ? -EHWPOISON : 0;

	CHECK_EQ(err, want);
	CHECK(err || byte == m->byte[i]);
	for (int k = 0; k < 3; k++)
		if (i * P >= m->views[k]->off && i * P - m->views[k]->off < m->views[k]->len)
			CHECK_EQ(peek(page_of(m->views[k], i) + 77), want ? -1 : m->byte[i]);
	err = gmem_vcpu_load(m->vcpu, i * P + 77, &byte, 1);
	CHECK_EQ(err, m->poisoned[i] ? -EHWPOISON : 0);
	CHECK(err || byte == m->byte[i]);
	CHECK_EQ(gmem_file_page_state(m->file, i * P) == GMEM_PAGE_POISONED, m->poisoned[i]);
}

static void set_byte(struct model *m, uint64_t i, unsigned char byte, unsigned int way)
{
	char buf[P];
	int err;

	memset(buf, byte, P);
	if (way == 0)
		err = gmem_file_write(m->file, i * P, buf, P);
	else if (way == 1)
		err = gmem_vcpu_store(m->vcpu, i * P, buf, P);
	else
		err = poke(page_of(m->views[0], i) + 77, byte);
	CHECK_EQ(!err, !m->poisoned[i] && (way == 1 || !m->private[i]));
	if (!err)
		m->byte[i] = byte;
}

static void step(struct model *m, uint64_t *seed, bool converts)
{
	uint64_t page = tap_rand(seed) % N, n = 1 + tap_rand(seed) % 6;

	if (page + n > N)
		n = N - page;
	switch (tap_rand(seed) % (converts ? 6 : 5)) {
	case 0:
		poison(m->file, page, n);
		memset(m->poisoned + page, 1, n);
		break;
	case 1:
		punch(m->file, page, n);
		memset(m->poisoned + page, 0, n);
		memset(m->byte + page, 0, n);
		break;
	case 2:
		set_byte(m, page, (unsigned char)tap_rand(seed), tap_rand(seed) % 3);
		break;
	case 3:
		CHECK_OK(gmem_file_fallocate(m->file, 1, (int64_t)(page * P), (int64_t)(n * P)));
		break;
	case 4:
		gmem_view_unmap(m->views[2]);
		m->views[2] = view_of(m->file, page, n, PROT_READ);
		break;
	default: {
		bool private = tap_rand(seed) % 2;

		convert(m->file, page, n, private ? PRIVATE : 0);
		memset(m->private + page, private, n);
		break;
	}
	}
}

static void any_order(enum gmem_engine engine, bool by_mapping, uint32_t flags)
{
	struct model m = { .file = file_on(engine, flags) };
	uint64_t seed = tap_seed();

	m.views[0] = view_of(m.file, 0, N, PROT_READ | PROT_WRITE);
	m.views[1] = view_of(m.file, 5, 9, PROT_READ);
	m.views[2] = view_of(m.file, 0, N, PROT_READ);
	for (int k = 0; k < 3; k++)
		m.views[k]->by_mapping = by_mapping;
	m.vm = new_vm(GMEM_VM_SW_PROTECTED);
	m.vcpu = new_vcpu(m.vm);
	CHECK_OK(set_slot(m.vm, 0, 0, N * P, m.file, 0));
	for (int i = 0; i < (tap_slow() ? 300 : 3000); i++) {
		step(&m, &seed, engine == GMEM_ENGINE_USER);
		for (int k = 0; k < 4; k++)
			check_page(&m, tap_rand(&seed) % N);
	}
	for (uint64_t i = 0; i < N; i++)
		check_page(&m, i);
	gmem_vcpu_free(m.vcpu);
	gmem_vm_free(m.vm);
	for (int k = 0; k < 3; k++)
		gmem_view_unmap(m.views[k]);
	gmem_file_free(m.file);
}

TEST(any_order_user)
{
	any_order(GMEM_ENGINE_USER, false, 0);
}

TEST(any_order_strict)
{
	any_order(GMEM_ENGINE_USER, false, GMEM_FILE_STRICT);
}

TEST(any_order_mapped_over)
{
	any_order(GMEM_ENGINE_USER, true, 0);
}

TEST(any_order_kernel)
{
	any_order(GMEM_ENGINE_KERNEL, false, 0);
}

/* ---- at the same time */

#define RACED 8ull

/* What is being done, or was: set after it is done, and before the next is begun. */
enum { WRITTEN, POISONING, POISONED, HEALING, HEALED, WRITING, PHASES };

struct race {
	struct gmem_file *file, *peer;
	struct gmem_view *view;
	struct gmem_vm *vm;
	_Atomic uint64_t now; /* byte * PHASES + phase */
	_Atomic bool stop;
	_Atomic uint64_t seen[PHASES]; /* looks that fell into one phase */
};

/* -1 is SIGBUS or -EHWPOISON. A zero stands for no byte but where the page has been healed. */
static void check_seen(struct race *r, const char *who, uint64_t before, int got)
{
	int byte = (int)(before / PHASES), old = byte, phase = (int)(before % PHASES);
	bool right = false;

	if (atomic_load(&r->now) != before)
		return;
	switch (phase) {
	case WRITTEN:
		right = got == byte;
		break;
	case POISONING:
		right = got == old || got == -1;
		break;
	case POISONED:
		right = got == -1;
		break;
	case HEALING:
		right = got == -1 || got == 0;
		break;
	case HEALED:
		right = got == 0;
		break;
	default:
		right = got == 0 || got == byte;
		break;
	}
	if (!right)
		FAIL("%s: %d in phase %d of byte %d", who, got, phase, byte);
	atomic_fetch_add(&r->seen[phase], 1);
}

/* peek(), where ThreadSanitizer does not look: to it mapping over a page is a write. */
__attribute__((no_sanitize("thread"))) static int look(const volatile char *p)
{
	if (sigsetjmp(bus_jmp, 1))
		return -1;
	return *(const volatile unsigned char *)p;
}

static void *touch_view(void *arg)
{
	struct race *r = arg;

	for (uint64_t i = 0; !atomic_load(&r->stop); i++) {
		uint64_t before = atomic_load(&r->now);

		check_seen(r, "view", before, look(page_of(r->view, i % RACED)));
	}
	return NULL;
}

static void *touch_guest(void *arg)
{
	struct race *r = arg;
	struct gmem_vcpu *vcpu = new_vcpu(r->vm);

	for (uint64_t i = 0; !atomic_load(&r->stop); i++) {
		uint64_t before = atomic_load(&r->now);
		unsigned char byte;
		int err = gmem_vcpu_load(vcpu, i % RACED * P, &byte, 1);

		CHECK(!err || err == -EHWPOISON);
		check_seen(r, "guest", before, err ? -1 : byte);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static void *touch_file(void *arg)
{
	struct race *r = arg;

	for (uint64_t i = 0; !atomic_load(&r->stop); i++) {
		uint64_t before = atomic_load(&r->now);
		unsigned char byte;
		int err = gmem_file_read(r->peer ? r->peer : r->file, i % RACED * P, &byte, 1);

		if (err == -EACCES) /* converted to and fro while it is poisoned */
			continue;
		CHECK(!err || err == -EHWPOISON);
		check_seen(r, "file", before, err ? -1 : byte);
	}
	return NULL;
}

static void phase(struct race *r, unsigned int byte, unsigned int ph)
{
	atomic_store(&r->now, (uint64_t)byte * PHASES + ph);
}

static void one_round(struct race *r, unsigned int byte, unsigned int round)
{
	phase(r, byte, WRITING);
	for (uint64_t i = 0; i < RACED; i++)
		write_page(r->file, i, (int)byte);
	phase(r, byte, WRITTEN);
	if (round % 4 == 0)
		usleep(200);
	phase(r, byte, POISONING);
	poison(r->file, 0, RACED);
	phase(r, byte, POISONED);
	if (round % 4 == 1)
		usleep(200);
	if (round % 8 == 2 && gmem_file_engine(r->file) == GMEM_ENGINE_USER) {
		convert(r->file, 0, RACED, PRIVATE);
		convert(r->file, 0, RACED, 0);
	}
	phase(r, byte, HEALING);
	punch(r->file, 0, RACED);
	phase(r, byte, HEALED);
	if (round % 4 == 3)
		usleep(200);
}

static void at_once(enum gmem_engine engine, bool by_mapping)
{
	static void *(*const fns[])(void *) = { touch_view, touch_guest, touch_file, touch_view };
	uint64_t end = now_ms() + (tap_slow() ? 1500 : 3000);
	struct race r = { .file = file_on(engine, 0) };
	pthread_t threads[4];

	r.view = view_of(r.file, 0, N, PROT_READ | PROT_WRITE);
	r.view->by_mapping = by_mapping;
	r.vm = new_vm(GMEM_VM_SW_PROTECTED);
	CHECK_OK(set_slot(r.vm, 0, 0, N * P, r.file, 0));
	phase(&r, 0, HEALED);
	for (int i = 0; i < 4; i++)
		threads[i] = start(fns[i], &r);
	for (unsigned int round = 0; now_ms() < end; round++)
		one_round(&r, 1 + round % 255, round);
	atomic_store(&r.stop, true);
	for (int i = 0; i < 4; i++)
		join(threads[i]);
	for (int i = 0; i < PHASES; i++)
		printf("phase %d: %llu looks\n", i, (unsigned long long)r.seen[i]);
	CHECK(r.seen[POISONED] > 0 && r.seen[WRITTEN] > 0 && r.seen[HEALED] > 0);
	gmem_vm_free(r.vm);
	gmem_view_unmap(r.view);
	gmem_file_free(r.file);
}

/* So too what a peer has: its view is marked before the memory goes, and let in before the punch returns. */
TEST(at_once_in_a_peer)
{
	static void *(*const fns[])(void *) = { touch_view, touch_file, touch_view };
	uint64_t end = now_ms() + (tap_slow() ? 1500 : 3000);
	struct race r = { .file = file_on(GMEM_ENGINE_USER, 0) };
	pthread_t threads[3];

	CHECK_OK(gmem_file_open(gmem_file_fd(r.file), gmem_file_state_fd(r.file), &r.peer));
	r.view = view_of(r.peer, 0, N, PROT_READ | PROT_WRITE);
	phase(&r, 0, HEALED);
	for (int i = 0; i < 3; i++)
		threads[i] = start(fns[i], &r);
	for (unsigned int round = 0; now_ms() < end; round++)
		one_round(&r, 1 + round % 255, round);
	atomic_store(&r.stop, true);
	for (int i = 0; i < 3; i++)
		join(threads[i]);
	CHECK(r.seen[POISONED] > 0 && r.seen[WRITTEN] > 0 && r.seen[HEALED] > 0);
	gmem_view_unmap(r.view);
	gmem_file_free(r.peer);
	gmem_file_free(r.file);
}

TEST(at_once_user)
{
	at_once(GMEM_ENGINE_USER, false);
}

TEST(at_once_mapped_over)
{
	at_once(GMEM_ENGINE_USER, true);
}

TEST(at_once_kernel)
{
	at_once(GMEM_ENGINE_KERNEL, false);
}
