/* SPDX-License-Identifier: MIT */
/* A guest waits for a page that somebody supplies, and the page, its slot, its file or its machine goes meanwhile. */
#include "mmu_util.h"

#include "pager_util.h"

#define GPA 0x200000ull
#define LEN (8 * PG)
#define PAGE 2ull /* that the guest waits for */

struct scene {
	struct gmem_file *file;
	struct gmem_view *view;
	struct gmem_uffd *uffd; /* who supplies, or else: */
	struct gmem_pager *pager;
	struct gmem_source *source;
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	pthread_t thread;
	uint64_t word;
	int err;
	_Atomic bool done;
	_Atomic unsigned int asked; /* reads of the source */
};

/* Not now. */
static int not_now(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct scene *s = opaque;

	(void)off;
	(void)buf;
	(void)len;
	atomic_fetch_add(&s->asked, 1);
	return gmem_set_error(-EAGAIN, "not now");
}

static void supply_by_uffd(struct scene *s)
{
	CHECK_OK(gmem_uffd_create(NULL, &s->uffd));
	CHECK_OK(gmem_uffd_add_view(s->uffd, s->view));
}

static void supply_by_pager(struct scene *s)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = not_now };

	CHECK_OK(gmem_source_new(&ops, s, &s->source));
	CHECK_OK(gmem_pager_create(NULL, &s->pager));
	CHECK_OK(gmem_pager_add_view(s->pager, s->view, s->source, 0));
}

static void *load(void *arg)
{
	struct scene *s = arg;

	s->err = gmem_vcpu_load(s->vcpu, GPA + PAGE * PG, &s->word, sizeof(s->word));
	atomic_store(&s->done, true);
	return NULL;
}

/* Its supplier has been told. */
static void wait_until_it_waits(struct scene *s)
{
	struct gmem_uffd_event e = { .off = ~0ull };

	for (int ms = 0; ms < 10000 && !atomic_load(&s->asked) && e.off == ~0ull; ms++) {
		if (s->uffd)
			CHECK_OK(gmem_uffd_read(s->uffd, &e, 1));
		usleep(1000);
	}
	if (s->uffd)
		CHECK_EQ(e.off, PAGE * PG);
	else
		CHECK(atomic_load(&s->asked));
	usleep(30000);
	CHECK(!atomic_load(&s->done));
}

static void set_up(struct scene *s, enum gmem_vm_type type, void (*supply)(struct scene *s))
{
	need_markers();
	catch_bus();
	memset(s, 0, sizeof(*s));
	s->file = make_file(LEN, 0);
	CHECK_OK(gmem_view_map(s->file, 0, LEN, PROT_READ | PROT_WRITE, &s->view));
	supply(s);
	s->vm = new_vm(type);
	CHECK_OK(set_slot(s->vm, 0, GPA, LEN, s->file, 0));
	s->vcpu = new_vcpu(s->vm);
	s->word = 0x77;
	s->thread = start(load, s);
	wait_until_it_waits(s);
}

static void tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	if (s->vm)
		gmem_vm_free(s->vm);
	if (s->uffd)
		gmem_uffd_free(s->uffd);
	if (s->pager)
		gmem_pager_free(s->pager);
	if (s->source)
		gmem_source_unref(s->source);
	gmem_view_unmap(s->view);
	if (s->file)
		gmem_file_free(s->file);
}

/* The load has ended, so, and gave nothing. */
static void ends(struct scene *s, int err, enum gmem_exit_reason reason)
{
	struct gmem_exit e;

	for (int ms = 0; ms < 5000 && !atomic_load(&s->done); ms++)
		usleep(1000);
	if (!atomic_load(&s->done))
		FAIL("the guest waits on");
	join(s->thread);
	e = exit_of(s->vcpu);
	printf("error %d, exit %d\n", s->err, (int)e.reason);
	CHECK_EQ(s->err, err);
	CHECK_EQ(e.reason, reason);
	CHECK_EQ(e.gpa, reason == GMEM_EXIT_NONE ? 0 : GPA + PAGE * PG);
	CHECK_EQ(e.flags, 0);
	CHECK_EQ(s->word, 0x77);
}

