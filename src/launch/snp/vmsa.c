/* SPDX-License-Identifier: MIT */
#include "launch/snp/vmsa.h"

#include <stddef.h>
#include <string.h>

#include "base/le.h"

#define AT(off, reg)                                     \
	{                                                \
		off, offsetof(struct gmem_snp_vcpu, reg) \
	}

struct place {
	uint16_t off; /* in the page */
	uint16_t from; /* in struct gmem_snp_vcpu */
};

static const struct place segments[] = {
	AT(0x00, es), AT(0x10, cs),   AT(0x20, ss),   AT(0x30, ds),   AT(0x40, fs),
	AT(0x50, gs), AT(0x60, gdtr), AT(0x70, ldtr), AT(0x80, idtr), AT(0x90, tr),
};

static const struct place registers[] = {
	AT(0x0d0, efer),   AT(0x148, cr4), AT(0x150, cr3),	    AT(0x158, cr0),  AT(0x160, dr7), AT(0x168, dr6),
	AT(0x170, rflags), AT(0x178, rip), AT(0x1d8, rsp),	    AT(0x1f8, rax),  AT(0x240, cr2), AT(0x268, g_pat),
	AT(0x308, rcx),	   AT(0x310, rdx), AT(0x318, rbx),	    AT(0x328, rbp),  AT(0x330, rsi), AT(0x338, rdi),
	AT(0x340, r8),	   AT(0x348, r9),  AT(0x350, r10),	    AT(0x358, r11),  AT(0x360, r12), AT(0x368, r13),
	AT(0x370, r14),	   AT(0x378, r15), AT(0x3b0, sev_features), AT(0x3e8, xcr0),
};

#define MXCSR 0x408
#define X87_FCW 0x410

void gmem_snp_vmsa_build(const struct gmem_snp_vcpu *vcpu, uint8_t page[GMEM_PAGE_SIZE])
{
	const uint8_t *raw = (const uint8_t *)vcpu;

	memset(page, 0, GMEM_PAGE_SIZE);
	for (size_t i = 0; i < sizeof(segments) / sizeof(*segments); i++) {
		uint8_t *to = page + segments[i].off;
		struct gmem_snp_segment s;

		memcpy(&s, raw + segments[i].from, sizeof(s));
		gmem_put_le16(to, s.selector);
		gmem_put_le16(to + 2, s.attrib);
		gmem_put_le32(to + 4, s.limit);
		gmem_put_le64(to + 8, s.base);
	}
	for (size_t i = 0; i < sizeof(registers) / sizeof(*registers); i++) {
		uint64_t value;

		memcpy(&value, raw + registers[i].from, sizeof(value));
		gmem_put_le64(page + registers[i].off, value);
	}
	gmem_put_le32(page + MXCSR, vcpu->mxcsr);
	gmem_put_le16(page + X87_FCW, vcpu->x87_fcw);
}
