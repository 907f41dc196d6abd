/* SPDX-License-Identifier: MIT */
/* Exits that are answered: a device's registers, hypercalls; and what drops an answer. */
#include "vcpu_scene.h"

#define LEN (16 * PG)
#define REG (LEN + 5 * PG + 16)

static void set_up(struct scene *s, enum gmem_vm_type type)
{
	set_up_scene(s, type, LEN);
}

/* All of it. */
static void check_mmio(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t len, const void *stored)
{
	struct gmem_exit e = exit_of(vcpu);
	unsigned char data[8] = { 0 };
	uint64_t none[6] = { 0 };

	if (stored)
		memcpy(data, stored, len);
	CHECK_EQ(e.size, sizeof(e));
	CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
	CHECK_EQ(e.gpa, gpa);
	CHECK_EQ(e.len, len);
	CHECK_EQ(e.flags, stored ? GMEM_EXIT_FLAG_WRITE : 0);
	CHECK_MEM(e.data, data, 8);
	CHECK_EQ(e.nr, 0);
	CHECK_MEM(e.args, none, sizeof(none));
}

static void check_fault(struct gmem_vcpu *vcpu, uint64_t page, uint64_t flags)
{
	struct gmem_exit e = exit_of(vcpu);
	unsigned char none[8] = { 0 };

	CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(e.gpa, page);
	CHECK_EQ(e.len, PG);
	CHECK_EQ(e.flags, flags);
	CHECK_MEM(e.data, none, 8);
	CHECK_ERR(gmem_vcpu_answer(vcpu, 1), -EINVAL);
}

static void no_exit(struct gmem_vcpu *vcpu)
{
	CHECK_EQ(exit_of(vcpu).reason, GMEM_EXIT_NONE);
	CHECK_ERR(gmem_vcpu_answer(vcpu, 1), -EINVAL);
	CHECK_HAS(gmem_last_error(), "gmem_vcpu_answer");
}

/* ---- a device */

/* Every length at every place around a page's end. */
static void registers(enum gmem_vm_type type)
{
	const uint64_t page = LEN + 4 * PG;
	unsigned char out[16], in[16];
	struct scene s;

	set_up(&s, type);
	for (size_t i = 0; i < sizeof(out); i++)
		out[i] = (unsigned char)(0x11 * (i + 1));
	for (uint64_t at = PG - 16; at < PG; at++)
		for (uint64_t len = 1; len <= 12; len++) {
			uint64_t gpa = page + at;

			memset(in, 0xee, sizeof(in));
			CHECK_ERR(gmem_vcpu_load(s.vcpu, s.shared | gpa, in, len), -EFAULT);
			CHECK_HAS(gmem_last_error(), "no slot");
			if (len > 8 || at + len > PG) {
				check_fault(s.vcpu, page, 0);
				CHECK_ERR(gmem_vcpu_store(s.vcpu, s.shared | gpa, out, len), -EFAULT);
				check_fault(s.vcpu, page, 0);
				continue;
			}
			check_mmio(s.vcpu, gpa, len, NULL);
			CHECK_EQ(in[0], 0xee);
			CHECK_OK(gmem_vcpu_answer(s.vcpu, 0x8877665544332211));
			CHECK_OK(gmem_vcpu_load(s.vcpu, s.shared | gpa, in, len));
			CHECK_MEM(in, out, len);
			CHECK_EQ(in[len], 0xee);
			no_exit(s.vcpu);
			CHECK_ERR(gmem_vcpu_store(s.vcpu, s.shared | gpa, out, len), -EFAULT);
			check_mmio(s.vcpu, gpa, len, out);
			CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
			CHECK_OK(gmem_vcpu_store(s.vcpu, s.shared | gpa, out, len));
			no_exit(s.vcpu);
			/* Private, and nowhere: a memory fault. */
			if (s.bit) {
				CHECK_ERR(gmem_vcpu_load(s.vcpu, (s.shared ^ s.bit) | gpa, in, len), -EFAULT);
				check_fault(s.vcpu, page, GMEM_EXIT_FLAG_PRIVATE);
				CHECK_ERR(gmem_vcpu_store(s.vcpu, (s.shared ^ s.bit) | gpa, out, len), -EFAULT);
				check_fault(s.vcpu, page, GMEM_EXIT_FLAG_PRIVATE);
			}
		}
	tear_down(&s);
}

TEST(registers_default)
{
	registers(GMEM_VM_DEFAULT);
}

