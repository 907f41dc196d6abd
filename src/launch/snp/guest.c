/* SPDX-License-Identifier: MIT */
#include "launch/snp/guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "file/tenure.h"

/* Every machine has one guest, and so one ASID. */
#define ASID 1u
/* Whose the pages are that are no file's. */
#define OWN 1u

static struct gmem_snp_guest *guest_of(struct gmem_mmu_external *x)
{
	return (struct gmem_snp_guest *)x;
}

/* Never OWN: the file's number is random, and is another one with each tenure of the page's. */
static uint64_t owner_of(const struct gmem_file *file, uint64_t off)
{
	return (file->state.header->cookie + gmem_tenure_number(file, off) * 0x9e3779b97f4a7c15ull) | 2;
}

int gmem_snp_guest_claim(struct gmem_snp_guest *guest, uint64_t gfn, uint64_t pfn)
{
	const struct gmem_slot *slot = gmem_slots_find(gmem_mmu_slots(&guest->vm->mmu), gfn);
	struct gmem_file *file = slot ? atomic_load(&slot->file) : NULL;

	if (!file)
		return gmem_err(-EFAULT, "guest frame 0x%llx: no file", (unsigned long long)gfn);
	return gmem_rmp_claim(&guest->rmp, pfn, owner_of(file, gmem_slot_off(slot, gfn)));
}

/* ---- what the guest's accesses come to */

static int set_page(struct gmem_mmu_external *x, struct gmem_vcpu *vcpu, uint64_t gfn, uint64_t pfn)
{
	struct gmem_snp_guest *guest = guest_of(x);
	int err;

	(void)vcpu;
	if (atomic_load(&x->building))
		return gmem_err(-EINVAL, "guest frame 0x%llx: no guest runs before its launch is finished",
				(unsigned long long)gfn);
	err = gmem_snp_guest_claim(guest, gfn, pfn);
	if (err)
		return err;
	if (!gmem_rmp_lookup(&guest->rmp, pfn).assigned) {
		err = gmem_rmp_make_private(&guest->rmp, pfn, gfn, guest->asid, false);
		if (err)
			return err < 0 ? err :
					 gmem_err(-EIO, "guest frame 0x%llx: RMPUPDATE: %d", (unsigned long long)gfn,
						  err);
	}
	err = gmem_rmp_check_guest(&guest->rmp, pfn, gfn, guest->asid);
	if (err == -EACCES)
		return GMEM_EXTERNAL_PENDING;
	return err ? gmem_err(-EIO, "guest frame 0x%llx: the page is the guest's at another address",
			      (unsigned long long)gfn) :
		     0;
}

static int accept_page(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn, bool accept)
{
	struct gmem_snp_guest *guest = guest_of(x);
	bool unchanged;
	int err = gmem_rmp_validate(&guest->rmp, pfn, gfn, guest->asid, false, accept, &unchanged);

	if (err)
		return gmem_err(-EIO, "guest frame 0x%llx: PVALIDATE: %d", (unsigned long long)gfn, err);
	return unchanged;
}

/* A translation goes; whose the frame is does not change. */
static int clear_page(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn)
{
	(void)x;
	(void)gfn;
	(void)pfn;
	return 0;
}

static void release(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn, uint64_t npages)
{
	struct gmem_snp_guest *guest = guest_of(x);

	(void)gfn;
	/* One that is being launched is refused; its launcher has the file's lock then, or finds the file closed. */
	gmem_rmp_release(&guest->rmp, pfn, npages);
}

/* Into what is the guest's nobody writes, launching or not. */
static int may_populate(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn)
{
	struct gmem_snp_guest *guest = guest_of(x);
	int err = gmem_snp_guest_claim(guest, gfn, pfn);

	if (err || !gmem_rmp_lookup(&guest->rmp, pfn).assigned)
		return err;
	return gmem_err(-EEXIST, "guest frame 0x%llx: launched before, or the guest's", (unsigned long long)gfn);
}

static void free_external(struct gmem_mmu_external *x)
{
	gmem_snp_guest_free(guest_of(x));
}

static const struct gmem_mmu_external_ops external_ops = {
	.set_page = set_page,
	.accept = accept_page,
	.clear_page = clear_page,
	.release = release,
	.may_populate = may_populate,
	.free = free_external,
};

/* ---- its making */

void *gmem_snp_guest_page(struct gmem_snp_guest *guest)
{
	void *page;

	if (posix_memalign(&page, GMEM_PAGE_SIZE, GMEM_PAGE_SIZE))
		return NULL;
	if (gmem_rmp_claim(&guest->rmp, gmem_snp_pfn(page), OWN)) {
		free(page);
		return NULL;
	}
	return memset(page, 0, GMEM_PAGE_SIZE);
}

int gmem_snp_guest_create(struct gmem_vm *vm, struct gmem_snp_guest **ret)
{
	struct gmem_snp_guest *guest = calloc(1, sizeof(*guest));

	if (!guest)
		return gmem_err_sys(-ENOMEM, "state of the guest");
	guest->external.ops = &external_ops;
	atomic_store(&guest->external.building, true);
	guest->vm = vm;
	guest->asid = ASID;
	gmem_rmp_init(&guest->rmp);
	gmem_snp_asp_setup(&guest->asp, &guest->rmp);
	(void)gmem_snp_init(&guest->asp);
	guest->context = gmem_snp_guest_page(guest);
	if (!guest->context) {
		gmem_snp_guest_free(guest);
		return gmem_err_sys(-ENOMEM, "state of the guest");
	}
	*ret = guest;
	return 0;
}

void gmem_snp_guest_free(struct gmem_snp_guest *guest)
{
	for (uint32_t i = 0; i < guest->nvmsas; i++)
		free(guest->vmsas[i].page);
	free(guest->vmsas);
	/* The guest's keys. */
	if (guest->context)
		explicit_bzero(guest->context, GMEM_PAGE_SIZE);
	free(guest->context);
	gmem_rmp_destroy(&guest->rmp);
	free(guest);
}
