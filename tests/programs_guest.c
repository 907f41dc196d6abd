/* SPDX-License-Identifier: MIT */
/* A program's guest: an accessor's calls, or a guest's instructions on KVM. */
#define TAP_NO_MAIN
#include "programs_machine.h"

/* ---- the guest is an accessor */

static int accessor_words(struct machine *m, const struct step *s, struct progress *p)
{
	uint64_t stride = s->op == FILL ? 8 : PG;

	for (; p->done < s->n; p->done++) {
		uint64_t gpa = GPA + s->at + p->done * stride, word;
		int err;

		word = s->op == FILL ? guest_pattern(s->value, p->done) : s->value + p->done;
		err = s->op == SUM ? gmem_vcpu_load(m->vcpu, gpa, &word, 8) : gmem_vcpu_store(m->vcpu, gpa, &word, 8);
		if (err)
			return err;
		p->value += s->op == SUM ? word : 1;
	}
	return 0;
}

static int accessor_move16(struct machine *m, const struct step *s, struct progress *p)
{
	int err = p->done ? 0 : gmem_vcpu_load(m->vcpu, GPA + s->with, p->bytes, 16);

	if (err)
		return err;
	p->done = 1;
	return gmem_vcpu_store(m->vcpu, GPA + s->at, p->bytes, 16);
}

static int accessor_cmpxchg(struct machine *m, const struct step *s, struct progress *p)
{
	uint64_t there = s->with;
	int r = gmem_vcpu_cmpxchg(m->vcpu, GPA + s->at, &there, &s->value, 8);

	if (r == 1)
		CHECK_EQ(there, s->with);
	p->value = there;
	return r < 0 ? r : 0;
}

/* 0: the step is done. */
static int accessor_go(struct machine *m, const struct step *s, struct progress *p)
{
	const uint64_t args[6] = { GPA + s->at, s->n, GMEM_MAP_GPA_RANGE_ENCRYPTED };
	uint64_t done = 0;
	int err;

	switch (s->op) {
	case LOAD:
		return gmem_vcpu_load(m->vcpu, GPA + s->at, &p->value, s->n);
	case STORE:
		return gmem_vcpu_store(m->vcpu, GPA + s->at, &s->value, s->n);
	case CMPXCHG:
		return accessor_cmpxchg(m, s, p);
	case COPY:
		err = gmem_vcpu_copy(m->vcpu, GPA + s->at + p->done, GPA + s->with + p->done, s->n - p->done, &done);
		p->done += done;
		return err;
	case MOVE16:
		return accessor_move16(m, s, p);
	case HYPERCALL:
		return gmem_vcpu_hypercall(m->vcpu, GMEM_HC_MAP_GPA_RANGE, args, &p->value);
	default:
		return accessor_words(m, s, p);
	}
}

/* ---- the guest is on KVM */

static void kvm_begin(struct machine *m, const struct step *s)
{
	static const enum guest_routine loads[] = {
		[1] = GUEST_load1, [2] = GUEST_load2, [4] = GUEST_load4, [8] = GUEST_load8
	};
	static const enum guest_routine stores[] = {
		[1] = GUEST_store1, [2] = GUEST_store2, [4] = GUEST_store4, [8] = GUEST_store8
	};
	struct guest *g = &m->guest;
	uint64_t at = GPA + s->at, with = GPA + s->with;

	switch (s->op) {
	case LOAD:
		guest_call(g, loads[s->n], at);
		return;
	case STORE:
		guest_call(g, stores[s->n], at, s->value);
		return;
	case CMPXCHG:
		guest_call(g, GUEST_cmpxchg8, at, s->with, s->value);
		return;
	case COPY:
		guest_call(g, GUEST_copy, at, with, s->n);
		return;
	case MOVE16:
		guest_call(g, GUEST_load16, with, at);
		return;
	case FILL:
		guest_call(g, GUEST_fill, at, s->n, s->value);
		return;
	case TOUCH:
		guest_call(g, GUEST_touch, at, s->n, PG, s->value);
		return;
	case SUM:
		guest_call(g, GUEST_sum, at, s->n, PG);
		return;
	default:
		guest_call(g, GUEST_vmcall, GMEM_HC_MAP_GPA_RANGE, at, s->n, GMEM_MAP_GPA_RANGE_ENCRYPTED);
	}
}

bool step_has_result(enum op op)
{
	return op != STORE && op != COPY && op != MOVE16;
}

/* 0: the step is done; 1: an exit. */
static int kvm_go(struct machine *m, const struct step *s, struct progress *p)
{
	int err;

	if (m->met_already) {
		m->met_already = false;
		return 1;
	}
	err = gmem_vcpu_run(m->vcpu);
	if (err || !guest_finished(&m->guest))
		return err ? err : 1;
	p->value = step_has_result(s->op) ? guest_result(&m->guest) : 0;
	return 0;
}

#define NO_SUCH_HYPERCALL (-1000) /* KVM_ENOSYS of linux/kvm_para.h */

/* What KVM does of a hypercall instead of an exit: user code may make none, and an old KVM has none. */
static void check_not_asked(struct machine *m)
{
	const char *what = guest_what(&m->guest);

	printf("difference: a hypercall of %s is no exit here: %s\n", m->way->name, what);
	if (m->way->mode == GUEST_KERNEL) {
		CHECK(!(gmem_kvm_check(gmem_vm_kvm_fd(m->vm), KVM_CAP_EXIT_HYPERCALL) & 1 << KVM_HC_MAP_GPA_RANGE));
		CHECK(guest_finished(&m->guest));
		CHECK_EQ(guest_result(&m->guest), NO_SUCH_HYPERCALL);
	} else if (guest_finished(&m->guest)) {
		CHECK_EQ(guest_result(&m->guest), -EPERM);
	} else {
		CHECK(strstr(what, "; exception 6, ") || strstr(what, "; exception 13, "));
	}
}

/* False: this KVM makes no exit of it, and what it does instead is printed. */
static bool kvm_hypercall_exits(struct machine *m, const struct step *s)
{
	kvm_begin(m, s);
	CHECK_OK(gmem_vcpu_run(m->vcpu));
	m->met_already = exit_of(m->vcpu).reason == GMEM_EXIT_HYPERCALL;
	if (!m->met_already)
		check_not_asked(m);
	return m->met_already;
}

/* ---- either */

bool guest_begin(struct machine *m, const struct step *s)
{
	if (!m->way->kvm)
		return true;
	if (s->op == HYPERCALL)
		return kvm_hypercall_exits(m, s);
	kvm_begin(m, s);
	return true;
}

int guest_go(struct machine *m, const struct step *s, struct progress *p)
{
	return m->way->kvm ? kvm_go(m, s, p) : accessor_go(m, s, p);
}