TEST(registers_sw_protected)
{
	registers(GMEM_VM_SW_PROTECTED);
}

TEST(registers_snp)
{
	registers(GMEM_VM_SNP);
}

TEST(registers_tdx)
{
	registers(GMEM_VM_TDX);
}

/* Where a slot is there is no device, though its file may be closed; and none after memory, in one access. */
TEST(a_slot_is_no_device)
{
	struct scene s;
	uint64_t v = 7;

	set_up(&s, GMEM_VM_DEFAULT);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, LEN - 4, &v, 8), -EFAULT);
	check_fault(s.vcpu, LEN, 0);
	to_private(s.file, PG, PG);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, PG, &v, 8), -EFAULT);
	check_fault(s.vcpu, PG, 0);
	gmem_file_free(s.file);
	s.file = NULL;
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 8, &v, 8), -EFAULT);
	check_fault(s.vcpu, 0, 0);
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 8, &v, 8), -EFAULT);
	check_mmio(s.vcpu, 8, 8, NULL);
	tear_down(&s);
}

/* ---- answers */

static void open_load(struct scene *s)
{
	uint32_t v;

	CHECK_ERR(gmem_vcpu_load(s->vcpu, REG, &v, 4), -EFAULT);
	check_mmio(s->vcpu, REG, 4, NULL);
}

static void answer_load(struct scene *s)
{
	open_load(s);
	CHECK_OK(gmem_vcpu_answer(s->vcpu, 0x12345678));
}

TEST(an_answer_serves_once)
{
	struct gmem_exit e = { .size = sizeof(e) };
	struct scene s;
	uint32_t v = 0;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	no_exit(s.vcpu);
	answer_load(&s);
	CHECK_OK(gmem_vcpu_load(s.vcpu, REG, &v, 4));
	CHECK_EQ(v, 0x12345678);
	answer_load(&s);
	/* What may come in between: a look at the exit, another answer, and a cancel, which is for who waits next. */
	CHECK_OK(gmem_vcpu_exit(s.vcpu, &e));
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 99));
	gmem_vcpu_cancel(s.vcpu);
	CHECK_OK(gmem_vcpu_load(s.vcpu, REG, &v, 4));
	CHECK_EQ(v, 99);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &v, 4), -EINTR);
	/* An exit that is not answered is made again. */
	open_load(&s);
	open_load(&s);
	/* The slots are not looked at again. */
	answer_load(&s);
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_OK(set_slot(s.vm, 0, LEN, LEN, s.file, 0));
	CHECK_OK(gmem_vcpu_load(s.vcpu, REG, &v, 4));
	CHECK_EQ(v, 0x12345678);
	CHECK_OK(gmem_vcpu_load(s.vcpu, REG, &v, 4));
	CHECK_EQ(v, 0);
	tear_down(&s);
}

/* Each of these between the answer and the load: the load exits again. */
static void drop_by(struct scene *s, unsigned int how)
{
	uint64_t args[6] = { 0 }, v = 3, ret;

	switch (how) {
	case 0: /* other lengths, other addresses, the other direction, another call at the same */
		CHECK_ERR(gmem_vcpu_load(s->vcpu, REG, &v, 2), -EFAULT);
		return;
	case 1:
		CHECK_ERR(gmem_vcpu_load(s->vcpu, REG + 4, &v, 4), -EFAULT);
		return;
	case 2:
		CHECK_ERR(gmem_vcpu_store(s->vcpu, REG, &v, 4), -EFAULT);
		return;
	case 3:
		CHECK_OK(gmem_vcpu_load(s->vcpu, 0, &v, 4));
		return;
	case 4:
		CHECK_ERR(gmem_vcpu_load(s->vcpu, 1ull << 48, &v, 4), -EINVAL);
		return;
	case 5:
		CHECK_OK(gmem_vcpu_copy(s->vcpu, 0, PG, 8, NULL));
		return;
	case 6:
		CHECK_OK(gmem_vcpu_cmpxchg(s->vcpu, 0, &v, &v, 4));
		return;
	case 7:
		CHECK_ERR(gmem_vcpu_cmpxchg(s->vcpu, 1, &v, &v, 4), -EINVAL);
		return;
	case 8:
		CHECK_EQ(gmem_vcpu_hypercall(s->vcpu, 1, args, &ret), 1);
		return;
	case 9:
		CHECK_OK(gmem_vcpu_pre_fault(s->vcpu, 0, PG, NULL));
		return;
	default:
		CHECK_OK(gmem_vcpu_load(s->vcpu, REG, &v, 0));
	}
}

