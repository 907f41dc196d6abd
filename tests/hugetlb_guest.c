/* SPDX-License-Identifier: MIT */
/* Files of 2 MiB pages: guests and populate, insertions undone, policy, children, other objects. */
#define TAP_NO_MAIN
#include "tap.h"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "convert_util.h"
#include "huge_util.h"
#include "sys/call.h"

struct machine {
	struct gmem_file *file;
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
};

static struct machine machine_of(struct gmem_file *file, uint64_t len)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .len = len, .file = file };
	struct machine m = { .file = file };

	CHECK_OK(gmem_vm_create(NULL, &m.vm));
	CHECK_OK(gmem_vm_set_slot(m.vm, &slot));
	CHECK_OK(gmem_vcpu_create(m.vm, NULL, &m.vcpu));
	return m;
}

static void shut_down(struct machine *m)
{
	gmem_vcpu_free(m->vcpu);
	gmem_vm_free(m->vm);
	gmem_file_free(m->file);
}

static uint64_t faults(struct machine *m)
{
	struct gmem_vm_stats st = { .size = sizeof(st) };

	CHECK_OK(gmem_vm_stats(m->vm, &st));
	return st.faults;
}

TEST(a_guest_at_both_sizes)
{
	struct machine m = machine_of(huge_file(2, 0), 2 * H);
	char *all = calloc(1, H), byte = 0;

	/* Page by page, as the second stage maps what is in place in part. */
	CHECK_OK(gmem_vcpu_store(m.vcpu, 5 * P + 3, "guest", 5));
	CHECK_EQ(resident(m.file), H);
	CHECK_EQ(gmem_file_page_state(m.file, 5 * P), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(m.file, 6 * P), GMEM_PAGE_ABSENT);
	CHECK_OK(gmem_vcpu_load(m.vcpu, 6 * P, &byte, 1));
	CHECK_EQ(byte, 0);
	CHECK_EQ(faults(&m), 2);
	/* And whole. */
	memset(all, 'w', H);
	CHECK_OK(gmem_file_write(m.file, H, all, H));
	for (uint64_t i = 0; i < H_PAGES; i++) {
		CHECK_OK(gmem_vcpu_load(m.vcpu, H + i * P, &byte, 1));
		CHECK_EQ(byte, 'w');
	}
	CHECK_EQ(faults(&m), 3);
	/* A conversion and a punch are seen at either size. */
	CHECK_OK(gmem_file_set_attributes(m.file, H, H, PRIVATE, NULL));
	CHECK_OK(gmem_vcpu_store(m.vcpu, H + 9 * P, "p", 1));
	CHECK_OK(gmem_file_punch(m.file, H + 8 * P, P));
	CHECK_OK(gmem_vcpu_load(m.vcpu, H + 8 * P, &byte, 1));
	CHECK_EQ(byte, 0);
	CHECK_OK(gmem_vcpu_load(m.vcpu, H + 9 * P, &byte, 1));
	CHECK_EQ(byte, 'p');
	CHECK_OK(gmem_file_punch(m.file, H, H));
	CHECK_EQ(resident(m.file), H);
	CHECK_OK(gmem_vcpu_load(m.vcpu, H + 9 * P, &byte, 1));
	CHECK_EQ(byte, 0);
	free(all);
	shut_down(&m);
}

static int refuse_at(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	(void)vm;
	(void)pfn;
	(void)src;
	return gfn == *(uint64_t *)opaque ? gmem_set_error(-EKEYREJECTED, "refused") : 0;
}

TEST(populate_by_small_pages)
{
	struct machine m = machine_of(huge_file(2, GMEM_FILE_INIT_PRIVATE), 2 * H);
	char *src = aligned_alloc(P, 8 * P), byte;
	uint64_t bad = 13;

	for (uint64_t i = 0; i < 8; i++)
		memset(src + i * P, 'a' + (int)i, P);
	CHECK_EQ(gmem_populate(m.vm, 10, src, 8, 0, refuse_at, &bad), 3);
	CHECK_ERR(gmem_populate(m.vm, 13, src + 3 * P, 5, 0, refuse_at, &bad), -EKEYREJECTED);
	CHECK_EQ(gmem_file_page_state(m.file, 12 * P), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(m.file, 13 * P), GMEM_PAGE_ABSENT);
	CHECK_OK(gmem_vcpu_load(m.vcpu, 12 * P, &byte, 1));
	CHECK_EQ(byte, 'c');
	/* No byte of it is left. */
	CHECK_OK(gmem_vcpu_load(m.vcpu, 13 * P, &byte, 1));
	CHECK_EQ(byte, 0);
	bad = 12;
	CHECK_ERR(gmem_populate(m.vm, 12, src, 1, 0, refuse_at, &bad), -EKEYREJECTED);
	CHECK_OK(gmem_vcpu_load(m.vcpu, 12 * P, &byte, 1));
	CHECK_EQ(byte, 'c');
	free(src);
	shut_down(&m);
}

