/* SPDX-License-Identifier: MIT */
/* A machine with a guest on KVM, in a slot of two memories: the file's where a page is private, the program's else. */
#ifndef GMEM_TESTS_KVM_BOTH_H
#define GMEM_TESTS_KVM_BOTH_H

#include "kvm_scene.h"
#include "slot_util.h"

struct both {
	struct scene s;
	char *hva;
};

static inline int set_memories(struct both *b, char *hva, struct gmem_file *file)
{
	return set_both(b->s.vm, 0, GPA, b->s.len, file, 0, hva);
}

static inline char *map_memory(uint64_t len, int flags)
{
	char *p = mmap(NULL, len, RW, flags | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

/* `flags` of the program's memory: MAP_SHARED or MAP_PRIVATE. */
static inline void set_up_both(struct both *b, const struct scene_opts *o, int flags)
{
	scene_set_up(&b->s, o);
	CHECK_OK(del_slot(b->s.vm, 0));
	b->hva = map_memory(b->s.len, flags);
	CHECK_OK(set_memories(b, b->hva, b->s.file));
}

static inline void tear_down_both(struct both *b)
{
	uint64_t len = b->s.len;

	scene_tear_down(&b->s);
	munmap(b->hva, len);
}

#define EACH_WAY_OF_BOTH(b, flags)                                           \
	for (size_t way_ = 0; way_ < sizeof(ways) / sizeof(ways[0]); way_++) \
		for (bool once_ = (set_up_both(b, &ways[way_], flags), true); once_; once_ = (tear_down_both(b), false))

static inline uint64_t hva_word(const struct both *b, uint64_t off)
{
	return __atomic_load_n((uint64_t *)(b->hva + off), __ATOMIC_ACQUIRE);
}

static inline void set_hva_word(const struct both *b, uint64_t off, uint64_t value)
{
	__atomic_store_n((uint64_t *)(b->hva + off), value, __ATOMIC_RELEASE);
}

static inline uint64_t private_word(const struct both *b, uint64_t off)
{
	uint64_t v;

	to_shared(b->s.file, off & ~(PG - 1), PG);
	CHECK_OK(gmem_file_read(b->s.file, off, &v, sizeof(v)));
	return v;
}

#endif