TEST(another_call_drops_the_answer)
{
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	for (unsigned int how = 0; how <= 10; how++) {
		printf("%u\n", how);
		answer_load(&s);
		drop_by(&s, how);
		open_load(&s);
	}
	/* A pre-fault keeps the exit, as it makes none, and ends what was open. */
	open_load(&s);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, 0, PG, NULL));
	check_mmio(s.vcpu, REG, 4, NULL);
	CHECK_ERR(gmem_vcpu_answer(s.vcpu, 1), -EINVAL);
	tear_down(&s);
}

/* Of two vCPUs each has its own. */
TEST(answers_are_a_vcpus_own)
{
	struct gmem_vcpu *other;
	struct scene s;
	uint32_t v = 0;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	other = new_vcpu(s.vm);
	answer_load(&s);
	CHECK_ERR(gmem_vcpu_answer(other, 1), -EINVAL);
	CHECK_ERR(gmem_vcpu_load(other, REG, &v, 4), -EFAULT);
	CHECK_OK(gmem_vcpu_load(s.vcpu, REG, &v, 4));
	CHECK_EQ(v, 0x12345678);
	gmem_vcpu_free(other);
	tear_down(&s);
}

/* The bytes need not be the same: what the device was told is what the exit said. */
TEST(a_store_is_known_by_its_place)
{
	struct scene s;
	uint16_t v = 1;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, REG, &v, 2), -EFAULT);
	check_mmio(s.vcpu, REG, 2, &v);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 77));
	v = 2;
	CHECK_OK(gmem_vcpu_store(s.vcpu, REG, &v, 2));
	CHECK_ERR(gmem_vcpu_store(s.vcpu, REG, &v, 2), -EFAULT);
	check_mmio(s.vcpu, REG, 2, &v);
	tear_down(&s);
}

TEST(dead)
{
	uint64_t args[6] = { 0 }, ret = 5;
	struct scene s;
	uint32_t v;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	answer_load(&s);
	gmem_vm_free(s.vm);
	s.vm = NULL;
	CHECK_ERR(gmem_vcpu_load(s.vcpu, REG, &v, 4), -EIO);
	no_exit(s.vcpu);
	CHECK_ERR(gmem_vcpu_hypercall(s.vcpu, 1, args, &ret), -EIO);
	no_exit(s.vcpu);
	CHECK_EQ(ret, 5);
	tear_down(&s);
}

/* ---- hypercalls */

TEST(hypercall)
{
	uint64_t args[6] = { 1, 2, 3, 4, 5, UINT64_MAX }, other[6] = { 1, 2, 3, 4, 5, 6 }, ret = 0;
	struct gmem_exit e;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	for (unsigned int i = 0; i < 2; i++) {
		CHECK_EQ(gmem_vcpu_hypercall(s.vcpu, 8, args, &ret), 1);
		e = exit_of(s.vcpu);
		CHECK_EQ(e.reason, GMEM_EXIT_HYPERCALL);
		CHECK_EQ(e.nr, 8);
		CHECK_MEM(e.args, args, sizeof(args));
		CHECK_EQ(e.flags | e.gpa | e.len, 0);
		CHECK_EQ(ret, 0);
	}
	/* Another number, or another argument, is another call. */
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 40));
	CHECK_EQ(gmem_vcpu_hypercall(s.vcpu, 9, args, &ret), 1);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 41));
	CHECK_EQ(gmem_vcpu_hypercall(s.vcpu, 9, other, &ret), 1);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, UINT64_MAX - 41));
	CHECK_EQ(gmem_vcpu_hypercall(s.vcpu, 9, other, &ret), 0);
	CHECK_EQ(ret, UINT64_MAX - 41);
	no_exit(s.vcpu);
	CHECK_EQ(gmem_vcpu_hypercall(s.vcpu, 9, other, &ret), 1);
	tear_down(&s);
}

/* ---- a guest that asks for pages to be converted, in a thread of its own, and who runs it */

struct guest {
	struct scene s;
	uint64_t reg; /* where it says that it is done */
	_Atomic bool exited, resumed, ended;
};

/* Hands an exit to the other thread, and waits until it has been handled. */
static void hand_over(struct guest *g)
{
	atomic_store(&g->resumed, false);
	atomic_store(&g->exited, true);
	while (!atomic_load(&g->resumed))
		usleep(200);
}

