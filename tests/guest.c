/* SPDX-License-Identifier: MIT */
#define TAP_NO_MAIN
#include "guest.h"

#include "tap.h"

#ifdef __x86_64__

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>

/* The boot range, in pages. */
enum { CODE, TABLES, STACK, PML4, PDPT, PD, PD_END = PD + GUEST_MAPPED / (1ull << 30) };
#define PAGE 4096ull
#define LARGE (2ull << 20)

_Static_assert(PD_END *PAGE <= GUEST_BOOT_LEN, "the boot range is too small");

/* In the page of tables. */
#define GDT 0
#define TSS 0x80
#define IDT 0x200
#define TSS_IST1 36
#define TSS_IO_BASE 102
#define TSS_IO_MAP 104
#define IO_PORTS 256 /* that user code may use */
#define TSS_LEN (TSS_IO_MAP + IO_PORTS / 8 + 1)

/* Selectors; user code has those of Linux, which is what a KVM without hardware can give it. */
#define KERNEL_CS 0x10
#define KERNEL_DS 0x18
#define USER_DS 0x2b
#define USER_CS 0x33
#define TR 0x40

#define CR0 0x80010033ull /* PG WP NE ET MP PE */
#define CR4 0x620ull /* PAE, OSFXSR, OSXMMEXCPT */
#define EFER 0x500ull /* LME, LMA */
#define RFLAGS_IF 0x200ull
#define RFLAGS_IOPL3 0x3000ull

/* Accessed and dirty from the start, so that KVM has nothing to write into the tables. */
#define PTE_TABLE 0x67ull
#define PTE_LARGE 0xe7ull

extern const unsigned char guest_code[], guest_code_end[], guest_exceptions[], guest_vmcall_at[], guest_vmmcall_at[];
extern const uint32_t guest_routine_at[];

/* What an exception leaves at the end of its stack. */
struct frame {
	uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

static uint64_t gpa_of(const struct guest *g, unsigned int page)
{
	return g->boot_gpa + page * PAGE;
}

static void put(struct guest *g, unsigned int page, uint64_t off, uint64_t value)
{
	memcpy(g->boot + page * PAGE + off, &value, sizeof(value));
}

static void make_page_tables(struct guest *g)
{
	put(g, PML4, 0, gpa_of(g, PDPT) | PTE_TABLE);
	for (unsigned int i = 0; i < PD_END - PD; i++)
		put(g, PDPT, i * 8, gpa_of(g, PD + i) | PTE_TABLE);
	for (uint64_t i = 0; i < GUEST_MAPPED / LARGE; i++)
		put(g, PD, i * 8, i * LARGE | PTE_LARGE);
}

/* Where the handlers of exceptions find their stack and code; they run in kernel mode whatever the routine's is. */
static void make_tables(struct guest *g)
{
	uint64_t tss = gpa_of(g, TABLES) + TSS;
	uint32_t stubs = (uint32_t)(guest_exceptions - guest_code);

	put(g, TABLES, GDT + KERNEL_CS, 0x00af9b000000ffff);
	put(g, TABLES, GDT + KERNEL_DS, 0x00cf93000000ffff);
	put(g, TABLES, GDT + (USER_DS & ~7), 0x00cff3000000ffff);
	put(g, TABLES, GDT + (USER_CS & ~7), 0x00affb000000ffff);
	put(g, TABLES, GDT + TR, (TSS_LEN - 1) | (tss & 0xffffff) << 16 | 0x8bull << 40 | (tss >> 24 & 0xff) << 56);
	put(g, TABLES, GDT + TR + 8, tss >> 32);
	put(g, TABLES, TSS + TSS_IST1, gpa_of(g, STACK) + PAGE);
	/* A KVM without hardware of its own does not keep IOPL: it asks the map of ports, which a byte of ones ends. */
	g->boot[TABLES * PAGE + TSS + TSS_IO_BASE] = TSS_IO_MAP;
	g->boot[TABLES * PAGE + TSS + TSS_LEN - 1] = 0xff;
	for (uint32_t i = 0; i < GUEST_EXCEPTIONS; i++) {
		uint64_t stub = gpa_of(g, CODE) + stubs + i * 16;

		put(g, TABLES, IDT + i * 16,
		    (stub & 0xffff) | KERNEL_CS << 16 | 1ull << 32 | 0x8eull << 40 | (stub >> 16 & 0xffff) << 48);
		put(g, TABLES, IDT + i * 16 + 8, stub >> 32);
	}
}

static void set_cpuid(const struct guest *g)
{
	const uint32_t max = 256;
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + max * sizeof(cpuid->entries[0]));
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	CHECK(cpuid && kvm >= 0);
	cpuid->nent = max;
	CHECK_OK(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));
	CHECK_OK(ioctl(g->vcpu, KVM_SET_CPUID2, cpuid));
	close(kvm);
	free(cpuid);
}

static struct kvm_segment segment(uint16_t selector, uint8_t type)
{
	bool code = type & 8;

