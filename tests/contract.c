/* SPDX-License-Identifier: MIT */
/* The contract of a guest memory file on both engines: making it, its descriptor, mapping it, its memory. */
#include "contract_util.h"

/* ---- making */

CONTRACT(sizes, 0, 0)
{
	static const struct {
		uint64_t len;
		int ret;
	} table[] = {
		{ 0, -EINVAL },		 { 1, -EINVAL },     { P - 1, -EINVAL },      { P, 0 },
		{ P + 1, -EINVAL },	 { 513 * P, 0 },     { 1ull << 40, 0 },	      { 1ull << 45, 0 },
		{ 1ull << 63, -EINVAL }, { 0 - P, -EINVAL }, { UINT64_MAX, -EINVAL }, { 1ull << 62, -ENOMEM },
	};

	for (size_t i = 0; i < COUNT(table); i++) {
		struct gmem_file *file = NULL;
		int ret = contract_create(c, table[i].len, 0, &file);

		if (ret != table[i].ret)
			FAIL("size 0x%llx: %d, not %d", (unsigned long long)table[i].len, ret, table[i].ret);
		CHECK_EQ(!ret, !!file);
		if (file)
			CHECK_EQ(gmem_file_size(file), table[i].len);
		gmem_file_free(file);
	}
}

CONTRACT(flags, 0, 0)
{
	const struct {
		uint32_t flags;
		int ret;
	} table[] = {
		{ 0, 0 },
		{ GMEM_FILE_INIT_PRIVATE, 0 },
		{ GMEM_FILE_NO_MMAP, 0 },
		{ GMEM_FILE_INIT_PRIVATE | GMEM_FILE_NO_MMAP, 0 },
		{ GMEM_FILE_STRICT, BY_ENGINE(c, 0, -EOPNOTSUPP) },
		{ 1u << 6, -EINVAL },
		{ 1u << 31, -EINVAL },
	};

	for (size_t i = 0; i < COUNT(table); i++) {
		struct gmem_file *file = NULL;
		int ret = contract_create(c, P, table[i].flags, &file);

		if (ret != table[i].ret)
			FAIL("flags 0x%x: %d, not %d", table[i].flags, ret, table[i].ret);
		gmem_file_free(file);
	}
}

CONTRACT(options, 0, 0)
{
	struct gmem_file_opts good = { .size = sizeof(good), .engine = c->engine, .name = "contract" }, o;
	struct gmem_file *file;

	o = good;
	o.size = 4;
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	o = good;
	o.needs = 1u << 5;
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	o = good;
	o.name = "";
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	o.name = "a/b";
	CHECK_ERR(gmem_file_create(P, &o, &file), -EINVAL);
	CHECK_OK(gmem_file_create(P, &good, &file));
	CHECK_EQ(gmem_file_engine(file), c->engine);
	CHECK_HAS(gmem_file_explain(file), BY_ENGINE(c, "user engine: asked for", "kernel engine: asked for"));
	CHECK_EQ(gmem_file_kvm_vm(file) >= 0, c->engine == GMEM_ENGINE_KERNEL);
	gmem_file_free(file);
}

CONTRACT(descriptor, 3, 0)
{
	struct stat st;

	CHECK_EQ(fstat(gmem_file_fd(c->file), &st), 0);
	CHECK_EQ(st.st_size, 3 * P);
	CHECK_EQ(st.st_blksize, P);
	CHECK(S_ISREG(st.st_mode));
	CHECK(fcntl(gmem_file_fd(c->file), F_GETFD) & FD_CLOEXEC);
	CHECK_EQ(fcntl(gmem_file_fd(c->file), F_GETFL) & O_ACCMODE, O_RDWR);
	/* A different size it has on neither. */
	CHECK_EQ(ftruncate(gmem_file_fd(c->file), 4 * P), -1);
	CHECK_EQ(errno, BY_ENGINE(c, EPERM, EINVAL));
	CHECK_EQ(fstat(gmem_file_fd(c->file), &st), 0);
	CHECK_EQ(st.st_size, 3 * P);
}

CONTRACT(descriptor_after_the_object, 2, 0)
{
	struct gmem_view *view = map(c, 0, 2 * P, RW);
	int fd = dup(gmem_file_fd(c->file));
	struct stat st;
	char *raw;

	CHECK(fd >= 0);
	CHECK_OK(gmem_file_write(c->file, P, "kept", 4));
	gmem_file_free(c->file);
	c->file = NULL;
	strcpy(at(view, 0), "by the view");
	gmem_view_unmap(view);
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK_EQ(st.st_size, 2 * P);
	raw = mmap(NULL, 2 * P, RW, MAP_SHARED, fd, 0);
	CHECK(raw != MAP_FAILED);
	CHECK_STR(raw, "by the view");
	CHECK_STR(raw + P, "kept");
	CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, P), 0);
	CHECK(is_filled(raw, 0, P));
	CHECK_STR(raw + P, "kept");
	close(fd);
	CHECK_STR(raw + P, "kept");
	munmap(raw, 2 * P);
}