static uint64_t ask(struct guest *g, uint64_t nr, uint64_t gpa, uint64_t npages, uint64_t attributes)
{
	const uint64_t args[6] = { gpa, npages, attributes };
	uint64_t ret;
	int got;

	while ((got = gmem_vcpu_hypercall(g->s.vcpu, nr, args, &ret)) == 1)
		hand_over(g);
	CHECK_EQ(got, 0);
	return ret;
}

static void *guest_code(void *arg)
{
	struct guest *g = arg;
	struct gmem_vcpu *vcpu = g->s.vcpu;
	uint32_t done = 1, status = 0;
	uint64_t v = 42;
	int err;

	/* Private by its own word, before it touches it. */
	CHECK_EQ(ask(g, GMEM_HC_MAP_GPA_RANGE, 4 * PG, 2, GMEM_MAP_GPA_RANGE_ENCRYPTED), 0);
	CHECK_OK(gmem_vcpu_store(vcpu, g->s.bit | 4 * PG, &v, 8));
	CHECK_ERR(gmem_vcpu_load(vcpu, 4 * PG, &v, 8), -EFAULT);
	/* And shared again: the bytes are kept. */
	CHECK_EQ(ask(g, GMEM_HC_MAP_GPA_RANGE, 4 * PG, 1, 0), 0);
	v = 0;
	CHECK_OK(gmem_vcpu_load(vcpu, 4 * PG, &v, 8));
	CHECK_EQ(v, 42);
	/* Refused, with the guest's own number. */
	CHECK_EQ(ask(g, GMEM_HC_MAP_GPA_RANGE, 100 * PG, 1, 0), (uint64_t)-22);
	CHECK_EQ(ask(g, 1, 0, 0, 0), (uint64_t)-1000);
	while ((err = gmem_vcpu_store(vcpu, g->reg, &done, 4)) == -EFAULT)
		hand_over(g);
	CHECK_EQ(err, 0);
	while ((err = gmem_vcpu_load(vcpu, g->reg + 4, &status, 4)) == -EFAULT)
		hand_over(g);
	CHECK_EQ(err, 0);
	CHECK_EQ(status, 0xabcd);
	atomic_store(&g->ended, true);
	return NULL;
}

static uint64_t map_gpa_range(struct guest *g, const struct gmem_exit *e)
{
	uint64_t attributes = e->args[2] & GMEM_MAP_GPA_RANGE_ENCRYPTED ? GMEM_ATTRIBUTE_PRIVATE : 0;

	if (!gmem_range_inside(e->args[0], e->args[1] * PG, LEN))
		return (uint64_t)-22;
	CHECK_OK(gmem_file_set_attributes(g->s.file, e->args[0], e->args[1] * PG, attributes, NULL));
	return 0;
}

TEST(guest_asks_for_conversion)
{
	unsigned int hypercalls = 0, stores = 0, loads = 0;
	static struct guest g;
	uint64_t attributes;
	pthread_t t;

	set_up(&g.s, GMEM_VM_SNP);
	g.reg = REG;
	t = start(guest_code, &g);
	while (!atomic_load(&g.ended)) {
		struct gmem_exit e;

		if (!atomic_exchange(&g.exited, false)) {
			usleep(200);
			continue;
		}
		e = exit_of(g.s.vcpu);
		if (e.reason == GMEM_EXIT_HYPERCALL) {
			hypercalls++;
			CHECK_OK(gmem_vcpu_answer(g.s.vcpu, e.nr == GMEM_HC_MAP_GPA_RANGE ? map_gpa_range(&g, &e) :
											    (uint64_t)-1000));
		} else {
			CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
			CHECK_EQ(e.gpa, e.flags & GMEM_EXIT_FLAG_WRITE ? REG : REG + 4);
			stores += !!(e.flags & GMEM_EXIT_FLAG_WRITE);
			loads += !(e.flags & GMEM_EXIT_FLAG_WRITE);
			CHECK_OK(gmem_vcpu_answer(g.s.vcpu, 0xffff0000abcd));
		}
		atomic_store(&g.resumed, true);
	}
	join(t);
	CHECK_EQ(hypercalls, 4);
	CHECK(stores == 1 && loads == 1);
	CHECK_OK(gmem_file_attributes(g.s.file, 4 * PG, &attributes, NULL));
	CHECK_EQ(attributes, 0);
	CHECK_OK(gmem_file_attributes(g.s.file, 5 * PG, &attributes, NULL));
	CHECK_EQ(attributes, GMEM_ATTRIBUTE_PRIVATE);
	tear_down(&g.s);
}