static struct gmem_folio insert(struct gmem_file *file, uint64_t off, uint32_t npages, const void *data)
{
	struct gmem_folio folio;

	CHECK_OK(file->ops->alloc(file, off, npages, &folio));
	folio.data = data;
	CHECK_OK(file->ops->insert(file, &folio));
	return folio;
}

/* Memory that is left without a page in it would pass for one that a mapping has filled. */
TEST(an_insertion_undone_leaves_no_memory)
{
	struct gmem_file *file = huge_file(2, 0);
	struct gmem_folio folio, other;
	struct gmem_view *view;
	char page[P];

	need_uffd();
	memset(page, 'i', P);
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	folio = insert(file, 7 * P, 1, page);
	CHECK_EQ(resident(file), H);
	file->ops->remove(file, &folio);
	CHECK_EQ(resident(file), 0);
	/* A neighbour that came meanwhile keeps it. */
	folio = insert(file, 7 * P, 1, page);
	other = insert(file, 9 * P, 1, page);
	file->ops->publish(file, &other);
	file->ops->remove(file, &folio);
	CHECK_EQ(resident(file), H);
	CHECK_EQ(*guest(file, 7), 0);
	CHECK_EQ(*guest(file, 9), 'i');
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	/* And so do bytes of a mapping's. */
	view = view_of(file, H_PAGES, H_PAGES, PROT_READ | PROT_WRITE);
	*page_of(view, H_PAGES) = 'v';
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	folio = insert(file, H + 7 * P, 1, page);
	file->ops->remove(file, &folio);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	CHECK_EQ(*page_of(view, H_PAGES), 'v');
	CHECK_EQ(*page_of(view, H_PAGES + 7), 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(adopted_whole_or_not_at_all)
{
	struct gmem_file *file = huge_file(3, 0);
	struct gmem_view *view;

	need_uffd();
	view = view_of(file, 0, 3 * H_PAGES, PROT_READ | PROT_WRITE);
	*page_of(view, 20) = 'a';
	CHECK_OK(gmem_file_write(file, H, "w", 1));
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	CHECK_EQ(file->ops->adopt(file, 2 * H + P, 1000), H_PAGES - 1);
	CHECK_EQ(file->ops->adopt(file, H, 1), 0);
	CHECK_EQ(file->ops->adopt(file, H + P, 5), 5);
	CHECK_EQ(file->ops->adopt(file, 3 * P, 5), 0);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	CHECK_EQ(gmem_file_unit(file, 0), GMEM_UNIT_IN_PLACE);
	CHECK_EQ(gmem_file_unit(file, H + P), GMEM_UNIT_PART);
	CHECK_EQ(gmem_file_unit(file, 2 * H), GMEM_UNIT_ABSENT);
	CHECK_EQ(*page_of(view, 20), 'a');
	gmem_view_unmap(view);
	gmem_file_free(file);
}

static int set_to, sets;
int __real_gmem_sys_set_mempolicy(int mode, const unsigned long *mask, unsigned long maxnode);
int __wrap_gmem_sys_set_mempolicy(int mode, const unsigned long *mask, unsigned long maxnode);

int __wrap_gmem_sys_set_mempolicy(int mode, const unsigned long *mask, unsigned long maxnode)
{
	if (!sets++)
		set_to = mode;
	return __real_gmem_sys_set_mempolicy(mode, mask, maxnode);
}

/* Of a mapping, to the kernel: what is brought in without one goes by the view's all the same. */
TEST(policy_of_a_range)
{
	struct gmem_file *file = huge_file(4, 0);
	struct gmem_view *a = view_of(file, 0, 2 * H_PAGES, PROT_READ | PROT_WRITE);
	struct gmem_view *b = view_of(file, 0, 4 * H_PAGES, PROT_READ | PROT_WRITE);
	unsigned long mask[16] = { 0 }, node;
	int mode, at;

	if (gmem_sys_get_mempolicy(NULL, mask, 1024, NULL, MPOL_F_MEMS_ALLOWED) || !mask[0])
		SKIP("numa", "get_mempolicy says no node");
	node = 63ul - (unsigned long)__builtin_clzl(mask[0]);
	mask[0] = 1ul << node;
	CHECK_EQ(gmem_sys_mbind(page_of(a, H_PAGES), H, MPOL_PREFERRED, mask, 64, 0), 0);
	CHECK_OK(gmem_sys_get_mempolicy(&mode, mask, 1024, page_of(a, H_PAGES + 3), MPOL_F_ADDR));
	CHECK_EQ(mode, MPOL_PREFERRED);
	CHECK_EQ(mask[0], 1ul << node);
	CHECK_OK(gmem_file_write(file, 3 * P, "d", 1));
	CHECK_OK(gmem_file_write(file, 3 * H, "d", 1));
	CHECK_EQ(sets, 0);
	CHECK_OK(gmem_file_write(file, H + 3 * P, "n", 1));
	/* Set for the time of it, and set back. */
	CHECK_EQ(sets, 2);
	CHECK_EQ(set_to, MPOL_PREFERRED);
	CHECK_OK(gmem_sys_get_mempolicy(&mode, mask, 1024, NULL, 0));
	CHECK_EQ(mode, MPOL_DEFAULT);
	CHECK_EQ(*page_of(b, H_PAGES + 3), 'n');
	CHECK_OK(gmem_sys_get_mempolicy(&at, NULL, 0, page_of(b, H_PAGES + 3), MPOL_F_NODE | MPOL_F_ADDR));
	CHECK_EQ(at, node);
	gmem_view_unmap(a);
	gmem_view_unmap(b);
	gmem_file_free(file);
}

/* A child has neither the window nor the views, and something else may be where they were. */
TEST(a_forked_child)
{
	struct gmem_file *file = huge_file(2, 0);
	char *window = guest(file, 0), buf[8] = "";
	pid_t pid;

	CHECK_OK(gmem_file_write(file, 100, "parent", 7));
	pid = fork();
	if (!pid) {
		char *there = mmap(window, 2 * H, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);

		CHECK(there == window);
		CHECK_OK(gmem_file_read(file, 100, buf, 7));
		CHECK_STR(buf, "parent");
		CHECK_OK(gmem_file_write(file, H - 3, "child", 6));
		CHECK_EQ(there[H - 3], 0);
		CHECK_OK(gmem_file_punch(file, 0, P));
		gmem_file_free(file);
		_exit(0);
	}
	wait_ok(pid);
	CHECK_OK(gmem_file_read(file, H - 3, buf, 6));
	CHECK_STR(buf, "child");
	CHECK_EQ(window[100], 0);
	CHECK_EQ(gmem_file_page_state(file, H), GMEM_PAGE_UPTODATE);
	gmem_file_free(file);
}

TEST(opened_again_and_kept)
{
	struct gmem_file *file = huge_file(2, 0), *again, *small;
	struct gmem_keeper *keeper;
	char path[64], byte;

	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &again));
	CHECK_EQ(gmem_file_page_size(again), H);
	CHECK_OK(gmem_file_write(again, H + 7, "o", 1));
	CHECK_OK(gmem_file_read(file, H + 7, &byte, 1));
	CHECK_EQ(byte, 'o');
	CHECK_OK(gmem_file_create(2 * H, NULL, &small));
	CHECK_ERR(gmem_file_open(gmem_file_fd(small), gmem_file_state_fd(file), &again), -EINVAL);
	gmem_file_free(small);
	snprintf(path, sizeof(path), "/tmp/gmem-huge-%d", (int)getpid());
	CHECK_OK(gmem_keeper_create(path, &keeper));
	CHECK_ERR(gmem_keeper_add_file(keeper, file, 0), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "huge pages");
	gmem_keeper_free(keeper);
	unlink(path);
	gmem_file_free(again);
	gmem_file_free(file);
}
