/* SPDX-License-Identifier: MIT */
/* The process: memory, handshake, and a loop that does what it is told. */
#define TAP_NO_MAIN
#include "tap.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fc_vm.h"
#include "sys/call.h"
#include "sys/uapi.h"
#include "sys/uffd.h"

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

struct vm {
	const struct fc_options *o;
	int control, sock, uffd;
	uint64_t page_size, len, nregions;
	char *regions[FC_MAX_REGIONS];
	char *model; /* what every byte has to be */
	struct fc_report report;
};

static __thread sigjmp_buf *volatile lost; /* where a thread goes on that has met a poisoned page */

static void on_sigbus(int sig)
{
	if (lost)
		siglongjmp(*lost, 1);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void tell(struct vm *vm, int ret)
{
	vm->report.ret = ret;
	if (send(vm->control, &vm->report, sizeof(vm->report), MSG_NOSIGNAL) != sizeof(vm->report))
		_exit(2);
}

static void give_up(struct vm *vm, const char *skip, const char *what, int err)
{
	snprintf(vm->report.skip, sizeof(vm->report.skip), "%s", skip);
	snprintf(vm->report.text, sizeof(vm->report.text), "%s: %s", what, strerror(-err));
	tell(vm, err);
	_exit(1);
}

/* ---- Memory. */

/* Between pages that nobody may touch, as a VMM has it against overruns. */
static char *map_region(struct vm *vm, uint64_t len)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	char *room = mmap(NULL, len + 2 * vm->page_size, PROT_NONE, flags, -1, 0), *at;

	if (room == MAP_FAILED)
		give_up(vm, "", "mmap", -errno);
	at = room + 1;
	at += -(uintptr_t)at & (vm->page_size - 1);
	if (vm->o->huge) {
		/* With the pages reserved, to see whether there are any. */
		char *try = mmap(NULL, len, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);

		if (try == MAP_FAILED)
			give_up(vm, "hugetlb", "huge pages", -errno);
		munmap(try, len);
		flags |= MAP_HUGETLB | MAP_HUGE_2MB;
	}
	if (mmap(at, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0) != at)
		give_up(vm, "", "mmap", -errno);
	return at;
}

static void open_uffd(struct vm *vm)
{
	uint64_t features = vm->o->no_balloon ? 0 : UFFD_FEATURE_EVENT_REMOVE;

	vm->uffd = fc_uffd(features, vm->o->lie != FC_BLOCKING);
	if (vm->uffd < 0)
		give_up(vm, "uffd", "userfaultfd", vm->uffd);
}

static void make_memory(struct vm *vm)
{
	const struct fc_options *o = vm->o;

	vm->page_size = o->huge ? FC_HUGE : 4096;
	open_uffd(vm);
	for (; vm->nregions < FC_MAX_REGIONS && o->sizes[vm->nregions]; vm->nregions++) {
		uint64_t size = o->sizes[vm->nregions];
		char *region = map_region(vm, size);
		int err = gmem_sys_uffd_register(vm->uffd, (uint64_t)(uintptr_t)region, size, GMEM_SYS_UFFD_MISSING);

		if (err)
			give_up(vm, "", "registering", err);
		vm->regions[vm->nregions] = region;
		vm->len += size;
	}
	vm->model = mmap(NULL, vm->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, o->bytes_fd, 0);
	if (vm->model == MAP_FAILED)
		give_up(vm, "", "mapping the snapshot", -errno);
}

/* The address of a byte, and how many follow it there. */
static char *at(const struct vm *vm, uint64_t off, uint64_t *ret_len)
{
	for (uint64_t i = 0; i < vm->nregions; i++) {
		if (off < vm->o->sizes[i]) {
			*ret_len = vm->o->sizes[i] - off;
			return vm->regions[i] + off;
		}
		off -= vm->o->sizes[i];
	}
	FAIL("offset past the end of the guest");
}

/* ---- The handshake. */

