/* SPDX-License-Identifier: MIT */
/* Memslots: the rules of KVM_SET_USER_MEMORY_REGION2 with a guest_memfd, and who outlives whom. */
#include "mmu_util.h"
#include "pager_util.h"

#define LEN (64 * PG)

struct scene {
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu;
};

static void set_up(struct scene *s)
{
	s->vm = new_vm(GMEM_VM_SW_PROTECTED);
	s->file = make_file(LEN, 0);
	s->vcpu = new_vcpu(s->vm);
}

static void tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
}

static void check_fault(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t flags)
{
	struct gmem_exit e;
	char buf[16]; /* more than a device's register has */

	CHECK_ERR(gmem_vcpu_load(vcpu, gpa + 8, buf, sizeof(buf)), -EFAULT);
	e = exit_of(vcpu);
	CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(e.gpa, gpa);
	CHECK_EQ(e.len, PG);
	CHECK_EQ(e.flags, flags);
}

TEST(arguments)
{
	const uint64_t end = 1ull << 48;
	struct gmem_memslot m = { .size = sizeof(m) - 1 };
	struct scene s;

	set_up(&s);
	CHECK_ERR(gmem_vm_set_slot(s.vm, &m), -EINVAL);
	for (unsigned int bit = 0; bit < 32; bit++) {
		m = (struct gmem_memslot){ .size = sizeof(m), .flags = 1u << bit, .len = PG, .file = s.file };
		CHECK_ERR(gmem_vm_set_slot(s.vm, &m), -EINVAL);
	}
	CHECK_ERR(set_slot(s.vm, 32764, 0, PG, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0, PG, NULL, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 1, PG, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0, PG + 1, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0, PG, s.file, 8), -EINVAL);
	/* Past the end of the file, and wraps. */
	CHECK_ERR(set_slot(s.vm, 0, 0, LEN + PG, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0, PG, s.file, LEN), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0, 2 * PG, s.file, LEN - PG), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0, PG, s.file, 0 - PG), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0, 2 * PG, s.file, 0 - PG), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0 - PG, PG, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, 0 - PG, 2 * PG, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, end, PG, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 0, end - PG, 2 * PG, s.file, 0), -EINVAL);
	/* None of it left anything. */
	CHECK_ERR(del_slot(s.vm, 0), -EINVAL);
	CHECK_OK(set_slot(s.vm, 32763, end - PG, PG, s.file, LEN - PG));
	CHECK_EQ(load64(s.vcpu, end - 8), 0);
	tear_down(&s);
}

/* Where the bit that names the side lies within 48 bits, there is less to address. */
TEST(addresses_by_type)
{
	static const struct {
		enum gmem_vm_type type;
		unsigned int bits;
		uint64_t alias;
	} types[] = {
		{ GMEM_VM_DEFAULT, 48, 0 },
		{ GMEM_VM_SW_PROTECTED, 48, 0 },
		{ GMEM_VM_SNP, 48, 1ull << 51 },
		{ GMEM_VM_TDX, 47, 1ull << 47 },
	};
	struct gmem_vm_opts o = { .size = sizeof(o), .type = (enum gmem_vm_type)2 };
	struct gmem_file *file = make_file(LEN, 0);
	struct gmem_vm *vm;

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		uint64_t end = 1ull << types[i].bits;

		vm = new_vm(types[i].type);
		CHECK_EQ(gmem_vm_alias_bit(vm), types[i].alias);
		CHECK_ERR(set_slot(vm, 0, end, PG, file, 0), -EINVAL);
		CHECK_ERR(set_slot(vm, 0, end - PG, 2 * PG, file, 0), -EINVAL);
		if (types[i].alias)
			CHECK_ERR(set_slot(vm, 0, types[i].alias, PG, file, 0), -EINVAL);
		CHECK_OK(set_slot(vm, 0, end - PG, PG, file, 0));
		gmem_vm_free(vm);
	}
	CHECK_ERR(gmem_vm_create(&o, &vm), -EINVAL);
	o.type = GMEM_VM_SNP;
	o.flags = 2;
	CHECK_ERR(gmem_vm_create(&o, &vm), -EINVAL);
	o.size = 4;
	CHECK_ERR(gmem_vm_create(&o, &vm), -EINVAL);
	gmem_file_free(file);
}

