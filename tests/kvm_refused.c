/* SPDX-License-Identifier: MIT */
/* What cannot be had for a guest on KVM: a marker, a slot, a slot's end. */
#include "kvm_reach.h"

#include "sys/uffd.h"

/* How many calls until one fails, and with what; 0: none. */
static int poison_fails, register_fails, open_fails, plain_slot_fails, fail_with;

int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __real_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __real_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __real_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva);
int __wrap_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva);

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	*done = 0;
	if (poison_fails && !--poison_fails)
		return fail_with;
	return __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
}

int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode)
{
	if (register_fails && !--register_fails)
		return fail_with;
	return __real_gmem_sys_uffd_register(uffd, hva, len, mode);
}

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	if (open_fails && !--open_fails)
		return fail_with;
	return __real_gmem_sys_uffd_open(features, user_mode_only);
}

int __wrap_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva)
{
	if (plain_slot_fails && !--plain_slot_fails)
		return fail_with;
	return __real_gmem_kvm_plain_slot_set(vm, slot, flags, gpa, len, hva);
}

static void free_vm(struct scene *s)
{
	gmem_vm_free(s->vm);
	s->vm = NULL;
}

static void *run_forever(void *arg)
{
	struct scene *s = arg;

	begin(s, GUEST_forever, 0);
	return (void *)(intptr_t)gmem_vcpu_run(s->vcpu);
}

/* Pages that guests cannot be kept out of do not become private, and all goes on. */
TEST_TIMEOUT(conversion_that_cannot_bar, 120)
{
	struct scene s;

	watch_bus();
	EACH_DEFAULT_WAY(&s)
	{
		uint64_t at;

		for (uint64_t page = 0; page < 4; page++)
			run(&s, GUEST_store8, GPA + page * PG, 5 + page);
		fail_with = -ENOMEM;
		for (int times = 0; times < 3; times++) {
			/* What the gate's first marker takes; then a marker; then what is tried again after zapping. */
			*(times ? &poison_fails : &register_fails) = times ? times : 1;
			at = LEN;
			CHECK_ERR(gmem_file_set_attributes(s.file, 0, 4 * PG, GMEM_ATTRIBUTE_PRIVATE, &at), -ENOMEM);
			CHECK_EQ(at, 0);
			CHECK(strstr(gmem_last_error(), "gmem_file_set_attributes: "));
			CHECK_EQ(poison_fails + register_fails, 0);
			for (uint64_t page = 0; page < 4; page++) {
				CHECK(!gmem_file_private(s.file, page * PG));
				CHECK_EQ(run(&s, GUEST_load8, GPA + page * PG), 5 + page);
				CHECK_EQ(file_word(s.file, page * PG), 5 + page);
			}
		}
		to_private(s.file, 0, 4 * PG);
		run_err(&s, -EFAULT, GUEST_load8, GPA + 2 * PG);
		check_fault(&s, GPA + 2 * PG, 0);
		to_shared(s.file, 0, 4 * PG);
		CHECK_OK(go_on(&s));
		check_signals();
	}
}

/* A page that must be barred and cannot be: nobody reads it, and the VM is dead, whatever its guests are at. */
TEST_TIMEOUT(page_that_cannot_be_barred, 120)
{
	struct scene s;

	watch_bus();
	EACH_DEFAULT_WAY(&s)
	{
		struct scene other = s;
		pthread_t t;
		void *ret;

		other.vcpu = new_kvm_vcpu(s.vm, 1);
		other.boot = boot_range(s.vm, 1);
		guest_init(&other.guest, gmem_vcpu_kvm_fd(other.vcpu), gmem_vcpu_kvm_run(other.vcpu), other.boot,
			   BOOT_GPA + GUEST_BOOT_LEN, ways[way_].mode, ways[way_].interrupts);
		run(&s, GUEST_store8, GPA, 5);
		t = start(run_forever, &other);
		fail_with = -ENOMEM;
		poison_fails = 1;
		CHECK_OK(gmem_file_poison(s.file, 0, PG));
		CHECK_EQ(poison_fails, 0);
		begin(&s, GUEST_load8, GPA);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
		for (uint64_t off = 0; off < LEN; off += PG)
			CHECK(!within_reach(gate_of(&s), off));
		CHECK_EQ(pthread_join(t, &ret), 0);
		CHECK_EQ((intptr_t)ret, -EIO);
		CHECK_ERR(set_slot(s.vm, 5, 0, PG, s.file, 0), -EIO);
		check_signals();
		gmem_vcpu_free(other.vcpu);
		munmap(other.boot, GUEST_BOOT_LEN);
	}
}

struct held {
	unsigned int fds, maps;
};

static void count_fd(int fd, void *opaque)
{
	(void)fd;
	((struct held *)opaque)->fds++;
}