/* ---- views */

CONTRACT(protections, 2, 0)
{
	static const struct {
		int prot, ret, load, store;
	} table[] = {
		{ PROT_NONE, 0, SIGSEGV, SIGSEGV },
		{ PROT_READ, 0, 0, SIGSEGV },
		{ RW, 0, 0, 0 },
		{ PROT_WRITE, 0, 0, 0 },
		{ PROT_EXEC, -EINVAL, 0, 0 },
		{ RW | PROT_EXEC, -EINVAL, 0, 0 },
		{ RW | PROT_GROWSDOWN, -EINVAL, 0, 0 },
	};

	for (size_t i = 0; i < COUNT(table); i++) {
		struct gmem_view *view = NULL;

		if (gmem_view_map(c->file, 0, 2 * P, table[i].prot, &view) != table[i].ret)
			FAIL("prot 0x%x: %s", (unsigned int)table[i].prot, gmem_last_error());
		if (!view)
			continue;
		CHECK_EQ(gmem_view_len(view), 2 * P);
		CHECK_EQ(load(at(view, P)), table[i].load);
		CHECK_EQ(store(at(view, P)), table[i].store);
		gmem_view_unmap(view);
	}
}

CONTRACT(view_ranges, 4, 0)
{
	static const struct {
		uint64_t off, len;
		int ret;
	} table[] = {
		{ 0, 4 * P, 0 },       { 3 * P, P, 0 },	  { 1, P, -EINVAL },
		{ 0, P - 1, -EINVAL }, { 0, 0, -EINVAL }, { 0 - P, 2 * P, -EOVERFLOW },
		{ 0, 9 * P, 0 },       { 4 * P, P, 0 },	  { 0, 0 - P, -ENOMEM },
	};

	for (size_t i = 0; i < COUNT(table); i++) {
		struct gmem_view *view = NULL;
		int ret = gmem_view_map(c->file, table[i].off, table[i].len, RW, &view);

		if (ret != table[i].ret)
			FAIL("off 0x%llx, len 0x%llx: %d, not %d", (unsigned long long)table[i].off,
			     (unsigned long long)table[i].len, ret, table[i].ret);
		gmem_view_unmap(view);
	}
}

CONTRACT(views_show_one_memory, 4, 0)
{
	struct gmem_view *a = map(c, 0, 4 * P, RW), *b = map(c, 2 * P, P, PROT_READ);
	char buf[8];

	strcpy(at(a, 2 * P), "views");
	CHECK_STR(at(b, 0), "views");
	CHECK_OK(gmem_file_read(c->file, 2 * P, buf, sizeof(buf)));
	CHECK_STR(buf, "views");
	CHECK_OK(gmem_file_write(c->file, 2 * P + 5, "!", 2));
	CHECK_STR(at(b, 0), "views!");
	gmem_file_free(c->file);
	c->file = NULL;
	at(a, 2 * P)[0] = 'V';
	CHECK_STR(at(b, 0), "Views!");
	gmem_view_unmap(a);
	CHECK_STR(at(b, 0), "Views!");
	gmem_view_unmap(b);
}

CONTRACT(beyond_the_end, 2, 0)
{
	char *raw = mmap(NULL, 4 * P, RW, MAP_SHARED, gmem_file_fd(c->file), 0);
	struct gmem_view *view = map(c, 0, 4 * P, RW);
	char *both[] = { raw, at(view, 0) };

	CHECK(raw != MAP_FAILED);
	for (size_t i = 0; i < COUNT(both); i++) {
		CHECK_EQ(store(both[i] + 2 * P - 1), 0);
		CHECK_EQ(load(both[i] + 2 * P), SIGBUS);
		CHECK_EQ(store(both[i] + 4 * P - 1), SIGBUS);
		CHECK_EQ(both[i][2 * P - 1], 'x');
	}
	munmap(raw, 4 * P);
	gmem_view_unmap(view);
}