	return (struct kvm_segment){
		.limit = ~0u,
		.selector = selector,
		.type = type,
		.present = 1,
		.dpl = selector & 3,
		.s = 1,
		.l = code,
		.db = !code,
		.g = 1,
	};
}

static void set_sregs(const struct guest *g)
{
	bool user = g->mode == GUEST_USER;
	struct kvm_sregs s;

	CHECK_OK(ioctl(g->vcpu, KVM_GET_SREGS, &s));
	s.cs = segment(user ? USER_CS : KERNEL_CS, 11);
	s.ss = s.ds = s.es = s.fs = s.gs = segment(user ? USER_DS : KERNEL_DS, 3);
	s.tr = (struct kvm_segment){ gpa_of(g, TABLES) + TSS, TSS_LEN - 1, .selector = TR, .type = 11, .present = 1 };
	s.ldt = (struct kvm_segment){ .type = 2, .unusable = 1 };
	s.gdt = (struct kvm_dtable){ gpa_of(g, TABLES) + GDT, .limit = TSS - GDT - 1 };
	s.idt = (struct kvm_dtable){ gpa_of(g, TABLES) + IDT, .limit = GUEST_EXCEPTIONS * 16 - 1 };
	s.cr0 = CR0;
	s.cr3 = gpa_of(g, PML4);
	s.cr4 = CR4;
	s.efer = EFER;
	CHECK_OK(ioctl(g->vcpu, KVM_SET_SREGS, &s));
}

void guest_init(struct guest *g, int vcpu, struct kvm_run *run, void *boot, uint64_t boot_gpa, enum guest_mode mode,
		bool interrupts)
{
	CHECK_EQ(boot_gpa % PAGE, 0);
	CHECK(boot_gpa <= GUEST_MAPPED - GUEST_BOOT_LEN);
	CHECK(guest_code_end - guest_code <= (ptrdiff_t)PAGE);
	*g = (struct guest){ vcpu, run, boot, boot_gpa, boot_gpa, mode, interrupts, GUEST_ROUTINE_COUNT };
	memset(boot, 0, GUEST_BOOT_LEN);
	memcpy(g->boot + CODE * PAGE, guest_code, (size_t)(guest_code_end - guest_code));
	make_page_tables(g);
	make_tables(g);
	set_cpuid(g);
	set_sregs(g);
	/* With interrupt controllers in the kernel, all vCPUs but the first would wait to be started by it. */
	CHECK_OK(ioctl(vcpu, KVM_SET_MP_STATE, &(struct kvm_mp_state){ KVM_MP_STATE_RUNNABLE }));
}

static bool at_port(const struct guest *g, uint16_t port)
{
	const struct kvm_run *run = g->run;

	return run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT && run->io.port == port;
}

void guest_call_args(struct guest *g, enum guest_routine routine, const uint64_t args[5])
{
	struct kvm_regs regs = {
		.rdi = args[0],
		.rsi = args[1],
		.rdx = args[2],
		.rcx = args[3],
		.r8 = args[4],
		.rsp = gpa_of(g, STACK) + PAGE / 2, /* below what an exception pushes */
		.rip = guest_routine_gpa(g, routine),
		.rflags = 2 | RFLAGS_IOPL3 | (g->interrupts ? RFLAGS_IF : 0),
	};

	/* An exception has left the guest in kernel mode; one it could not take, in any state, and still pending. */
	if (at_port(g, GUEST_PORT_FAULT) || g->run->exit_reason == KVM_EXIT_SHUTDOWN) {
		set_sregs(g);
		CHECK_OK(ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &(struct kvm_vcpu_events){ .flags = 0 }));
	}
	g->routine = routine;
	g->run->exit_reason = KVM_EXIT_UNKNOWN;
	CHECK_OK(ioctl(g->vcpu, KVM_SET_REGS, &regs));
}

void guest_settle(struct guest *g)
{
	int rc;

	g->run->immediate_exit = 1;
	/* The parts of a long access are pending one after the other; what fails on the way is over, too. */
	do
		rc = ioctl(g->vcpu, KVM_RUN, 0);
	while (!rc);
	g->run->immediate_exit = 0;
	if (errno != EINTR)
		FAIL("KVM_RUN with immediate_exit: %s; %s", strerror(errno), guest_what(g));
}

bool guest_finished(const struct guest *g)
{
	return at_port(g, GUEST_PORT_DONE);
}

static struct kvm_regs regs_of(const struct guest *g)
{
	struct kvm_regs regs;

	CHECK_OK(ioctl(g->vcpu, KVM_GET_REGS, &regs));
	return regs;
}

uint64_t guest_result(const struct guest *g)
{
	return regs_of(g).rax;
}

uint64_t guest_rip(const struct guest *g)
{
	return regs_of(g).rip;
}

uint64_t guest_routine_gpa(const struct guest *g, enum guest_routine routine)
{
	return g->code_gpa + guest_routine_at[routine];
}

