/* SPDX-License-Identifier: MIT */
/* One file, one view, one gmem_uffd, and threads that touch: for tests of gmem_uffd. */
#ifndef GMEM_TESTS_UFFD_UTIL_H
#define GMEM_TESTS_UFFD_UTIL_H

#include <poll.h>

#include "file/file.h"
#include "pager_util.h"

#define PRIVATE GMEM_ATTRIBUTE_PRIVATE

struct scene {
	struct gmem_file *file;
	struct gmem_view *view;
	struct gmem_uffd *uffd;
	char *p;
	uint64_t len;
};

static inline struct gmem_file *new_file(uint64_t len, uint32_t flags)
{
	struct gmem_file_opts o = { .size = sizeof(o), .flags = flags };
	struct gmem_file *file;

	CHECK_OK(gmem_file_create(len, &o, &file));
	return file;
}

static inline struct gmem_view *new_view(struct gmem_file *file, uint64_t off, uint64_t len)
{
	struct gmem_view *view;

	CHECK_OK(gmem_view_map(file, off, len, PROT_READ | PROT_WRITE, &view));
	return view;
}

static inline struct gmem_uffd *new_uffd(uint32_t flags)
{
	struct gmem_uffd_opts o = { .size = sizeof(o), .flags = flags };
	struct gmem_uffd *uffd;

	CHECK_OK(gmem_uffd_create(&o, &uffd));
	return uffd;
}

static inline struct scene set_up(uint64_t len, uint32_t flags)
{
	struct scene s = { .len = len };

	need_markers();
	catch_bus();
	s.file = new_file(len, 0);
	s.view = new_view(s.file, 0, len);
	s.p = gmem_view_addr(s.view);
	s.uffd = new_uffd(flags);
	CHECK_OK(gmem_uffd_add_view(s.uffd, s.view));
	return s;
}

static inline void tear_down(struct scene *s)
{
	gmem_uffd_free(s->uffd);
	gmem_view_unmap(s->view);
	gmem_file_free(s->file);
}

static inline void convert(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes)
{
	CHECK_OK(gmem_file_set_attributes(file, off, len, attributes, NULL));
}

/* The next event, waited for. */
static inline struct gmem_uffd_event next_event(struct gmem_uffd *uffd)
{
	struct pollfd p = { .fd = gmem_uffd_fd(uffd), .events = POLLIN };
	struct gmem_uffd_event e;

	for (;;) {
		if (CHECK_OK(gmem_uffd_read(uffd, &e, 1)))
			return e;
		CHECK_EQ(poll(&p, 1, 20000), 1);
	}
}

/* No event comes within a while. */
static inline void no_event(struct gmem_uffd *uffd)
{
	struct pollfd p = { .fd = gmem_uffd_fd(uffd), .events = POLLIN };
	struct gmem_uffd_event e;

	poll(&p, 1, 100);
	CHECK_EQ(gmem_uffd_read(uffd, &e, 1), 0);
}

/* A thread that touches one page, once. */
struct toucher {
	pthread_t thread;
	char *p;
	bool write;
	_Atomic pid_t tid;
	_Atomic int done; /* 1 + the signal it met, 0: none */
	uint64_t word;
};

static inline void *toucher_main(void *arg)
{
	struct toucher *t = arg;
	int sig;

	atomic_store(&t->tid, (pid_t)gettid());
	sig = sigsetjmp(bus_jmp, 1);
	if (!sig) {
		if (t->write)
			__atomic_store_n((uint64_t *)t->p, 0x77, __ATOMIC_RELAXED);
		t->word = __atomic_load_n((uint64_t *)t->p, __ATOMIC_RELAXED);
	}
	atomic_store(&t->done, 1 + sig);
	return NULL;
}

static inline void start(struct toucher *t, char *p, bool write)
{
	*t = (struct toucher){ .p = p, .write = write };
	CHECK_EQ(pthread_create(&t->thread, NULL, toucher_main, t), 0);
}

static inline bool goes_on(struct toucher *t, int ms)
{
	for (int i = 0; i < ms && !atomic_load(&t->done); i++)
		usleep(1000);
	return atomic_load(&t->done);
}

/* It has ended, with that signal or none, within 20 s. */
static inline void finish(struct toucher *t, int sig)
{
	CHECK(goes_on(t, 20000));
	pthread_join(t->thread, NULL);
	CHECK_EQ(t->done, 1 + sig);
}

/* The kernel's word for a thread that waits. */
static inline bool sleeps(pid_t tid)
{
	char path[64], line[256], state = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
	f = fopen(path, "r");
	CHECK(f);
	if (fgets(line, sizeof(line), f))
		state = strrchr(line, ')')[2];
	fclose(f);
	return state == 'S' || state == 'D';
}

static inline void wait_asleep(struct toucher *t)
{
	while (!atomic_load(&t->tid))
		usleep(100);
	for (int seen = 0; seen < 3; usleep(1000))
		seen = sleeps(t->tid) ? seen + 1 : 0;
}

#endif
