/* SPDX-License-Identifier: MIT */
/* A machine, its slots and its file as arrays: what a guest on KVM must see. */
#ifndef GMEM_TESTS_KVM_MODEL_H
#define GMEM_TESTS_KVM_MODEL_H

#include "kvm_scene.h"

#define PAGES 32u
#define FRAMES (PAGES + 8) /* guest frames in use, from GPA on */
#define SLOTS 3u
#define SUPPLIES 8u

struct page {
	unsigned char byte[PG];
	bool private, poisoned;
	bool touched; /* it has bytes, or had */
	bool supplied; /* who touches it first has it brought in */
	bool orphan; /* and who would have brought it in is gone */
};

struct slot {
	bool set, closed; /* closed: the file was freed */
	uint64_t frame, first, n;
};

struct model {
	struct scene s;
	struct gmem_vcpu *hand;
	uint32_t flags;
	uint64_t seed, brought_in;
	struct supplier supplier;
	struct gmem_supply *supply[SUPPLIES];
	struct page page[PAGES];
	struct slot slot[SLOTS];
	uint64_t exits, mmio; /* how often */
};

static inline uint64_t rnd(struct model *m, uint64_t below)
{
	return tap_rand(&m->seed) % below;
}

static inline struct slot *slot_at(struct model *m, uint64_t gpa)
{
	uint64_t frame = (gpa - GPA) / PG;

	for (unsigned int i = 0; i < SLOTS; i++)
		if (m->slot[i].set && frame >= m->slot[i].frame && frame < m->slot[i].frame + m->slot[i].n)
			return &m->slot[i];
	return NULL;
}

/* NULL: no slot, or no file. */
static inline struct page *page_at(struct model *m, uint64_t gpa)
{
	struct slot *slot = slot_at(m, gpa);

	return slot && !slot->closed ? &m->page[slot->first + (gpa - GPA) / PG - slot->frame] : NULL;
}

/* What a guest's touch is answered, where there is a slot. */
static inline int answer(struct model *m, uint64_t gpa, uint64_t *ret_flags)
{
	struct page *p = page_at(m, gpa);
	bool default_vm = m->s.vm->type == GMEM_VM_DEFAULT;

	*ret_flags = p && p->private && !default_vm ? GMEM_EXIT_FLAG_PRIVATE : 0;
	if (!p || (p->private && default_vm))
		return -EFAULT;
	if (p->poisoned)
		return -EHWPOISON;
	return p->orphan ? -EIO : 0;
}

/* A touch that is answered 0. */
static inline void touch(struct model *m, struct page *p)
{
	if (p->supplied) {
		uint64_t off = (uint64_t)(p - m->page) * PG;

		for (uint64_t i = 0; i < PG; i += 8)
			memcpy(&p->byte[i], &(uint64_t){ off + i + 1 }, 8);
		m->brought_in++;
		p->supplied = false;
	}
	p->touched = true;
}

static inline uint64_t load(struct model *m, uint64_t gpa, unsigned int n)
{
	unsigned char bytes[8] = { 0 };
	uint64_t v;

	for (unsigned int i = 0; i < n; i++) {
		struct page *p = page_at(m, gpa + i);

		if (p)
			touch(m, p);
		bytes[i] = p ? p->byte[(gpa + i) % PG] : 0xff;
	}
	memcpy(&v, bytes, 8);
	return v;
}

static inline void store(struct model *m, uint64_t gpa, uint64_t v, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		struct page *p = page_at(m, gpa + i);

		if (!p)
			continue;
		touch(m, p);
		p->byte[(gpa + i) % PG] = (unsigned char)(v >> 8 * i);
	}
}

static inline void zero(struct page *p)
{
	memset(p->byte, 0, PG);
	p->touched = true;
	p->poisoned = p->supplied = p->orphan = false;
}

#endif
