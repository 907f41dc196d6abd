/* SPDX-License-Identifier: MIT */
/*
 * gmem-demo-kvm: a guest on KVM in 64 pages that are brought in when it touches them; a page that it must not touch
 * stops it; and which pages it wrote to is logged. Exit status: 0, 1 if anything was otherwise, 77 if there is no KVM,
 * or no userfaultfd that serves it (the last line says so).
 */
#include "common.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define PAGES 64u
#define PRIVATE 17u
#define DATA_GPA 0x200000ull /* of the file */
#define CODE_GPA 0x100000ull /* of plain memory */
#define PORT 0x10 /* a write there ends a routine */

#if defined(__x86_64__)

/* The guest's program: 32-bit code, no paging. */
static const unsigned char code[] = {
	/* 0: eax = the sum of ecx words, one a page, from esi on */
	0x31, 0xc0, /* xor %eax, %eax */
	0x03, 0x06, /* add (%esi), %eax */
	0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, /* add $0x1000, %esi */
	0x49, /* dec %ecx */
	0x75, 0xf5, /* jnz 2 */
	0xe7, PORT, /* out %eax, $PORT */
	/* 15: the word at esi becomes eax */
	0x89, 0x06, /* mov %eax, (%esi) */
	0xe7, PORT, /* out %eax, $PORT */
};

#define SUM 0
#define STORE 15

struct machine {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	struct gmem_file *file;
	int fd; /* KVM's vCPU */
};

static _Noreturn void skip(const char *why, const char *how)
{
	printf("SKIPPED: %s; to run it: %s\n", why, how);
	exit(77);
}

static _Atomic unsigned int fetched;

/* Page n begins with the number n + 1. */
static int read_page(void *opaque, uint64_t off, void *buf, size_t len)
{
	(void)opaque;
	memset(buf, 0, len);
	for (size_t at = 0; at < len; at += PAGE) {
		uint32_t word = (uint32_t)((off + at) / PAGE + 1);

		memcpy((char *)buf + at, &word, sizeof(word));
		fetched++;
	}
	return 0;
}

static void flat_segment(struct kvm_segment *s, uint8_t type, uint16_t selector)
{
	*s = (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.db = 1,
		.s = 1,
		.g = 1,
	};
}

static void set_registers(struct machine *m, uint64_t rip, uint64_t rsi, uint64_t rcx, uint64_t rax)
{
	struct kvm_regs regs = { .rip = CODE_GPA + rip, .rsi = rsi, .rcx = rcx, .rax = rax, .rflags = 2 };

	if (ioctl(m->fd, KVM_SET_REGS, &regs))
		demo_fail("KVM_SET_REGS: %s", strerror(errno));
}

static void set_protected_mode(struct machine *m)
{
	struct kvm_sregs sregs;

	if (ioctl(m->fd, KVM_GET_SREGS, &sregs))
		demo_fail("KVM_GET_SREGS: %s", strerror(errno));
	flat_segment(&sregs.cs, 11, 8);
	flat_segment(&sregs.ds, 3, 16);
	sregs.es = sregs.ss = sregs.ds;
	sregs.cr0 |= 1;
	if (ioctl(m->fd, KVM_SET_SREGS, &sregs))
		demo_fail("KVM_SET_SREGS: %s", strerror(errno));
}

/* Runs until the guest writes to the port, or comes out otherwise: what gmem_vcpu_run() says, and the sum. */
static int run(struct machine *m, uint32_t *ret_eax)
{
	struct gmem_exit e = { .size = sizeof(e) };
	struct kvm_regs regs;
	int err;

	do
		err = gmem_vcpu_run(m->vcpu);
	while (err == -EINTR);
	if (err)
		return err;
	demo_expect("gmem_vcpu_exit", gmem_vcpu_exit(m->vcpu, &e), 0);
	if ((int)e.reason != KVM_EXIT_IO)
		demo_fail("the guest came out with exit %d", (int)e.reason);
	if (ioctl(m->fd, KVM_GET_REGS, &regs))
		demo_fail("KVM_GET_REGS: %s", strerror(errno));
	*ret_eax = (uint32_t)regs.rax;
	return 0;
}

static void expect_sum(uint32_t got, uint32_t expected)
{
	if (got != expected)
		demo_fail("the guest's sum is %u, not %u", got, expected);
}

static void make_machine(struct machine *m, char *code_page)
{
	struct gmem_vm_opts vm = { .size = sizeof(vm), .type = GMEM_VM_DEFAULT, .flags = GMEM_VM_KVM };
	struct gmem_vcpu_opts vcpu = { .size = sizeof(vcpu), .kind = GMEM_VCPU_KVM };
	struct gmem_memslot data = { .size = sizeof(data), .slot = 0, .gpa = DATA_GPA, .len = PAGES * PAGE };
	struct gmem_memslot text = { .size = sizeof(text), .slot = 1, .gpa = CODE_GPA, .len = PAGE, .hva = code_page };

	if (gmem_vm_create(&vm, &m->vm))
		skip(gmem_last_error(), "a host with /dev/kvm that you may open (group kvm)");
	data.file = m->file;
	if (gmem_vm_set_slot(m->vm, &data))
		skip(gmem_last_error(), "a kernel with userfaultfd (Linux 6.6)");
	demo_expect("gmem_vm_set_slot", gmem_vm_set_slot(m->vm, &text), 0);
	demo_expect("gmem_vcpu_create", gmem_vcpu_create(m->vm, &vcpu, &m->vcpu), 0);
	m->fd = gmem_vcpu_kvm_fd(m->vcpu);
	set_protected_mode(m);
}

