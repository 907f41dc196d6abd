/* SPDX-License-Identifier: MIT */
/* Descriptors taken out of a process: the right ones, of the right process, or an honest error. */
#include "tap.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "link/serve/recover.h"
#include "pager_util.h"
#include "sys/process.h"

bool __wrap_gmem_inode_own(uint64_t dev, uint64_t ino);
bool __real_gmem_inode_own(uint64_t dev, uint64_t ino);
uint64_t __wrap_gmem_process_start(pid_t pid);
uint64_t __real_gmem_process_start(pid_t pid);

static bool old_kernel;
static uint64_t start_offset;

bool __wrap_gmem_inode_own(uint64_t dev, uint64_t ino)
{
	return !old_kernel && __real_gmem_inode_own(dev, ino);
}

uint64_t __wrap_gmem_process_start(pid_t pid)
{
	uint64_t start = __real_gmem_process_start(pid);

	return start ? start + start_offset : 0;
}

#define N 3

/* A process with several userfaultfds, each with a range, a memory file, and an eventfd. */
struct program {
	_Atomic bool ready, close_first, closed;
	uint64_t hva[N];
	struct {
		uint64_t dev, ino;
	} uffd[N], memory, event;
	int numbers[N];
	pid_t pid;
};

static void look(int fd, uint64_t *dev, uint64_t *ino)
{
	struct stat st;

	CHECK(!fstat(fd, &st));
	*dev = st.st_dev;
	*ino = st.st_ino;
}

