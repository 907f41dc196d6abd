/* SPDX-License-Identifier: MIT */
/* Machines with one vCPU of KVM's and a guest of tests/guest.h in it, made by hand or by the library. */
#ifndef GMEM_BENCH_GUEST_MACHINE_H
#define GMEM_BENCH_GUEST_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

#include "gmem.h"
#include "guest.h"

#define MACHINE_GPA (1ull << 30)

enum kind {
	RAW_MEMFD,
	OURS_DEFAULT,
	OURS_SW_PROTECTED,
	OURS_CONVERTED, /* DEFAULT, and its last page was private once */
	RAW_GUEST_MEMFD,
	OURS_KERNEL, /* DEFAULT, the kernel engine */
	NKINDS
};

struct machine {
	enum kind kind;
	size_t len; /* of its memory, at MACHINE_GPA, of which nothing is there at first */
	struct guest guest;
	unsigned char *boot;
	/* by hand */
	int kvm, vm, vcpu, fd;
	void *run;
	size_t run_len;
	char *mem;
	/* ours */
	struct gmem_vm *gmem;
	struct gmem_file *file;
	struct gmem_vcpu *ours;
};

/* Why machines by hand of this kind cannot be had here; NULL: they can. */
const char *machine_why_not(enum kind kind);

void machine_make(struct machine *m, enum kind kind, size_t len);
void machine_unmake(struct machine *m);

/* The next run begins the routine; a run is to the routine's end, or to the next end. */
#define machine_begin(m, routine, ...) guest_call(&(m)->guest, routine, __VA_ARGS__)
void machine_run(struct machine *m);
/* Ours. False: it came out at a page that it may not touch; true: at its end. */
bool machine_run_to_page(struct machine *m);

/* A word of its memory, as the host sees it. */
uint64_t machine_word(const struct machine *m, size_t off);

#endif