TEST(overlaps)
{
	struct gmem_file *other;
	struct scene s;

	set_up(&s);
	other = make_file(LEN, 0);
	CHECK_OK(set_slot(s.vm, 5, 16 * PG, 8 * PG, s.file, 8 * PG));
	/* Guest-physical, with another file: each end, within, around. */
	CHECK_ERR(set_slot(s.vm, 6, 15 * PG, 2 * PG, other, 0), -EEXIST);
	CHECK_ERR(set_slot(s.vm, 6, 23 * PG, 2 * PG, other, 0), -EEXIST);
	CHECK_ERR(set_slot(s.vm, 6, 18 * PG, PG, other, 0), -EEXIST);
	CHECK_ERR(set_slot(s.vm, 6, 0, LEN, other, 0), -EEXIST);
	CHECK_OK(set_slot(s.vm, 6, 15 * PG, PG, other, 0));
	CHECK_OK(set_slot(s.vm, 7, 24 * PG, PG, other, PG));
	/* The file's range, at another address. */
	CHECK_ERR(set_slot(s.vm, 8, 0, PG, s.file, 8 * PG), -EEXIST);
	CHECK_ERR(set_slot(s.vm, 8, 0, 2 * PG, s.file, 7 * PG), -EEXIST);
	CHECK_ERR(set_slot(s.vm, 8, 0, 2 * PG, s.file, 15 * PG), -EEXIST);
	CHECK_OK(set_slot(s.vm, 8, 0, 8 * PG, s.file, 0));
	CHECK_OK(set_slot(s.vm, 9, 32 * PG, 8 * PG, s.file, 16 * PG));
	gmem_file_free(other);
	tear_down(&s);
}

TEST(immutable_but_deletable)
{
	struct scene s;

	set_up(&s);
	CHECK_OK(set_slot(s.vm, 5, 0, LEN, s.file, 0));
	/* Even to what it is, or elsewhere, or a part. */
	CHECK_ERR(set_slot(s.vm, 5, 0, LEN, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 5, LEN, LEN, s.file, 0), -EINVAL);
	CHECK_ERR(set_slot(s.vm, 5, 0, PG, s.file, 0), -EINVAL);
	CHECK_ERR(del_slot(s.vm, 4), -EINVAL);
	store64(s.vcpu, 3 * PG, 77);
	CHECK_OK(del_slot(s.vm, 5));
	CHECK_ERR(del_slot(s.vm, 5), -EINVAL);
	check_fault(s.vcpu, 3 * PG, 0);
	/* Its pages are in the file still, also under another address and number. */
	CHECK_EQ(gmem_file_page_state(s.file, 3 * PG), GMEM_PAGE_UPTODATE);
	CHECK_OK(set_slot(s.vm, 6, 2 * LEN, 4 * PG, s.file, PG));
	CHECK_EQ(load64(s.vcpu, 2 * LEN + 2 * PG), 77);
	check_fault(s.vcpu, 3 * PG, 0);
	CHECK_OK(del_slot(s.vm, 6));
	CHECK_OK(set_slot(s.vm, 5, 0, LEN, s.file, 0));
	CHECK_EQ(load64(s.vcpu, 3 * PG), 77);
	tear_down(&s);
}

TEST(one_file_in_many_slots_and_machines)
{
	struct gmem_vm *vm[3];
	struct gmem_vcpu *vcpu[3];
	struct gmem_file *file = make_file(LEN, 0);
	uint64_t v;

	for (unsigned int i = 0; i < 3; i++) {
		vm[i] = new_vm(GMEM_VM_SW_PROTECTED);
		vcpu[i] = new_vcpu(vm[i]);
		/* Two slots each, their order in the file against that of the addresses. */
		CHECK_OK(set_slot(vm[i], 0, 8 * PG, 8 * PG, file, i * 16 * PG));
		CHECK_OK(set_slot(vm[i], 1, 0, 8 * PG, file, i * 16 * PG + 8 * PG));
		CHECK_ERR(set_slot(vm[i], 2, LEN, PG, file, 3 * PG), -EEXIST);
	}
	for (unsigned int i = 0; i < 3; i++)
		for (unsigned int j = 0; j < 16; j++)
			store64(vcpu[i], j * PG, i * 100 + j);
	for (unsigned int i = 0; i < 3; i++)
		for (unsigned int j = 0; j < 16; j++) {
			CHECK_OK(gmem_file_read(file, (i * 16 + j) * PG, &v, sizeof(v)));
			CHECK_EQ(v, i * 100 + (j + 8) % 16);
		}
	/* A punch is heard by whoever maps a part of it. */
	CHECK_OK(gmem_file_punch(file, 8 * PG, 32 * PG));
	CHECK_EQ(load64(vcpu[0], 8 * PG), 8);
	CHECK_EQ(load64(vcpu[0], 0), 0);
	CHECK_EQ(load64(vcpu[1], 5 * PG), 0);
	CHECK_EQ(load64(vcpu[2], 8 * PG), 0);
	CHECK_EQ(load64(vcpu[2], 0), 200);
	/* One machine goes: what it had bound may be bound by another. */
	CHECK_ERR(set_slot(vm[0], 2, LEN, PG, file, 32 * PG), -EEXIST);
	gmem_vcpu_free(vcpu[2]);
	gmem_vm_free(vm[2]);
	CHECK_OK(set_slot(vm[0], 2, LEN, 16 * PG, file, 32 * PG));
	CHECK_EQ(load64(vcpu[0], LEN + 8 * PG), 200);
	for (int i = 0; i < 2; i++) {
		gmem_vcpu_free(vcpu[i]);
		gmem_vm_free(vm[i]);
	}
	gmem_file_free(file);
}

