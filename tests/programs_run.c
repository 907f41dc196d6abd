/* SPDX-License-Identifier: MIT */
/* Programs run step by step, and what they see beside what they should. */
#define TAP_NO_MAIN
#include "programs_machine.h"

#define STEPS 64

static const struct way ways_to_run[] = {
	[ACCESSOR] = { "accessor", GMEM_ENGINE_USER, false, GUEST_USER },
	[USER_MODE] = { "user mode", GMEM_ENGINE_USER, true, GUEST_USER },
	[KERNEL_MODE] = { "kernel mode", GMEM_ENGINE_USER, true, GUEST_KERNEL },
	[ACCESSOR_KERNEL_ENGINE] = { "accessor, kernel engine", GMEM_ENGINE_KERNEL, false, GUEST_USER },
	[USER_MODE_KERNEL_ENGINE] = { "user mode, kernel engine", GMEM_ENGINE_KERNEL, true, GUEST_USER },
	[KERNEL_MODE_KERNEL_ENGINE] = { "kernel mode, kernel engine", GMEM_ENGINE_KERNEL, true, GUEST_KERNEL },
	[USER_MODE_HUGE_PAGE] = { "user mode, huge page", GMEM_ENGINE_USER, true, GUEST_USER, true },
	[KERNEL_MODE_HUGE_PAGE] = { "kernel mode, huge page", GMEM_ENGINE_USER, true, GUEST_KERNEL, true },
};

/* What a step ended with. */
struct seen {
	uint64_t value;
	unsigned int nexits;
	struct met met[EXITS];
};

/* ---- a step */

static const struct stop *stops_of(const struct machine *m, const struct step *s)
{
	return m->way->kvm && s->differs ? s->kvm : s->exits;
}

static struct met met_of(const struct machine *m, int r)
{
	struct gmem_exit e = exit_of(m->vcpu);
	struct met met = { .err = r, .reason = e.reason, .flags = e.flags };

	if (e.reason == GMEM_EXIT_MMIO || e.reason == GMEM_EXIT_HYPERCALL) {
		CHECK_EQ(r, e.reason == GMEM_EXIT_MMIO && !m->way->kvm ? -EFAULT : 1);
		met.err = 0;
	}
	if (e.reason == GMEM_EXIT_HYPERCALL) {
		met.at = e.args[0] - GPA;
		met.len = e.args[1];
		met.data = e.nr;
		CHECK_EQ(e.args[2], GMEM_MAP_GPA_RANGE_ENCRYPTED);
	} else if (e.reason != GMEM_EXIT_NONE) {
		met.at = e.gpa - GPA;
		met.len = e.len;
		memcpy(&met.data, e.data, 8);
	}
	return met;
}

static bool same(const struct met *a, const struct met *b)
{
	if (b->reason == FAULT_OR_NONE && a->reason == GMEM_EXIT_NONE)
		return a->err == b->err;
	if (a->reason != (b->reason == FAULT_OR_NONE ? GMEM_EXIT_MEMORY_FAULT : b->reason))
		return false;
	return a->err == b->err && a->flags == b->flags && a->len == b->len && a->data == b->data &&
	       (a->at == b->at || a->reason == GMEM_EXIT_NONE);
}

static const char *met_text(const struct met *met)
{
	static char bufs[2][160];
	static unsigned int turn;
	char *buf = bufs[turn++ % 2];

	snprintf(buf, sizeof(bufs[0]), "%d, reason %d, at 0x%llx (page %llu), len 0x%llx, flags 0x%llx, data 0x%llx",
		 met->err, (int)met->reason, (unsigned long long)met->at, (unsigned long long)(met->at / PG),
		 (unsigned long long)met->len, (unsigned long long)met->flags, (unsigned long long)met->data);
	return buf;
}