static struct held held(void)
{
	struct held h = { 0 };
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];

	CHECK(maps);
	while (fgets(line, sizeof(line), maps))
		h.maps += !!strstr(line, "memfd:gmem-");
	fclose(maps);
	tap_each_number("/proc/self/fd", count_fd, &h);
	return h;
}

/* The next that `counter` counts fail one by one, until the slot is set. Nothing of it is left each time. */
static void fail_each(struct scene *s, int *counter, int err, int answer, int how_many)
{
	struct held before;
	int failed = 0;

	before = held();
	for (;; failed++) {
		struct held after;
		int got;

		*counter = failed + 1;
		fail_with = err;
		got = set_slot(s->vm, 0, GPA, LEN, s->file, 0);
		if (!got)
			break;
		CHECK_EQ(got, answer);
		CHECK_EQ(*counter, 0);
		after = held();
		CHECK_EQ(after.fds, before.fds);
		CHECK_EQ(after.maps, before.maps);
		begin(s, GUEST_load8, GPA);
		CHECK_OK(gmem_vcpu_run(s->vcpu));
		CHECK_EQ(exit_of(s->vcpu).reason, KVM_EXIT_MMIO);
		CHECK_OK(go_on(s));
	}
	CHECK_EQ(failed, how_many);
	*counter = 0;
	CHECK_OK(del_slot(s->vm, 0));
}

/* That of all a file's gates: with its first slot, and not again. */
static void descriptor_that_cannot_be_had(struct scene *s, int err, int answer)
{
	struct gmem_file *file = make_file(2 * LEN, 0);
	struct held before, after;

	CHECK(gmem_file_window(file));
	before = held();
	open_fails = 1;
	fail_with = err;
	CHECK_ERR(set_slot(s->vm, 0, GPA, LEN, file, 0), answer);
	CHECK_EQ(open_fails, 0);
	after = held();
	CHECK_EQ(after.fds, before.fds);
	CHECK_EQ(after.maps, before.maps);
	CHECK_OK(set_slot(s->vm, 0, GPA, LEN, file, 0));
	open_fails = 1;
	CHECK_OK(set_slot(s->vm, 1, GPA + LEN, LEN, file, LEN));
	to_private(file, 0, 2 * LEN);
	CHECK_EQ(open_fails, 1);
	open_fails = 0;
	CHECK_OK(del_slot(s->vm, 0));
	CHECK_OK(del_slot(s->vm, 1));
	gmem_file_free(file);
}

TEST_TIMEOUT(slot_that_cannot_be_set, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		to_private(s.file, 3 * PG, PG);
		CHECK_OK(gmem_file_poison(s.file, 7 * PG, PG));
		CHECK_OK(del_slot(s.vm, 0));
		descriptor_that_cannot_be_had(&s, -EMFILE, -EMFILE);
		descriptor_that_cannot_be_had(&s, -EPERM, -EOPNOTSUPP);
		fail_each(&s, &poison_fails, -ENOMEM, -ENOMEM, 2);
		fail_each(&s, &plain_slot_fails, -ENOMEM, -ENOMEM, 1);
		CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
		set_file_word(s.file, PG, 7);
		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 7);
		run_err(&s, -EFAULT, GUEST_load8, GPA + 3 * PG);
		to_shared(s.file, 3 * PG, PG);
		CHECK_OK(go_on(&s));
	}
}

/* KVM keeps a slot that is to go: it is there as before; or with the VM gone, its memory is nobody's. */
TEST_TIMEOUT(slot_that_cannot_be_deleted, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		char *addr = gate_of(&s)->addr;
		void *p;

		run(&s, GUEST_store8, GPA, 5);
		fail_with = -ENOMEM;
		plain_slot_fails = 1;
		CHECK_ERR(del_slot(s.vm, 0), -ENOMEM);
		CHECK_EQ(run(&s, GUEST_load8, GPA), 5);
		CHECK_ERR(set_slot(s.vm, 0, GPA, LEN, s.file, 0), -EINVAL);
		CHECK_OK(del_slot(s.vm, 0));
		begin(&s, GUEST_load8, GPA);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		CHECK_EQ(exit_of(s.vcpu).reason, KVM_EXIT_MMIO);
		CHECK_OK(go_on(&s));

		CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
		addr = gate_of(&s)->addr;
		plain_slot_fails = 1;
		free_vm(&s);
		CHECK_EQ(plain_slot_fails, 0);
		/* KVM may still have it, so nobody gets the addresses. */
		p = mmap(addr, LEN, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		CHECK(p == MAP_FAILED);
		CHECK(gmem_sys_peek(&(char){ 0 }, addr, 1) != 1);
	}
}

#include "tap_main.h"