static int lie_fd(struct vm *vm)
{
	switch (vm->o->lie) {
	case FC_DEV_NULL:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case FC_MEMFD:
		return memfd_create("lie", MFD_CLOEXEC);
	case FC_NO_API:
		return gmem_sys_userfaultfd(O_CLOEXEC | O_NONBLOCK);
	case FC_FORK_EVENTS:
		return fc_uffd(UFFD_FEATURE_EVENT_FORK, true);
	default:
		return vm->uffd;
	}
}

static size_t count_fds(const struct fc_options *o)
{
	switch (o->lie) {
	case FC_NO_FD:
		return 0;
	case FC_TWO_FDS:
		return 2;
	case FC_TEN_FDS:
		return 10;
	case FC_SIXTY_FDS:
		return 60;
	default:
		return 1;
	}
}

static void say_hello(struct vm *vm)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	uint64_t hvas[FC_MAX_REGIONS];
	int fds[FC_MAX_FDS], fd = lie_fd(vm);
	size_t len;
	char *text;

	if (fd < 0)
		give_up(vm, "uffd", "the wrong descriptor", -errno);
	for (size_t i = 0; i < FC_MAX_FDS; i++)
		fds[i] = fd;
	for (uint64_t i = 0; i < vm->nregions; i++)
		hvas[i] = (uint64_t)(uintptr_t)vm->regions[i];
	strncpy(addr.sun_path, vm->o->path, sizeof(addr.sun_path) - 1);
	vm->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (vm->sock < 0 || connect(vm->sock, (struct sockaddr *)&addr, sizeof(addr)))
		give_up(vm, "", "connecting", -errno);
	text = fc_text(vm->o, hvas, &len);
	/* Those that tell lies may well be hung up on before they have told all of them. */
	if (vm->o->lie != FC_SILENT && vm->o->lie != FC_HANGS_UP &&
	    !fc_send(vm->sock, vm->o, text, len, fds, count_fds(vm->o)) && vm->o->lie == FC_HONEST)
		give_up(vm, "", "the handshake", -errno);
	free(text);
	if (fd != vm->uffd)
		close(fd);
	/* Earlier releases do not keep it. */
	if (vm->o->lie == FC_HANGS_UP || vm->o->lie == FC_HALF ||
	    (vm->o->version < FC_1_12 && vm->o->lie == FC_HONEST)) {
		close(vm->sock);
		vm->sock = -1;
	}
}

/* ---- What guests and balloons do. */

/* Of one page. -EHWPOISON: touching it is SIGBUS. */
static int compare_bytes(const volatile char *p, const char *model, uint64_t len, uint64_t *ret_at)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 1)) {
		lost = NULL;
		return -EHWPOISON;
	}
	lost = &here;
	for (uint64_t i = 0; i < len; i++) {
		if (p[i] != model[i]) {
			lost = NULL;
			*ret_at = i;
			return -EILSEQ;
		}
	}
	lost = NULL;
	return 0;
}

static int compare(struct vm *vm, uint64_t off, uint64_t len, uint64_t *ret_off)
{
	int err = 0;

	for (uint64_t end = off + len; off < end && !err;) {
		uint64_t have, n = 4096 - off % 4096, wrong = 0;

		n = end - off < n ? end - off : n;
		err = compare_bytes(at(vm, off, &have), vm->model + off, n, &wrong);
		*ret_off = off + wrong;
		off += n;
	}
	return err;
}

static int write_bytes(struct vm *vm, uint64_t off, uint64_t len, uint64_t seed)
{
	for (uint64_t end = off + len; off < end; off++) {
		uint64_t have;
		char x = (char)(off * 31 + (off >> 12) * 7 + seed);

		*(volatile char *)at(vm, off, &have) = x;
		vm->model[off] = x;
	}
	return 0;
}

/* A copy that the kernel makes, into a pipe, of no more than fits there at once. */
static int syscall_copy(struct vm *vm, uint64_t off, uint64_t len)
{
	int pipes[2], err = 0;
	char buf[4096];

	CHECK_EQ(pipe(pipes), 0);
	for (uint64_t end = off + len; off < end && !err;) {
		uint64_t have, n = end - off < sizeof(buf) ? end - off : sizeof(buf);
		const char *p = at(vm, off, &have);
		ssize_t did = write(pipes[1], p, n < have ? n : have);

		if (did < 0) {
			err = -errno;
			break;
		}
		CHECK_EQ(read(pipes[0], buf, (size_t)did), did);
		if (memcmp(buf, vm->model + off, (size_t)did) != 0)
			err = -EILSEQ;
		vm->report.off = off;
		off += (uint64_t)did;
	}
	close(pipes[0]);
	close(pipes[1]);
	return err;
}