/* ---- the page goes to the other side */

static void converted(enum gmem_vm_type type, void (*supply)(struct scene *s))
{
	struct scene s;
	uint64_t word;

	set_up(&s, type, supply);
	to_private(s.file, PAGE * PG, PG);
	ends(&s, -EFAULT, GMEM_EXIT_MEMORY_FAULT);
	/* As for one that comes later. */
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + PAGE * PG, &word, sizeof(word)), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
	tear_down(&s);
}

TEST(uffd_snp_converted)
{
	converted(GMEM_VM_SNP, supply_by_uffd);
}

TEST(uffd_default_converted)
{
	converted(GMEM_VM_DEFAULT, supply_by_uffd);
}

TEST(pager_snp_converted)
{
	converted(GMEM_VM_SNP, supply_by_pager);
}

TEST(pager_default_converted)
{
	converted(GMEM_VM_DEFAULT, supply_by_pager);
}

/* Either side will do: but a gmem_uffd can put nothing into a private page. */
TEST(uffd_sw_protected_converted)
{
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED, supply_by_uffd);
	to_private(s.file, PAGE * PG, PG);
	ends(&s, -EIO, GMEM_EXIT_NONE);
	tear_down(&s);
}

/* ---- somebody goes */

static void vm_freed(void (*supply)(struct scene *s))
{
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED, supply);
	gmem_vm_free(s.vm);
	s.vm = NULL;
	ends(&s, -EIO, GMEM_EXIT_NONE);
	tear_down(&s);
}

TEST(uffd_vm_freed)
{
	vm_freed(supply_by_uffd);
}

TEST(pager_vm_freed)
{
	vm_freed(supply_by_pager);
}

static void file_freed(void (*supply)(struct scene *s))
{
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED, supply);
	gmem_file_free(s.file);
	s.file = NULL;
	ends(&s, -EFAULT, GMEM_EXIT_MEMORY_FAULT);
	tear_down(&s);
}

TEST(uffd_file_freed)
{
	file_freed(supply_by_uffd);
}

TEST(pager_file_freed)
{
	file_freed(supply_by_pager);
}

static void slot_deleted(void (*supply)(struct scene *s))
{
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED, supply);
	CHECK_OK(del_slot(s.vm, 0));
	ends(&s, -EFAULT, GMEM_EXIT_MMIO);
	tear_down(&s);
}

TEST(uffd_slot_deleted)
{
	slot_deleted(supply_by_uffd);
}

TEST(pager_slot_deleted)
{
	slot_deleted(supply_by_pager);
}

/* ---- the page is lost */

static int lost(void *opaque, uint64_t off, void *buf, size_t len)
{
	(void)opaque;
	(void)off;
	(void)buf;
	(void)len;
	return gmem_set_error(-EBADMSG, "lost");
}

/* A gmem_uffd supplies the guest, and a pager of another view finds that its source has lost the page. */
TEST(uffd_page_poisoned)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = lost };
	struct gmem_source *source;
	struct gmem_pager *pager;
	struct gmem_view *other;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED, supply_by_uffd);
	CHECK_OK(gmem_view_map(s.file, 0, LEN, PROT_READ | PROT_WRITE, &other));
	CHECK_OK(gmem_source_new(&ops, NULL, &source));
	CHECK_OK(gmem_pager_create(NULL, &pager));
	CHECK_OK(gmem_pager_add_view(pager, other, source, 0));
	CHECK_EQ(touch((char *)gmem_view_addr(other) + PAGE * PG), SIGBUS);
	CHECK_EQ(gmem_file_page_state(s.file, PAGE * PG), GMEM_PAGE_POISONED);
	ends(&s, -EHWPOISON, GMEM_EXIT_MEMORY_FAULT);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_view_unmap(other);
	tear_down(&s);
}