static void brought_in(struct machine *m)
{
	uint32_t sum = 0;

	set_registers(m, SUM, DATA_GPA, 5, 0);
	demo_expect("five pages", run(m, &sum), 0);
	expect_sum(sum, 1 + 2 + 3 + 4 + 5);
	printf("a guest sums a word of 5 pages: %u; %u of %u pages were brought in, the pager being a little ahead\n",
	       sum, fetched, PAGES);
	if (fetched >= PAGES)
		demo_fail("all pages were brought in");
	set_registers(m, SUM, DATA_GPA, PAGES, 0);
	demo_expect("all pages", run(m, &sum), 0);
	expect_sum(sum, PAGES * (PAGES + 1) / 2);
	printf("and of all of them: %u, %u pages brought in, once each\n", sum, fetched);
	if (fetched != PAGES)
		demo_fail("%u pages were brought in", fetched);
}

static void stopped(struct machine *m)
{
	struct gmem_exit e = { .size = sizeof(e) };
	uint32_t sum = 0;

	demo_expect("to private", gmem_file_set_attributes(m->file, PRIVATE * PAGE, PAGE, GMEM_ATTRIBUTE_PRIVATE, NULL),
		    0);
	set_registers(m, SUM, DATA_GPA, PAGES, 0);
	demo_expect("with a private page", run(m, &sum), -EFAULT);
	demo_expect("gmem_vcpu_exit", gmem_vcpu_exit(m->vcpu, &e), 0);
	if (e.reason != GMEM_EXIT_MEMORY_FAULT || e.gpa != DATA_GPA + PRIVATE * PAGE)
		demo_fail("exit %d at 0x%llx", (int)e.reason, (unsigned long long)e.gpa);
	printf("page %u becomes private: the guest comes out, memory fault at 0x%llx\n", PRIVATE,
	       (unsigned long long)e.gpa);
	demo_expect("to shared", gmem_file_set_attributes(m->file, PRIVATE * PAGE, PAGE, 0, NULL), 0);
	demo_expect("shared again", run(m, &sum), 0);
	expect_sum(sum, PAGES * (PAGES + 1) / 2);
	printf("shared again: it goes on where it was, and its sum is %u\n", sum);
}

static void logged(struct machine *m)
{
	static const unsigned int pages[] = { 3, 40 };
	uint64_t dirty = 0;
	uint32_t word;

	demo_expect("gmem_vm_set_log", gmem_vm_set_log(m->vm, 0, GMEM_LOG_DIRTY), 0);
	for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++) {
		set_registers(m, STORE, DATA_GPA + pages[i] * PAGE, 0, 1000);
		demo_expect("a store", run(m, &word), 0);
	}
	demo_expect("gmem_vm_get_log", gmem_vm_get_log(m->vm, 0, GMEM_LOG_DIRTY, 0, PAGES, &dirty, GMEM_LOG_CLEAR), 2);
	if (dirty != (1ull << 3 | 1ull << 40))
		demo_fail("the log is 0x%llx", (unsigned long long)dirty);
	demo_expect("gmem_file_read", gmem_file_read(m->file, 40 * PAGE, &word, sizeof(word)), 0);
	if (word != 1000)
		demo_fail("the host reads %u", word);
	printf("it writes to pages 3 and 40: the log has these two, and the host reads what it wrote\n");
}

int main(void)
{
	struct gmem_source_ops ops = { .size = sizeof(ops), .read = read_page };
	struct gmem_source *source;
	struct gmem_pager *pager;
	struct gmem_view *view;
	struct machine m;
	char *code_page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (code_page == MAP_FAILED)
		demo_fail("mmap: %s", strerror(errno));
	memcpy(code_page, code, sizeof(code));
	demo_expect("gmem_file_create", gmem_file_create(PAGES * PAGE, NULL, &m.file), 0);
	demo_expect("gmem_view_map", gmem_view_map(m.file, 0, PAGES * PAGE, PROT_READ | PROT_WRITE, &view), 0);
	demo_expect("gmem_source_new", gmem_source_new(&ops, NULL, &source), 0);
	if (gmem_pager_create(NULL, &pager) || gmem_pager_add_view(pager, view, source, 0))
		skip(gmem_last_error(), "a kernel and a user that may use userfaultfd (gmem info)");
	make_machine(&m, code_page);
	brought_in(&m);
	stopped(&m);
	logged(&m);
	gmem_vcpu_free(m.vcpu);
	gmem_vm_free(m.vm);
	gmem_pager_free(pager);
	gmem_view_unmap(view);
	gmem_file_free(m.file);
	gmem_source_unref(source);
	munmap(code_page, PAGE);
	return 0;
}

#else

int main(void)
{
	printf("SKIPPED: the guest's program is x86-64 code; to run it: an x86-64 host with KVM\n");
	return 77;
}

#endif