uint64_t guest_hypercall_gpa(const struct guest *g, enum guest_routine routine)
{
	const unsigned char *at = routine == GUEST_vmcall ? guest_vmcall_at : guest_vmmcall_at;

	return g->code_gpa + (uint64_t)(at - guest_code);
}

static const char *const routine_names[] = {
#define NAME(name) #name,
	GUEST_ROUTINES(NAME) "nothing"
};

const char *guest_what(const struct guest *g)
{
	static __thread char text[512];
	struct kvm_regs r = regs_of(g);
	struct kvm_sregs s;
	struct frame f;
	int n;

	CHECK_OK(ioctl(g->vcpu, KVM_GET_SREGS, &s));
	n = snprintf(text, sizeof(text),
		     "in %s: exit %u, rip 0x%llx (code + 0x%llx), cs 0x%x, rflags 0x%llx, rax 0x%llx, rdi 0x%llx",
		     routine_names[g->routine], g->run->exit_reason, r.rip, r.rip - g->code_gpa, s.cs.selector,
		     r.rflags, r.rax, r.rdi);
	if (at_port(g, GUEST_PORT_FAULT)) {
		memcpy(&f, g->boot + (STACK + 1) * PAGE - sizeof(f), sizeof(f));
		snprintf(text + n, sizeof(text) - (size_t)n,
			 "; exception %llu, error 0x%llx, at 0x%llx (code + 0x%llx), cr2 0x%llx",
			 (unsigned long long)f.vector, (unsigned long long)f.error, (unsigned long long)f.rip,
			 (unsigned long long)(f.rip - g->code_gpa), s.cr2);
	} else if (g->run->exit_reason == KVM_EXIT_MMIO) {
		snprintf(text + n, sizeof(text) - (size_t)n, "; gpa 0x%llx, %u bytes, %s", g->run->mmio.phys_addr,
			 g->run->mmio.len, g->run->mmio.is_write ? "written" : "read");
	} else if (g->run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
		snprintf(text + n, sizeof(text) - (size_t)n, "; suberror %u", g->run->internal.suberror);
	}
	return text;
}

void guest_map(struct guest *g, uint64_t address, uint64_t gpa)
{
	CHECK(!(address % LARGE) && !(gpa % LARGE) && address < GUEST_MAPPED);
	put(g, PD, address / LARGE * 8, gpa | PTE_LARGE);
}

uint64_t guest_exception_rip(const struct guest *g)
{
	struct frame f;

	CHECK(at_port(g, GUEST_PORT_FAULT));
	memcpy(&f, g->boot + (STACK + 1) * PAGE - sizeof(f), sizeof(f));
	return f.rip;
}

int guest_run_raw(struct guest *g)
{
	return ioctl(g->vcpu, KVM_RUN, 0) < 0 ? -errno : 0;
}

uint64_t guest_do_args(struct guest *g, enum guest_routine routine, const uint64_t args[5])
{
	sigset_t pending;
	int err;

	guest_call_args(g, routine, args);
	do {
		err = guest_run_raw(g);
		sigpending(&pending);
	} while (err == -EINTR && !sigismember(&pending, SIGBUS));
	if (err || !guest_finished(g))
		FAIL("KVM_RUN: %s%s; %s", err ? strerror(-err) : "0",
		     sigismember(&pending, SIGBUS) ? ", and a SIGBUS is pending" : "", guest_what(g));
	return guest_result(g);
}

#else

#define NO_GUEST SKIP("kvm", "guest code for tests is x86-64")

void guest_init(struct guest *g, int vcpu, struct kvm_run *run, void *boot, uint64_t boot_gpa, enum guest_mode mode,
		bool interrupts)
{
	NO_GUEST;
}

void guest_call_args(struct guest *g, enum guest_routine routine, const uint64_t args[5])
{
	NO_GUEST;
}

void guest_settle(struct guest *g)
{
	NO_GUEST;
}

bool guest_finished(const struct guest *g)
{
	NO_GUEST;
}

uint64_t guest_result(const struct guest *g)
{
	NO_GUEST;
}

uint64_t guest_rip(const struct guest *g)
{
	NO_GUEST;
}

uint64_t guest_routine_gpa(const struct guest *g, enum guest_routine routine)
{
	NO_GUEST;
}

uint64_t guest_hypercall_gpa(const struct guest *g, enum guest_routine routine)
{
	NO_GUEST;
}

const char *guest_what(const struct guest *g)
{
	NO_GUEST;
}

void guest_map(struct guest *g, uint64_t address, uint64_t gpa)
{
	NO_GUEST;
}

uint64_t guest_exception_rip(const struct guest *g)
{
	NO_GUEST;
}

int guest_run_raw(struct guest *g)
{
	NO_GUEST;
}

uint64_t guest_do_args(struct guest *g, enum guest_routine routine, const uint64_t args[5])
{
	NO_GUEST;
}

#endif
