/* SPDX-License-Identifier: MIT */
/* A machine of kvm_scene.h whose memory is a file of huge pages. */
#ifndef GMEM_TESTS_KVM_HUGE_H
#define GMEM_TESTS_KVM_HUGE_H

#include "kvm_reach.h"

#define UNITS 4ull
#define ALL (UNITS * H)

/* Every way, on such a file. */
static inline void huge_set_up(struct scene *s, const struct scene_opts *way)
{
	struct scene_opts o = *way;

	o.flags = GMEM_FILE_HUGETLB;
	o.len = ALL;
	scene_set_up(s, &o);
}

#define EACH_HUGE_WAY(s)                                                     \
	for (size_t way_ = 0; way_ < sizeof(ways) / sizeof(ways[0]); way_++) \
		for (bool once_ = (huge_set_up(s, &ways[way_]), true); once_; once_ = (scene_tear_down(s), false))

#define EACH_HUGE_DEFAULT_WAY(s) EACH_HUGE_WAY(s) if (ways[way_].type == GMEM_VM_DEFAULT)

#endif