/* Two views of one, and one that grows past the end and goes. */
CONTRACT(splitting_and_remapping, 4, 0)
{
	struct gmem_view *first = map(c, 0, 4 * P, RW), *second = NULL;
	char *there;

	strcpy(at(first, P), "first");
	strcpy(at(first, 3 * P), "second");
	CHECK_ERR(gmem_view_split(first, 1, &second), -EINVAL);
	CHECK_ERR(gmem_view_split(first, 4 * P, &second), -EINVAL);
	CHECK_OK(gmem_view_split(first, 2 * P, &second));
	CHECK_EQ(gmem_view_len(first), 2 * P);
	CHECK_EQ(gmem_view_len(second), 2 * P);
	CHECK(at(second, 0) == at(first, 2 * P));
	there = mmap(NULL, 4 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(there != MAP_FAILED);
	CHECK_ERR(gmem_view_remap(second, 0, NULL), -EINVAL);
	CHECK_OK(gmem_view_remap(second, 4 * P, there));
	CHECK(at(second, 0) == there);
	CHECK_STR(at(second, P), "second");
	CHECK_EQ(load(at(second, 2 * P)), SIGBUS);
	CHECK_STR(at(first, P), "first");
	gmem_view_unmap(first);
	CHECK_OK(gmem_view_remap(second, P, NULL));
	CHECK_EQ(load(at(second, 0)), 0);
	gmem_view_unmap(second);
}

CONTRACT(private_mapping_of_the_descriptor, 2, 0)
{
	void *p = mmap(NULL, 2 * P, RW, MAP_PRIVATE, gmem_file_fd(c->file), 0);

	CHECK_EQ(p == MAP_FAILED ? -errno : 0, BY_ENGINE(c, 0, -EINVAL));
	if (p != MAP_FAILED)
		munmap(p, 2 * P);
}

CONTRACT(file_that_is_not_mapped, 2, GMEM_FILE_NO_MMAP)
{
	struct gmem_view *view = NULL;
	char byte = 1;

	CHECK_ERR(gmem_view_map(c->file, 0, 2 * P, RW, &view), -ENODEV);
	CHECK_HAS(gmem_last_error(), "GMEM_FILE_NO_MMAP");
	CHECK(!view);
	CHECK_EQ(gmem_file_write(c->file, P, &byte, 1), BY_ENGINE(c, 0, -EACCES));
	CHECK_HAS(gmem_last_error(), BY_ENGINE(c, "", "gmem_file_write: page at 0x1000: nobody can map this file"));
	CHECK_EQ(gmem_file_read(c->file, P, &byte, 1), BY_ENGINE(c, 0, -EACCES));
	CHECK_HAS(gmem_last_error(), BY_ENGINE(c, "", "gmem_file_read: page at 0x1000: nobody can map this file"));
	CHECK_OK(gmem_file_fallocate(c->file, FALLOC_FL_KEEP_SIZE, 0, 2 * P));
	CHECK_OK(gmem_file_punch(c->file, 0, 2 * P));
	CHECK_EQ(gmem_file_page_state(c->file, P), GMEM_PAGE_REMOVED);
}

/* ---- pages that began private */

CONTRACT(private_pages, 4, GMEM_FILE_INIT_PRIVATE)
{
	uint64_t attributes, len;
	struct gmem_view *view = map(c, 0, 4 * P, RW);
	char byte = 0;

	CHECK_OK(gmem_file_attributes(c->file, P, &attributes, &len));
	CHECK_EQ(attributes, GMEM_ATTRIBUTE_PRIVATE);
	CHECK_EQ(len, 3 * P);
	for (uint64_t off = 0; off < 4 * P; off += P) {
		CHECK_EQ(load(at(view, off)), SIGBUS);
		CHECK_EQ(store(at(view, off)), SIGBUS);
	}
	CHECK_ERR(gmem_file_read(c->file, P, &byte, 1), -EACCES);
	CHECK_ERR(gmem_file_write(c->file, P, &byte, 1), -EACCES);
	CHECK_ERR(gmem_file_pin(c->file, P, P), -EACCES);
	CHECK_EQ(gmem_file_page_state(c->file, P), GMEM_PAGE_ABSENT);
	CHECK_OK(gmem_file_fallocate(c->file, FALLOC_FL_KEEP_SIZE, 0, 2 * P));
	CHECK_EQ(load(at(view, 0)), SIGBUS);
	CHECK_OK(gmem_file_punch(c->file, P, P));
	CHECK_EQ(gmem_file_page_state(c->file, P), GMEM_PAGE_REMOVED);
	CHECK_EQ(load(at(view, P)), SIGBUS);
	CHECK_EQ(madvise(at(view, 0), 4 * P, MADV_REMOVE), 0);
	CHECK_EQ(load(at(view, 0)), SIGBUS);
	gmem_view_unmap(view);
}

CONTRACT(private_pages_in_system_calls, 2, GMEM_FILE_INIT_PRIVATE)
{
	struct gmem_view *view = map(c, 0, 2 * P, RW);
	int pipes[2];

	CHECK_EQ(pipe(pipes), 0);
	CHECK_EQ(write(pipes[1], at(view, P), 1), -1);
	CHECK_EQ(errno, EFAULT);
	CHECK_EQ(write(pipes[1], "x", 1), 1);
	CHECK_EQ(read(pipes[0], at(view, 0), 1), -1);
	CHECK_EQ(errno, EFAULT);
	close(pipes[0]);
	close(pipes[1]);
	gmem_view_unmap(view);
}

/* ---- engines, once */

static const struct {
	uint32_t need;
	const char *lacks; /* in the explanation, where the kernel has not got it */
} needs[] = {
	{ GMEM_NEED_CONVERSION, "does not convert pages in place" },
	{ GMEM_NEED_USERFAULT, "takes no userfaults" },
	{ GMEM_NEED_NUMA, "takes no memory policy" },
	{ GMEM_NEED_VCPU, "" },
	{ GMEM_NEED_KVM_SLOT, "" },
};

/* AUTO takes the kernel's file if, and only if, that can be made with the same need. */
TEST(needs_choose_the_engine)
{
	struct gmem_file_opts kernel = { .size = sizeof(kernel), .engine = GMEM_ENGINE_KERNEL };
	struct gmem_file_opts any = { .size = sizeof(any) };
	struct gmem_file *file;

	if (gmem_file_create(P, &kernel, &file))
		SKIP("kvm", "%s", gmem_last_error());
	gmem_file_free(file);
	for (size_t i = 0; i < COUNT(needs); i++) {
		bool has;

		kernel.needs = any.needs = needs[i].need;
		has = !gmem_file_create(P, &kernel, &file);
		if (has)
			gmem_file_free(file);
		else
			CHECK_HAS(gmem_last_error(), needs[i].lacks);
		CHECK_OK(gmem_file_create(P, &any, &file));
		CHECK_EQ(gmem_file_engine(file), has ? GMEM_ENGINE_KERNEL : GMEM_ENGINE_USER);
		CHECK_HAS(gmem_file_explain(file), has ? "kernel engine: " : "user engine: ");
		if (!has)
			CHECK_HAS(gmem_file_explain(file), needs[i].lacks);
		gmem_file_free(file);
	}
}

TEST(kvm_slots_need_the_kernel_engine)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_USER, .needs = GMEM_NEED_KVM_SLOT };
	struct gmem_file *file;

	CHECK_ERR(gmem_file_create(P, &o, &file), -EOPNOTSUPP);
	/* What no guest_memfd has stands in its way, so there is no file at all. */
	o.engine = GMEM_ENGINE_AUTO;
	o.flags = GMEM_FILE_STRICT;
	CHECK_ERR(gmem_file_create(P, &o, &file), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "strict");
}