static int balloon(struct vm *vm, uint64_t off, uint64_t len)
{
	while (len) {
		uint64_t have, n;
		char *p = at(vm, off, &have);

		n = len < have ? len : have;
		if (madvise(p, n, MADV_DONTNEED))
			return -errno;
		memset(vm->model + off, 0, n);
		off += n;
		len -= n;
	}
	return 0;
}

struct vcpu {
	struct vm *vm;
	unsigned int number, nvcpus, nops;
	uint64_t seed, off;
	int err;
};

/* Pages of its own, so that what it sees depends on nobody else. */
static void *vcpu_thread(void *opaque)
{
	struct vcpu *v = opaque;
	struct vm *vm = v->vm;
	uint64_t ps = vm->page_size, npages = vm->len / ps / v->nvcpus;

	for (unsigned int i = 0; i < v->nops && npages && !v->err; i++) {
		uint64_t page = (tap_rand(&v->seed) % npages) * v->nvcpus + v->number;

		switch (tap_rand(&v->seed) % 8) {
		case 0:
			if (!vm->o->no_balloon)
				v->err = balloon(vm, page * ps, ps);
			break;
		case 1 ... 2:
			v->err = write_bytes(vm, page * ps + tap_rand(&v->seed) % (ps - 64), 64, v->seed);
			break;
		default:
			v->err = compare(vm, page * ps, ps, &v->off);
		}
	}
	return NULL;
}

static int storm(struct vm *vm, unsigned int nvcpus, unsigned int nops, uint64_t seed)
{
	struct vcpu *vcpus = calloc(nvcpus, sizeof(*vcpus));
	pthread_t *threads = calloc(nvcpus, sizeof(*threads));
	int err = 0;

	CHECK(vcpus && threads);
	for (unsigned int i = 0; i < nvcpus; i++) {
		vcpus[i] = (struct vcpu){ vm, i, nvcpus, nops, seed * 1000 + i, 0, 0 };
		CHECK_EQ(pthread_create(&threads[i], NULL, vcpu_thread, &vcpus[i]), 0);
	}
	for (unsigned int i = 0; i < nvcpus; i++) {
		pthread_join(threads[i], NULL);
		if (vcpus[i].err && !err) {
			err = vcpus[i].err;
			vm->report.off = vcpus[i].off;
		}
	}
	free(vcpus);
	free(threads);
	return err ? err : compare(vm, 0, vm->len, &vm->report.off);
}

static int hung_up(const struct vm *vm)
{
	struct pollfd p = { .fd = vm->sock, .events = POLLRDHUP };

	return vm->sock >= 0 && poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

static int obey(struct vm *vm, const struct fc_order *order)
{
	switch (order->op) {
	case FC_READ:
		return compare(vm, order->off, order->len, &vm->report.off);
	case FC_WRITE:
		return write_bytes(vm, order->off, order->len, order->seed);
	case FC_SYSCALL:
		return syscall_copy(vm, order->off, order->len);
	case FC_BALLOON:
		return balloon(vm, order->off, order->len);
	case FC_STORM:
		return storm(vm, (unsigned int)order->off, (unsigned int)order->len, order->seed);
	case FC_HUNG_UP:
		return hung_up(vm);
	default:
		return 0;
	}
}

void fc_vm_run(const struct fc_options *o, int control)
{
	struct vm vm = { .o = o, .control = control, .sock = -1, .uffd = -1 };
	struct fc_order order = { .op = FC_READ };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, on_sigbus);
	make_memory(&vm);
	say_hello(&vm);
	tell(&vm, 0);
	while (order.op != FC_END) {
		if (recv(control, &order, sizeof(order), 0) != sizeof(order))
			_exit(0);
		tell(&vm, obey(&vm, &order));
	}
	_exit(0);
}