static struct program *start_program(void)
{
	struct program *p = mmap(NULL, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int memory, event;
	pid_t pid;

	need_uffd();
	CHECK(p != MAP_FAILED);
	pid = fork();
	CHECK(pid >= 0);
	if (pid) {
		p->pid = pid;
		WAIT_FOR(atomic_load(&p->ready));
		return p;
	}
	for (int i = 0; i < N; i++) {
		void *m = mmap(NULL, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		int fd = gmem_sys_uffd_open(0, NULL);

		CHECK(m != MAP_FAILED);
		CHECK_OK(fd);
		p->hva[i] = (uint64_t)(uintptr_t)m;
		CHECK_OK(gmem_sys_uffd_register(fd, p->hva[i], 4 * P, GMEM_SYS_UFFD_MISSING));
		look(fd, &p->uffd[i].dev, &p->uffd[i].ino);
		p->numbers[i] = fd;
	}
	memory = memfd_create("memory", MFD_CLOEXEC);
	look(memory, &p->memory.dev, &p->memory.ino);
	event = eventfd(0, EFD_CLOEXEC);
	look(event, &p->event.dev, &p->event.ino);
	CHECK(dup(memory) >= 0 && eventfd(0, EFD_CLOEXEC) >= 0);
	atomic_store(&p->ready, true);
	for (;;) {
		if (atomic_load(&p->close_first) && !atomic_load(&p->closed)) {
			close(p->numbers[0]);
			atomic_store(&p->closed, true);
		}
		usleep(1000);
	}
}

static void end_program(struct program *p)
{
	kill_and_wait(p->pid);
	munmap(p, P);
}

static struct gmem_ledger *ledger_of(const struct program *p)
{
	struct gmem_ledger *l;

	CHECK_OK(gmem_ledger_new("x", p->pid, &l));
	for (int i = 0; i < N; i++) {
		struct gmem_ledger_fd *fd = &l->fds[l->nfds++];

		*fd = (struct gmem_ledger_fd){
			.dev = p->uffd[i].dev, .ino = p->uffd[i].ino, .hva = p->hva[i], .len = 4 * P
		};
		snprintf(fd->name, sizeof(fd->name), "x.%d", i);
		strcpy(fd->kind, "anon_inode:[userfaultfd]");
	}
	l->fds[l->nfds++] = (struct gmem_ledger_fd){ .dev = p->memory.dev, .ino = p->memory.ino, .name = "x.3" };
	return l;
}

/* It answers for the memory that it should, and for no other's. */
static void check_serves(int uffd, const struct program *p, int i)
{
	uint64_t page[P / 8] = { 0x1234 };
	uint64_t got = 0, done;
	struct iovec local = { &got, sizeof(got) }, remote = { (void *)(uintptr_t)p->hva[i], sizeof(got) };

	for (int k = 0; k < N; k++)
		CHECK_EQ(gmem_sys_uffd_register(uffd, p->hva[k], 4 * P, GMEM_SYS_UFFD_MISSING), k == i ? 0 : -EBUSY);
	CHECK_OK(gmem_sys_uffd_copy(uffd, p->hva[i], (uint64_t)(uintptr_t)page, P, 0, &done));
	CHECK_EQ(process_vm_readv(p->pid, &local, 1, &remote, 1, 0), sizeof(got));
	CHECK_EQ(got, 0x1234);
}

static void take_all(bool old)
{
	struct program *p = start_program();
	struct gmem_ledger *l = ledger_of(p);
	int fds[N + 1] = { -1, -1, -1, -1 }, pidfd;
	uint64_t dev, ino;

	old_kernel = old;
	/* As it is where all have one inode. */
	for (int i = 0; i < N && old; i++)
		CHECK(l->fds[i].dev == l->fds[0].dev);
	pidfd = (int)CHECK_OK(gmem_recover_process(l));
	CHECK_OK(gmem_recover_fds(l, pidfd, fds));
	for (int i = 0; i < N; i++)
		check_serves(fds[i], p, i);
	look(fds[N], &dev, &ino);
	CHECK(dev == p->memory.dev && ino == p->memory.ino);
	for (int i = 0; i <= N; i++)
		close(fds[i]);
	close(pidfd);
	gmem_ledger_free(l);
	end_program(p);
}

TEST(by_its_inode)
{
	struct program *p = start_program();
	bool own = __real_gmem_inode_own(p->uffd[0].dev, p->uffd[0].ino);

	end_program(p);
	if (!own)
		SKIP("uffd-inode", "all userfaultfds of this kernel share an inode");
	take_all(false);
}

TEST(by_its_memory)
{
	take_all(true);
}

/* On a kernel where all share one inode, what is told about them is one and the same. */
TEST(by_its_memory_alone)
{
	struct program *p = start_program();
	struct gmem_ledger *l = ledger_of(p);
	int pidfd = (int)CHECK_OK(gmem_recover_process(l));
	int fds[N + 1] = { -1, -1, -1, -1 };

	old_kernel = true;
	/* The inode of the second and the range of the first: there is no such descriptor. */
	l->fds[0].ino = l->fds[1].ino;
	CHECK_ERR(gmem_recover_fds(l, pidfd, fds), -ENOENT);
	CHECK_EQ(fds[0], -1);
	for (int i = 1; i <= N; i++)
		CHECK(fds[i] >= 0);
	for (int i = 1; i <= N; i++)
		close(fds[i]);
	close(pidfd);
	gmem_ledger_free(l);
	end_program(p);
}

/* Eventfds do share one, here too. */
TEST(several_that_cannot_be_told_apart)
{
	struct program *p = start_program();
	struct gmem_ledger *l = ledger_of(p);
	int pidfd = (int)CHECK_OK(gmem_recover_process(l));
	int fds[N + 1] = { -1, -1, -1, -1 };

	CHECK(!__real_gmem_inode_own(p->event.dev, p->event.ino));
	l->nfds = 1;
	l->fds[0] = (struct gmem_ledger_fd){ .name = "x.0", .dev = p->event.dev, .ino = p->event.ino };
	strcpy(l->fds[0].kind, "anon_inode:[eventfd]");
	CHECK_ERR(gmem_recover_fds(l, pidfd, fds), -ENOTUNIQ);
	CHECK_EQ(fds[0], -1);
	close(pidfd);
	gmem_ledger_free(l);
	end_program(p);
}

TEST(what_was_closed)
{
	struct program *p = start_program();
	struct gmem_ledger *l = ledger_of(p);
	int pidfd = (int)CHECK_OK(gmem_recover_process(l));
	int fds[N + 1] = { -1, -1, -1, -1 }, given = dup(0);

	atomic_store(&p->close_first, true);
	WAIT_FOR(atomic_load(&p->closed));
	/* One that the caller has is left alone. */
	fds[2] = given;
	CHECK_ERR(gmem_recover_fds(l, pidfd, fds), -ENOENT);
	CHECK_HAS(gmem_last_error(), "x.0");
	CHECK(fds[0] == -1 && fds[1] >= 0 && fds[2] == given && fds[3] >= 0);
	for (int i = 1; i <= N; i++)
		close(fds[i]);
	close(pidfd);
	gmem_ledger_free(l);
	end_program(p);
}

TEST(another_process_of_that_number)
{
	struct program *p = start_program();
	struct gmem_ledger *l = ledger_of(p);

	start_offset = 1;
	CHECK_ERR(gmem_recover_process(l), -ESRCH);
	start_offset = 0;
	l->boot[0] = l->boot[0] == '0' ? '1' : '0';
	CHECK_ERR(gmem_recover_process(l), -ESRCH);
	CHECK_OK(gmem_ledger_boot(l->boot));
	close((int)CHECK_OK(gmem_recover_process(l)));
	l->pid = 0;
	CHECK_ERR(gmem_recover_process(l), -ENODATA);
	gmem_ledger_free(l);
	end_program(p);
}

TEST(process_that_has_ended)
{
	struct program *p = start_program();
	struct gmem_ledger *l = ledger_of(p);
	int pidfd = (int)CHECK_OK(gmem_recover_process(l));
	int fds[N + 1] = { -1, -1, -1, -1 };

	kill(p->pid, SIGKILL);
	/* Ended and not waited for: its number is still there. */
	CHECK_EQ(poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, 20000), 1);
	CHECK_ERR(gmem_recover_process(l), -ESRCH);
	CHECK(gmem_recover_fds(l, pidfd, fds) < 0);
	CHECK_EQ(waitpid(p->pid, NULL, 0), p->pid);
	CHECK_ERR(gmem_recover_process(l), -ESRCH);
	CHECK_ERR(gmem_recover_fds(l, pidfd, fds), -ESRCH);
	for (int i = 0; i <= N; i++)
		CHECK_EQ(fds[i], -1);
	close(pidfd);
	gmem_ledger_free(l);
	munmap(p, P);
}

/* Who may not trace it is told so, and what it takes. */
TEST(without_the_right)
{
	struct program *p = start_program();
	struct gmem_ledger *l = ledger_of(p);
	int status;
	pid_t pid;

	if (geteuid())
		SKIP("root", "needs another user to be");
	pid = fork();
	if (!pid) {
		int fds[N + 1] = { -1, -1, -1, -1 }, pidfd;

		CHECK(!setgid(65534) && !setuid(65534));
		pidfd = (int)CHECK_OK(gmem_recover_process(l));
		CHECK_ERR(gmem_recover_fds(l, pidfd, fds), -EPERM);
		CHECK_HAS(gmem_last_error(), "CAP_SYS_PTRACE");
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	gmem_ledger_free(l);
	end_program(p);
}