/* False: the guest's step ends with it. */
static bool stopped(struct machine *m, const struct step *s, size_t number, int r, struct seen *seen)
{
	const struct stop *stop = &stops_of(m, s)[seen->nexits];
	struct met met = met_of(m, r);
	uint64_t unused = 0;

	if (seen->nexits == EXITS || stop->act == NOTHING)
		FAIL("%s: step %zu: one exit too many: %s; %s", m->way->name, number, met_text(&met),
		     gmem_last_error());
	if (!same(&met, &stop->met))
		FAIL("%s: step %zu, exit %u: %s, not %s; %s", m->way->name, number, seen->nexits, met_text(&met),
		     met_text(&stop->met), gmem_last_error());
	seen->met[seen->nexits++] = met;
	if (stop->act == GIVE_UP)
		return false;
	CHECK_OK(stop->act == ANSWER ? gmem_vcpu_answer(m->vcpu, stop->n) :
				       host_do(m, stop->act, stop->met.at, stop->n, &unused));
	return true;
}

/* False: it could not be done here, and why has been printed. */
static bool guest_step(struct machine *m, const struct step *s, size_t number, struct seen *seen)
{
	struct progress p = { .done = 0 };
	bool on = true;
	int r;

	if (m->way->kvm && s->differs)
		printf("difference: %s\n", s->differs);
	if (!guest_begin(m, s))
		return false;
	while (on && (r = guest_go(m, s, &p)))
		on = stopped(m, s, number, r, seen);
	seen->value = on && step_has_result(s->op) ? p.value : 0;
	if (seen->nexits < EXITS && stops_of(m, s)[seen->nexits].act != NOTHING)
		FAIL("%s: step %zu: %u exits, and not the next: %s", m->way->name, number, seen->nexits,
		     met_text(&stops_of(m, s)[seen->nexits].met));
	return true;
}

static bool take_step(struct machine *m, const struct step *s, size_t number, struct seen *seen)
{
	uint64_t want;

	*seen = (struct seen){ .value = 0 };
	if (s->op < WRITE) {
		if (!guest_step(m, s, number, seen))
			return false;
	} else {
		uint64_t value = s->value;
		int err = host_do(m, s->op, s->at, s->n, &value);

		if (err != s->refused)
			FAIL("%s: step %zu: %d, not %d; %s", m->way->name, number, err, s->refused, gmem_last_error());
		seen->value = !err && (s->op == READ || s->op == SUPPLIED) ? value : 0;
	}
	want = m->way->kvm && s->kvm_want ? s->kvm_want : s->want;
	if (seen->value != want)
		FAIL("%s: step %zu: 0x%llx, not 0x%llx", m->way->name, number, (unsigned long long)seen->value,
		     (unsigned long long)want);
	return true;
}

/* ---- a program */

static void run_all(const struct program *p, const struct way *way, enum gmem_vm_type type, struct seen *seen,
		    bool *took)
{
	struct machine m;

	machine_set_up(&m, way, type);
	for (size_t i = 0; i < p->nsteps; i++)
		took[i] = take_step(&m, &p->steps[i], i, &seen[i]);
	machine_tear_down(&m);
}

static void compare(const struct program *p, const struct seen *accessor, const struct seen *other, const bool *took)
{
	for (size_t i = 0; i < p->nsteps; i++) {
		if (!took[i])
			continue;
		if (!p->steps[i].kvm_want)
			CHECK_EQ(accessor[i].value, other[i].value);
		if (p->steps[i].differs)
			continue;
		CHECK_EQ(accessor[i].nexits, other[i].nexits);
		for (unsigned int k = 0; k < accessor[i].nexits; k++)
			if (!same(&accessor[i].met[k], &other[i].met[k]))
				FAIL("step %zu, exit %u: %s, and the accessor's: %s", i, k, met_text(&other[i].met[k]),
				     met_text(&accessor[i].met[k]));
	}
}

void program_run(const struct program *p, unsigned int way)
{
	static struct seen accessor[STEPS], other[STEPS];
	static bool took[STEPS];

	CHECK(p->nsteps <= STEPS);
	for (enum gmem_vm_type type = GMEM_VM_DEFAULT; type <= GMEM_VM_SW_PROTECTED; type++) {
		if (!(p->types & 1u << type))
			continue;
		printf("%s\n", type == GMEM_VM_DEFAULT ? "DEFAULT" : "SW_PROTECTED");
		if (p->ways & 1u << ACCESSOR)
			run_all(p, &ways_to_run[ACCESSOR], type, accessor, took);
		if (way == ACCESSOR)
			continue;
		run_all(p, &ways_to_run[way], type, other, took);
		if (p->ways & 1u << ACCESSOR)
			compare(p, accessor, other, took);
	}
}
