/* SPDX-License-Identifier: MIT */
/*
 * A guest's own page table in a page of the file. Where the processor walks it (nested or extended page tables), the
 * guest comes out at it as at any page. Where KVM walks it, because it shadows it or emulates the instruction, a table
 * that it cannot read is one that maps nothing: the guest has a page fault, and nobody else hears of it.
 */
#include "kvm_scene.h"

#ifdef __x86_64__

/* The boot range's table of 1 GiB pieces: see guest.c. */
#define PDPT_PAGE 4
#define PTE_TABLE 0x67ull
#define PTE_LARGE 0xe7ull
#define LARGE (2ull << 20)

#define TABLE 63ull /* the page of the file that maps what the guest has from GPA on */
#define DATA 40ull

static void make_table(uint64_t *table)
{
	for (uint64_t i = 0; i < 512; i++)
		table[i] = (GPA + i * LARGE) | PTE_LARGE;
}

static void set_up(struct scene *s, const struct scene_opts *o)
{
	uint64_t entry = (GPA + TABLE * PG) | PTE_TABLE, table[512];

	scene_set_up(s, o);
	memcpy(s->boot + PDPT_PAGE * PG + (GPA >> 30) * 8, &entry, 8);
	make_table(table);
	CHECK_OK(gmem_file_write(s->file, TABLE * PG, table, PG));
	CHECK_OK(gmem_file_write(s->file, DATA * PG, &(uint64_t){ 5 }, 8));
}

/* What a routine that was begun ends with, and skips the case where that is a page fault of the guest's. */
static int go_on_or_skip(struct scene *s)
{
	int err = gmem_vcpu_run(s->vcpu);

	if (!err && !guest_finished(&s->guest)) {
		CHECK_HAS(guest_what(&s->guest), "; exception 14, ");
		SKIP("kvm", "KVM walks the guest's page tables itself here");
	}
	return err;
}

static void meet_private_table(struct scene *s)
{
	CHECK_EQ(run(s, GUEST_load8, GPA + DATA * PG), 5);
	to_private(s->file, TABLE * PG, PG);
	to_private(s->file, DATA * PG, PG);
	begin(s, GUEST_load8, GPA + DATA * PG);
	CHECK_ERR(go_on_or_skip(s), -EFAULT);
	check_fault(s, GPA + TABLE * PG, 0);
	to_shared(s->file, TABLE * PG, PG);
	CHECK_ERR(go_on(s), -EFAULT);
	check_fault(s, GPA + DATA * PG, 0);
	to_shared(s->file, DATA * PG, PG);
	CHECK_OK(go_on(s));
	CHECK_EQ(guest_result(&s->guest), 5);
}

static void private_table(enum guest_mode mode)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = mode };
	struct scene s;

	set_up(&s, &o);
	meet_private_table(&s);
	scene_tear_down(&s);
}

TEST(private_table_of_user_code)
{
	private_table(GUEST_USER);
}

TEST(private_table_of_kernel_code)
{
	private_table(GUEST_KERNEL);
}

static int bring_in_table(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	struct supplier *s = opaque;
	uint64_t table[512];

	atomic_fetch_add(&s->calls, 1);
	make_table(table);
	return supply_page(file, off, table);
}

TEST(table_is_brought_in)
{
	for (int mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct scene_opts o = { .type = GMEM_VM_SW_PROTECTED, .mode = (enum guest_mode)mode };
		uint64_t entry = (GPA + (TABLE - 1) * PG) | PTE_TABLE;
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply;
		struct scene s;

		set_up(&s, &o);
		memcpy(s.boot + PDPT_PAGE * PG + (GPA >> 30) * 8, &entry, 8);
		supply = new_supply(s.file, (TABLE - 1) * PG, PG, bring_in_table, &sup);
		begin(&s, GUEST_load8, GPA + DATA * PG);
		CHECK_OK(go_on_or_skip(&s));
		CHECK_EQ(guest_result(&s.guest), 5);
		CHECK_EQ(atomic_load(&sup.calls), 1);
		end_supply(s.file, supply);
		scene_tear_down(&s);
	}
}

/* ---- while the guest runs */

struct turns {
	struct gmem_file *file;
	_Atomic bool stop;
	_Atomic uint64_t n;
};