/* ---- who goes first */

TEST(file_goes_before_the_slot)
{
	struct gmem_file *other = make_file(LEN, GMEM_FILE_INIT_PRIVATE);
	struct scene s;
	uint64_t done = 1;

	set_up(&s);
	CHECK_OK(set_slot(s.vm, 0, 0, LEN, s.file, 0));
	CHECK_OK(set_slot(s.vm, 1, LEN, LEN, other, 0));
	store64(s.vcpu, 0, 1);
	store64(s.vcpu, LEN, 2);
	gmem_file_free(s.file);
	check_fault(s.vcpu, 0, 0);
	CHECK_HAS(gmem_last_error(), "closed");
	check_fault(s.vcpu, 9 * PG, 0);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 0, PG, &done), -EFAULT);
	CHECK_EQ(done, 0);
	CHECK_ERR(gmem_populate(s.vm, 0, NULL, 1, 0, NULL, NULL), -EFAULT);
	CHECK_EQ(load64(s.vcpu, LEN), 2);
	/* The slot is there still: its addresses and number are taken. */
	CHECK_ERR(set_slot(s.vm, 2, 0, PG, other, 0), -EEXIST);
	CHECK_ERR(set_slot(s.vm, 0, 2 * LEN, PG, other, 0), -EINVAL);
	CHECK_OK(del_slot(s.vm, 0));
	s.file = make_file(LEN, 0);
	CHECK_OK(set_slot(s.vm, 0, 0, LEN, s.file, 0));
	CHECK_EQ(load64(s.vcpu, 0), 0);
	/* Closed, and never deleted. */
	gmem_file_free(other);
	tear_down(&s);
}

TEST(machine_goes_before_the_file)
{
	struct gmem_view *view;
	struct scene s;
	uint64_t v;

	set_up(&s);
	CHECK_OK(gmem_view_map(s.file, 0, LEN, PROT_READ, &view));
	CHECK_OK(set_slot(s.vm, 0, 0, LEN, s.file, 0));
	store64(s.vcpu, PG, 5);
	/* With a vCPU alive. */
	gmem_vm_free(s.vm);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &v, sizeof(v)), -EIO);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, PG, &v, sizeof(v)), -EIO);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, PG, PG, NULL), -EIO);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_OK(gmem_file_punch(s.file, 0, PG));
	to_private(s.file, 0, LEN);
	to_shared(s.file, 0, LEN);
	CHECK_EQ(*(uint64_t *)((char *)gmem_view_addr(view) + PG), 5);
	gmem_view_unmap(view);
	s.vm = NULL;
	tear_down(&s);
}

/* The view keeps the object, but the file is closed for machines when its owner frees it. */
TEST(file_is_kept_by_a_view)
{
	struct gmem_view *view;
	struct scene s;

	set_up(&s);
	CHECK_OK(gmem_view_map(s.file, 0, LEN, PROT_READ, &view));
	CHECK_OK(set_slot(s.vm, 0, 0, LEN, s.file, 0));
	store64(s.vcpu, PG, 5);
	gmem_file_free(s.file);
	check_fault(s.vcpu, PG, 0);
	CHECK_EQ(*(uint64_t *)((char *)gmem_view_addr(view) + PG), 5);
	gmem_view_unmap(view);
	s.file = NULL;
	tear_down(&s);
}

/* Whoever else has it open may be who brings its pages in: they could not be told from zero. */
TEST(one_object_has_a_guests_memory)
{
	struct gmem_file *other = (void *)1;
	struct gmem_keeper *keeper;
	char path[64];
	struct scene s;

	set_up(&s);
	CHECK_OK(gmem_file_open(gmem_file_fd(s.file), gmem_file_state_fd(s.file), &other));
	CHECK_ERR(set_slot(s.vm, 0, 0, LEN, s.file, 0), -EBUSY);
	gmem_file_free(other);
	CHECK_ERR(set_slot(s.vm, 0, 0, LEN, s.file, 0), -EBUSY);
	check_fault(s.vcpu, 0, 0);
	tear_down(&s);
	set_up(&s);
	CHECK_OK(set_slot(s.vm, 0, 0, LEN, s.file, 0));
	other = (void *)1;
	CHECK_ERR(gmem_file_open(gmem_file_fd(s.file), gmem_file_state_fd(s.file), &other), -EBUSY);
	CHECK(other == (void *)1);
	snprintf(path, sizeof(path), "/tmp/gmem-memslot-%d", (int)getpid());
	CHECK_OK(gmem_keeper_create(path, &keeper));
	CHECK_ERR(gmem_keeper_add_file(keeper, s.file, 0), -EBUSY);
	gmem_keeper_free(keeper);
	unlink(path);
	tear_down(&s);
}

