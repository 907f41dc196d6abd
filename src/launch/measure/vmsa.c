/* SPDX-License-Identifier: MIT */
#include "launch/measure/vmsa.h"

#include <stdbool.h>
#include <string.h>

#include "base/le.h"

static void put_segment(uint8_t *at, uint16_t selector, uint16_t attrib, uint32_t limit, uint64_t base)
{
	gmem_put_le16(at, selector);
	gmem_put_le16(at + 2, attrib);
	gmem_put_le32(at + 4, limit);
	gmem_put_le64(at + 8, base);
}

/* Real mode, as after a reset. VMMs do not agree on accessed bits. */
static void put_real_mode(uint8_t *page, const struct gmem_measure_vcpu *v)
{
	bool accessed = v->vmm != GMEM_VMM_EC2 && v->vmm != GMEM_VMM_KRUN;
	uint16_t code = 0x9b;

	if (v->vmm == GMEM_VMM_KRUN || (v->vmm == GMEM_VMM_EC2 && v->eip == GMEM_MEASURE_FIRST_EIP))
		code = 0x9a;
	put_segment(page + 0x00, 0, 0x93, 0xffff, 0); /* ES */
	put_segment(page + 0x10, 0xf000, code, 0xffff, v->eip & 0xffff0000); /* CS */
	put_segment(page + 0x20, 0, accessed ? 0x93 : 0x92, 0xffff, 0); /* SS */
	put_segment(page + 0x30, 0, 0x93, 0xffff, 0); /* DS */
	put_segment(page + 0x40, 0, 0x93, 0xffff, 0); /* FS */
	put_segment(page + 0x90, 0, accessed ? 0x8b : 0x83, 0xffff, 0); /* TR */
	gmem_put_le64(page + 0x158, 0x10); /* CR0 */
	gmem_put_le64(page + 0x178, v->eip & 0xffff); /* RIP */
}

/* An SVSM begins in 32-bit protected mode, flat. */
static void put_protected_mode(uint8_t *page, const struct gmem_measure_vcpu *v)
{
	put_segment(page + 0x00, 0x10, 0xc93, 0xffffffff, 0); /* ES */
	put_segment(page + 0x10, 0x08, 0xc9b, 0xffffffff, 0); /* CS */
	put_segment(page + 0x20, 0x10, 0xc93, 0xffffffff, 0); /* SS */
	put_segment(page + 0x30, 0x10, 0xc93, 0xffffffff, 0); /* DS */
	put_segment(page + 0x40, 0x10, 0xc93, 0xffffffff, 0); /* FS */
	put_segment(page + 0x90, 0, 0x8b, 0xffff, 0); /* TR */
	gmem_put_le64(page + 0x158, 0x11); /* CR0 */
	gmem_put_le64(page + 0x178, v->eip); /* RIP */
}

void gmem_measure_vmsa_build(const struct gmem_measure_vcpu *v, uint8_t page[GMEM_PAGE_SIZE])
{
	bool kvm_fpu = v->vmm == GMEM_VMM_QEMU || v->vmm == GMEM_VMM_SVSM;

	memset(page, 0, GMEM_PAGE_SIZE);
	if (v->vmm == GMEM_VMM_SVSM)
		put_protected_mode(page, v);
	else
		put_real_mode(page, v);
	put_segment(page + 0x50, 0, 0x93, 0xffff, 0); /* GS */
	put_segment(page + 0x60, 0, 0, 0xffff, 0); /* GDTR */
	put_segment(page + 0x70, 0, 0x82, 0xffff, 0); /* LDTR */
	put_segment(page + 0x80, 0, 0, 0xffff, 0); /* IDTR */
	gmem_put_le64(page + 0xd0, 0x1000); /* EFER: SVME, which KVM sets */
	gmem_put_le64(page + 0x148, 0x40); /* CR4: MCE, so too */
	gmem_put_le64(page + 0x160, 0x400); /* DR7 */
	gmem_put_le64(page + 0x168, 0xffff0ff0); /* DR6 */
	gmem_put_le64(page + 0x170, 2); /* RFLAGS */
	gmem_put_le64(page + 0x268, v->vmm == GMEM_VMM_GCE ? 0x70106 : 0x7040600070406); /* G_PAT */
	gmem_put_le64(page + 0x310, v->rdx);
	gmem_put_le64(page + 0x3b0, v->sev_features);
	gmem_put_le64(page + 0x3e8, 1); /* XCR0: x87 */
	if (kvm_fpu) {
		gmem_put_le32(page + 0x408, 0x1f80); /* MXCSR */
		gmem_put_le16(page + 0x410, 0x37f); /* x87 control word */
	}
	if (v->vmm == GMEM_VMM_KRUN && v->eip == GMEM_MEASURE_FIRST_EIP) {
		/* Its kernel's boot parameters and stack. */
		gmem_put_le64(page + 0x1d8, 0x8ff0); /* RSP */
		gmem_put_le64(page + 0x328, 0x8ff0); /* RBP */
		gmem_put_le64(page + 0x330, 0x7000); /* RSI */
	}
}
