/* SPDX-License-Identifier: MIT */
/* The machine that a program of programs.h runs in: who is the guest there, and what the host does to it. */
#ifndef GMEM_TESTS_PROGRAMS_MACHINE_H
#define GMEM_TESTS_PROGRAMS_MACHINE_H

#include "programs.h"

struct way {
	const char *name;
	enum gmem_engine engine;
	bool kvm;
	enum guest_mode mode;
	bool huge;
};

struct machine {
	const struct way *way;
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu;
	struct guest guest;
	unsigned char *boot;
	char *hva;
	struct gmem_file *two;
	char *two_hva; /* beside it */
	bool met_already; /* the exit that guest_go() is to tell */
	struct gmem_supply *supply;
	struct supplier supplier;
};

/* How far a step has got. */
struct progress {
	uint64_t done, value;
	unsigned char bytes[16];
};

void machine_set_up(struct machine *m, const struct way *way, enum gmem_vm_type type);
void machine_tear_down(struct machine *m);

/* A step of the host's, or what is done at an exit. What the library says. */
int host_do(struct machine *m, enum op op, uint64_t at, uint64_t n, uint64_t *value);

bool step_has_result(enum op op);

/* A step of the guest's begins. False: it could not be had here, and why has been printed. */
bool guest_begin(struct machine *m, const struct step *s);
/* It goes on. 0: it is done; else what the call says, and 1 for an exit of KVM's that is no error. */
int guest_go(struct machine *m, const struct step *s, struct progress *p);

#endif