TEST(not_in_a_forked_copy)
{
	struct scene s;
	pid_t pid;

	set_up(&s);
	CHECK_OK(set_slot(s.vm, 0, 0, PG, s.file, 0));
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		struct gmem_file *own = make_file(LEN, 0);

		CHECK_ERR(set_slot(s.vm, 1, LEN, PG, s.file, PG), -EIO);
		CHECK_ERR(set_slot(s.vm, 1, LEN, PG, own, 0), -EIO);
		CHECK_ERR(del_slot(s.vm, 0), -EIO);
		CHECK_ERR(set_slot(new_vm(GMEM_VM_DEFAULT), 1, LEN, PG, s.file, PG), -EIO);
		_exit(0);
	}
	wait_ok(pid);
	tear_down(&s);
}

/* ---- many */

TEST(four_thousand_slots)
{
	unsigned int n = tap_slow() ? 500 : 4000;
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file((uint64_t)n * PG, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	uint64_t begun = now_ms();

	/* Every other address, in an order that jumps about. */
	for (unsigned int i = 0; i < n; i++) {
		uint64_t at = (uint64_t)i * 1999 % n;

		CHECK_OK(set_slot(vm, i, at * 2 * PG, PG, file, at * PG));
	}
	printf("%u slots set in %llu ms\n", n, (unsigned long long)(now_ms() - begun));
	for (uint64_t i = 0; i < n; i++)
		store64(vcpu, i * 2 * PG, i + 1);
	CHECK_ERR(set_slot(vm, n, 0, PG, file, 0), -EEXIST);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t v;

		CHECK_OK(gmem_file_read(file, i * PG, &v, sizeof(v)));
		CHECK_EQ(v, i + 1);
		if (i % 97 == 0)
			check_fault(vcpu, (2 * i + 1) * PG, 0);
	}
	begun = now_ms();
	for (unsigned int i = 0; i < n; i += 2)
		CHECK_OK(del_slot(vm, i));
	printf("%u deleted in %llu ms\n", n / 2, (unsigned long long)(now_ms() - begun));
	for (unsigned int i = 0; i < n; i++) {
		uint64_t gpa = (uint64_t)i * 1999 % n * 2 * PG;

		if (i % 2 == 0 && i % 100 == 0)
			check_fault(vcpu, gpa, 0);
		else if (i % 2)
			CHECK_EQ(load64(vcpu, gpa), gpa / 2 / PG + 1);
	}
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

/* As many as KVM has; a number beyond is none. */
TEST_TIMEOUT(all_slots_are_in_use, 120)
{
	const uint32_t n = 32764;
	struct gmem_vm *vm = new_vm(GMEM_VM_DEFAULT);
	struct gmem_file *file = make_file((uint64_t)n * PG, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);

	for (uint32_t i = 0; i < n; i++)
		CHECK_OK(set_slot(vm, i, (n - i) * 2 * PG, PG, file, i * PG));
	CHECK_ERR(set_slot(vm, n, 0, PG, file, 0), -EINVAL);
	for (uint32_t i = 0; i < n; i += 31) {
		store64(vcpu, (n - i) * 2 * PG, i + 1);
		check_fault(vcpu, (n - i) * 2 * PG + PG, 0);
	}
	for (uint32_t i = 0; i < n; i += 31) {
		uint64_t v;

		CHECK_OK(gmem_file_read(file, i * PG, &v, sizeof(v)));
		CHECK_EQ(v, i + 1);
	}
	/* A punch is heard by the one slot of many that has the page. */
	CHECK_OK(gmem_file_punch(file, 31 * PG, PG));
	CHECK_EQ(load64(vcpu, (n - 31) * 2 * PG), 0);
	CHECK_EQ(load64(vcpu, (n - 62) * 2 * PG), 63);
	CHECK_OK(del_slot(vm, 62));
	check_fault(vcpu, (n - 62) * 2 * PG, 0);
	CHECK_OK(set_slot(vm, 62, 1ull << 40, PG, file, 62 * PG));
	CHECK_EQ(load64(vcpu, 1ull << 40), 63);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}
