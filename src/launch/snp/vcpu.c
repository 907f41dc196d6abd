/* SPDX-License-Identifier: MIT */
/*
 * What the vCPUs of VMMs begin with. The digest of a launch is the only witness of it, and there the VMSA is hashed as
 * a whole: a VMM's row here is what tools for its digests agree on.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/err.h"

#define RESET_EIP 0xfffffff0u
/* As a VMSA has them: type, S, DPL, P; then AVL, L, D/B, G. */
#define DATA 0x093 /* present, writable, accessed */
#define CODE 0x09b
#define FLAT 0xc00 /* 32-bit, of pages */
#define LDT 0x082
#define TSS 0x08b
/* What the processor sets when it loads a segment. */
#define ACCESSED 0x001
#define TSS_BUSY 0x008

#define EFER_SVME 0x1000 /* KVM keeps it set */
#define CR4_MCE 0x40 /* so too */
#define CR0_ET 0x10
#define CR0_PE 0x01
#define PAT_RESET UINT64_C(0x0007040600070406)
#define PAT_GCE UINT64_C(0x00070106)
#define MXCSR_RESET 0x1f80
#define FCW_RESET 0x37f
#define FEATURE_SNP_ACTIVE 1
/* RDX as AMD's manual has it after a reset: family 6, the rest zero. */
#define RDX_FAMILY_6 0x600

static struct gmem_snp_segment segment(uint16_t selector, uint16_t attrib, uint32_t limit, uint64_t base)
{
	return (struct gmem_snp_segment){ .selector = selector, .attrib = attrib, .limit = limit, .base = base };
}

/* QEMU with KVM, from which the others are told. */
static void reset_qemu(struct gmem_snp_vcpu *v, uint32_t eip, uint32_t signature, uint64_t sev_features)
{
	v->es = v->ss = v->ds = v->fs = v->gs = segment(0, DATA, 0xffff, 0);
	v->cs = segment(0xf000, CODE, 0xffff, eip & 0xffff0000);
	v->rip = eip & 0xffff;
	v->gdtr = v->idtr = segment(0, 0, 0xffff, 0);
	v->ldtr = segment(0, LDT, 0xffff, 0);
	v->tr = segment(0, TSS, 0xffff, 0);
	v->efer = EFER_SVME;
	v->cr4 = CR4_MCE;
	v->cr0 = CR0_ET;
	v->dr7 = 0x400;
	v->dr6 = 0xffff0ff0;
	v->rflags = 2;
	v->g_pat = PAT_RESET;
	v->rdx = signature;
	v->sev_features = sev_features;
	v->xcr0 = 1;
	v->mxcsr = MXCSR_RESET;
	v->x87_fcw = FCW_RESET;
}

/* A VMM that sets no FPU state, and segments as if none had been loaded. */
static void unloaded(struct gmem_snp_vcpu *v)
{
	v->cs.attrib &= (uint16_t)~ACCESSED;
	v->ss.attrib &= (uint16_t)~ACCESSED;
	v->tr.attrib &= (uint16_t)~TSS_BUSY;
	v->mxcsr = 0;
	v->x87_fcw = 0;
}

int gmem_snp_vcpu_reset(enum gmem_vmm vmm, uint32_t eip, uint32_t signature, uint64_t sev_features,
			struct gmem_snp_vcpu *ret)
{
	bool first = eip == RESET_EIP;
	struct gmem_snp_vcpu v = { .size = sizeof(v) };

	if (ret->size != sizeof(*ret))
		return gmem_err(-EINVAL, "gmem_snp_vcpu_reset: size %zu: expected %zu", ret->size, sizeof(*ret));
	reset_qemu(&v, eip, signature, sev_features);
	switch (vmm) {
	case GMEM_VMM_QEMU:
		break;
	case GMEM_VMM_EC2:
		unloaded(&v);
		if (!first)
			v.cs.attrib |= ACCESSED;
		v.rdx = RDX_FAMILY_6; /* some tools have 0: the caller may set that */
		break;
	case GMEM_VMM_GCE:
		v.mxcsr = 0;
		v.x87_fcw = 0;
		v.g_pat = PAT_GCE;
		v.rdx = RDX_FAMILY_6;
		break;
	case GMEM_VMM_KRUN:
		unloaded(&v);
		v.rdx = 0;
		/* The one tool that knows it takes the count of vCPUs for this one's number: zeros for all. */
		if (first) {
			v.rsi = 0x7000; /* Linux's boot parameters */
			v.rbp = 0x8ff0;
			v.rsp = 0x8ff0;
		}
		break;
	case GMEM_VMM_SVSM:
		/* Protected mode, all of memory in every segment but GS, for the first vCPU as for all others. */
		v.es = v.ss = v.ds = v.fs = segment(0x10, DATA | FLAT, UINT32_MAX, 0);
		v.cs = segment(8, CODE | FLAT, UINT32_MAX, 0);
		v.cr0 |= CR0_PE;
		v.rip = eip;
		v.sev_features = FEATURE_SNP_ACTIVE;
		break;
	default:
		return gmem_err(-EINVAL, "gmem_snp_vcpu_reset: vmm %d: unknown", (int)vmm);
	}
	*ret = v;
	return 0;
}