static void *take_away_and_give(void *arg)
{
	struct turns *t = arg;

	while (!atomic_load(&t->stop)) {
		to_private(t->file, TABLE * PG, PG);
		to_shared(t->file, TABLE * PG, PG);
		atomic_fetch_add(&t->n, 1);
	}
	return NULL;
}

#define TURNS 200u

TEST_TIMEOUT(table_comes_and_goes, 60)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = GUEST_USER };
	struct turns t = { .stop = false };
	uint64_t sum = 0, exits = 0;
	struct scene s;
	pthread_t thread;
	int err;

	set_up(&s, &o);
	/* A KVM that shadows the table need not even look at it again. */
	meet_private_table(&s);
	for (uint64_t i = 0; i < 32; i++) {
		CHECK_OK(gmem_file_write(s.file, i * PG, &(uint64_t){ i * i }, 8));
		sum += i * i;
	}
	t.file = s.file;
	thread = start(take_away_and_give, &t);
	while (atomic_load(&t.n) < TURNS || exits < 10) {
		begin(&s, GUEST_sum, GPA, 32, PG);
		while ((err = go_on(&s))) {
			CHECK_EQ(err, -EFAULT);
			check_fault(&s, GPA + TABLE * PG, 0);
			exits++;
		}
		CHECK_EQ(guest_result(&s.guest), sum);
	}
	atomic_store(&t.stop, true);
	join(thread);
	printf("%llu exits in %llu turns\n", (unsigned long long)exits, (unsigned long long)atomic_load(&t.n));
	scene_tear_down(&s);
}

/* ---- an instruction that KVM emulates, on every host */

#define PORT 0x60
#define CODE_AT 0xe00
#define N 4

/* rep insb; out %al, $GUEST_PORT_DONE */
static const unsigned char ins_code[] = { 0xf3, 0x6c, 0xe6, GUEST_PORT_DONE };

static void begin_ins(struct scene *s)
{
	struct kvm_regs regs;

	memcpy(s->boot + CODE_AT, ins_code, sizeof(ins_code));
	begin(s, GUEST_load8, 0);
	CHECK_OK(ioctl(s->guest.vcpu, KVM_GET_REGS, &regs));
	regs.rip = BOOT_GPA + CODE_AT;
	regs.rdi = GPA + DATA * PG;
	regs.rcx = N;
	regs.rdx = PORT;
	CHECK_OK(ioctl(s->guest.vcpu, KVM_SET_REGS, &regs));
}

/* Until it is something else than this port, whose bytes count from 1. */
static int go_on_ins(struct scene *s, unsigned char *byte)
{
	struct kvm_run *r = s->guest.run;
	int err;

	while (!(err = gmem_vcpu_run(s->vcpu)) && r->exit_reason == KVM_EXIT_IO && r->io.port == PORT) {
		unsigned char *data = (unsigned char *)r + r->io.data_offset;

		CHECK_EQ(r->io.direction, KVM_EXIT_IO_IN);
		for (uint32_t i = 0; i < r->io.count * r->io.size; i++)
			data[i] = ++*byte;
	}
	return err;
}

/* To a page that is barred; and to one that is not, through a table that is: here the guest has a page fault. */
TEST(string_input)
{
	static const unsigned char want[N] = { 1, 2, 3, 4 };

	for (int table = 0; table <= 1; table++) {
		struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = GUEST_USER };
		uint64_t page = table ? TABLE : DATA;
		unsigned char byte = 0, got[N];
		struct scene s;
		int err;

		set_up(&s, &o);
		CHECK_EQ(run(&s, GUEST_load8, GPA + DATA * PG), 5);
		to_private(s.file, page * PG, PG);
		begin_ins(&s);
		err = go_on_ins(&s, &byte);
		if (err) {
			CHECK_EQ(err, -EFAULT);
			check_fault(&s, GPA + page * PG, 0);
			to_shared(s.file, page * PG, PG);
			CHECK_OK(go_on_ins(&s, &byte));
			CHECK(guest_finished(&s.guest));
			CHECK_OK(gmem_file_read(s.file, DATA * PG, got, N));
			CHECK_MEM(got, want, N);
		} else {
			CHECK(table);
			CHECK_HAS(guest_what(&s.guest), "; exception 14, error 0x6, at 0xc0000e00 ");
		}
		scene_tear_down(&s);
	}
}

#endif

#include "tap_main.h"