static int caller_vm(void)
{
	int kvm = gmem_kvm_open(), vm;

	if (kvm < 0)
		SKIP("kvm", "/dev/kvm: %s", strerror(-kvm));
	vm = gmem_kvm_vm_create(kvm, KVM_X86_DEFAULT_VM);
	close(kvm);
	if (vm < 0)
		SKIP("kvm", "a default VM: %s", strerror(-vm));
	return vm;
}

/* A file of the caller's VM goes into its slots, and into no other's. */
TEST(vm_of_the_caller)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_KERNEL };
	int vm = caller_vm(), other = caller_vm();
	struct gmem_file *file;

	o.kvm_vm = vm;
	if (gmem_file_create(4 * P, &o, &file))
		SKIP("kvm", "%s", gmem_last_error());
	CHECK(gmem_file_kvm_vm(file) >= 0);
	CHECK(gmem_file_kvm_vm(file) != vm);
	CHECK_EQ(gmem_kvm_slot_set(other, 0, 0, 4 * P, NULL, gmem_file_fd(file), 0), -EINVAL);
	CHECK_EQ(gmem_kvm_slot_set(vm, 0, 0, 2 * P, NULL, gmem_file_fd(file), 0), 0);
	/* The caller's descriptor was only borrowed. */
	close(vm);
	CHECK_EQ(gmem_kvm_slot_set(gmem_file_kvm_vm(file), 1, 4 * P, 2 * P, NULL, gmem_file_fd(file), 2 * P), 0);
	gmem_file_free(file);
	close(other);
}

TEST(vm_that_is_none)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_KERNEL };
	struct gmem_file *file;

	o.kvm_vm = open("/dev/null", O_RDWR | O_CLOEXEC);
	CHECK(o.kvm_vm >= 0);
	CHECK_ERR(gmem_file_create(P, &o, &file), -ENOTTY);
	CHECK_HAS(gmem_last_error(), "kvm_vm");
	o.engine = GMEM_ENGINE_AUTO;
	o.needs = GMEM_NEED_VCPU;
	CHECK_OK(gmem_file_create(P, &o, &file));
	CHECK_EQ(gmem_file_engine(file), GMEM_ENGINE_USER);
	CHECK_HAS(gmem_file_explain(file), "kvm_vm");
	gmem_file_free(file);
	close(o.kvm_vm);
	o.engine = GMEM_ENGINE_KERNEL;
	CHECK_ERR(gmem_file_create(P, &o, &file), -EBADF);
	CHECK_HAS(gmem_last_error(), "kvm_vm");
}
