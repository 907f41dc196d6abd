/* SPDX-License-Identifier: MIT */
/* An image on disk, a keeper, a program and servers, each a process: for tests of the keeper. */
#ifndef GMEM_TESTS_KEEPER_UTIL_H
#define GMEM_TESTS_KEEPER_UTIL_H

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "file/file.h"
#include "pager_util.h"
#include "sys/memfd.h"

#define TOUCHERS 2
#define MAX_VIEWS 3

/* Seen by all processes. */
struct shared {
	_Atomic uint64_t touching[TOUCHERS]; /* 1 + the touch that has begun and not ended, 0: none */
	_Atomic uint64_t touched; /* touches compared, and written to */
	_Atomic uint64_t hold_at; /* so many: touchers wait until it is 0 again or more; 0: they never do */
	_Atomic bool attached, go, complete;
	_Atomic int connected; /* servers that have come as far */
	_Atomic int request, answer; /* of a case's own */
	_Atomic uint64_t value;
};

struct span {
	uint32_t file;
	uint64_t off, len;
};

struct stage {
	char dir[64], image[96], sock[96];
	uint64_t len; /* of each file */
	struct gmem_file *files[2];
	uint32_t nfiles;
	struct gmem_keeper *keeper; /* until the program is started */
	struct shared *shared;
	struct span views[MAX_VIEWS]; /* what the program maps and attaches */
	uint32_t nviews;
	void (*program)(struct stage *s, struct gmem_view **views); /* what it does besides, once attached */
	uint64_t seed;
	pid_t k, v;
};

/* Memory number i of the image is made of word_at(i, ...). */
static inline void write_image(const char *path, uint32_t nfiles, uint64_t len)
{
	struct gmem_image_writer_opts o = { .size = sizeof(o), .compression = GMEM_COMPRESS_NONE };
	struct gmem_image_writer *w;

	CHECK_OK(gmem_image_create(path, &o, &w));
	for (uint32_t i = 0; i < nfiles; i++) {
		int fd = gmem_memfd_create("bytes", len);
		char page[P], name[16];

		CHECK_OK(fd);
		for (uint64_t off = 0; off < len; off += P) {
			fill_page(i, off, page);
			CHECK_EQ(pwrite(fd, page, P, (off_t)off), P);
		}
		snprintf(name, sizeof(name), "ram%u", i);
		CHECK_OK(gmem_image_add_region(w, name, 0, fd, 0, len, NULL, NULL));
		close(fd);
	}
	CHECK_OK(gmem_image_commit(w));
}

static inline void set_stage(struct stage *s, uint64_t npages, uint32_t nfiles)
{
	struct gmem_image *image;

	need_uffd();
	*s = (struct stage){ .seed = tap_seed(), .len = npages * P, .nfiles = nfiles, .nviews = nfiles };
	strcpy(s->dir, "/tmp/gmem-test-XXXXXX");
	CHECK(mkdtemp(s->dir));
	snprintf(s->image, sizeof(s->image), "%s/vm.gmem", s->dir);
	snprintf(s->sock, sizeof(s->sock), "%s/keeper", s->dir);
	s->shared = mmap(NULL, sizeof(*s->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(s->shared != MAP_FAILED);
	write_image(s->image, nfiles, s->len);
	CHECK_OK(gmem_keeper_create(s->sock, &s->keeper));
	for (uint32_t i = 0; i < nfiles; i++) {
		CHECK_OK(gmem_file_create(s->len, NULL, &s->files[i]));
		CHECK_OK(gmem_keeper_add_file(s->keeper, s->files[i], i));
		s->views[i] = (struct span){ .file = i, .len = s->len };
	}
	CHECK_OK(gmem_image_open(s->image, &image));
	CHECK_OK(gmem_keeper_set_image(s->keeper, gmem_image_fd(image), s->image));
	gmem_image_close(image);
}

static inline void strike_stage(struct stage *s)
{
	gmem_keeper_free(s->keeper);
	for (uint32_t i = 0; i < s->nfiles; i++)
		gmem_file_free(s->files[i]);
	unlink(s->image);
	unlink(s->sock);
	CHECK_EQ(rmdir(s->dir), 0);
	munmap(s->shared, sizeof(*s->shared));
}

static inline pid_t fork_checked(void)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	return pid;
}

static inline void run_keeper(struct stage *s)
{
	s->k = fork_checked();
	if (s->k)
		return;
	CHECK_OK(gmem_keeper_run(s->keeper));
	gmem_keeper_free(s->keeper);
	_exit(0);
}

/* ---- the program */

struct toucher {
	struct stage *s;
	struct gmem_view **views;
	uint32_t number;
};

#define GUEST_MARK 0x6775657374ull

/* Each view has a word of its own in every page; word v + 1 of a page is written through view v. */
static inline uint64_t mark(uint32_t v, uint64_t page)
{
	return GUEST_MARK + (page << 8) + v;
}

/* As saved, but for what the program has written; nothing has been written through view `own` yet. */
static inline bool touched_page_ok(const struct stage *s, const uint64_t *w, uint32_t own, uint64_t page)
{
	for (uint32_t i = 0; i < P / 8; i++) {
		uint64_t is = __atomic_load_n(&w[i], __ATOMIC_RELAXED);
		uint32_t v = i - 1;

		if (is == word_at(s->views[own].file, page * P + i * 8))
			continue;
		if (!i || v >= s->nviews || v == own || is != mark(v, page) || s->views[v].file != s->views[own].file)
			return false;
	}
	return true;
}

static inline void touch_page(struct toucher *t, uint64_t number, uint32_t v, uint64_t page_in_view)
{
	struct stage *s = t->s;
	uint64_t *w = (uint64_t *)((char *)gmem_view_addr(t->views[v]) + page_in_view * P);
	uint64_t page = page_in_view + s->views[v].off / P;

	atomic_store(&s->shared->touching[t->number], number + 1);
	if (!touched_page_ok(s, w, v, page))
		FAIL("the program sees wrong bytes in page %llu of file %u (zero: %d)", (unsigned long long)page,
		     s->views[v].file, page_is_zero(w));
	__atomic_store_n(&w[1 + v], mark(v, page), __ATOMIC_RELAXED);
	atomic_store(&s->shared->touching[t->number], 0);
	atomic_fetch_add(&s->shared->touched, 1);
}

static inline uint64_t all_touches(const struct stage *s)
{
	uint64_t n = 0;

	for (uint32_t v = 0; v < s->nviews; v++)
		n += s->views[v].len / P;
	return n;
}

/* Touch number i: of which view, and where in it? */
static inline uint64_t touch_of(const struct stage *s, uint64_t i, uint32_t *ret_view)
{
	for (*ret_view = 0; i >= s->views[*ret_view].len / P; (*ret_view)++)
		i -= s->views[*ret_view].len / P;
	return i;
}

static inline bool held(const struct stage *s)
{
	uint64_t at = atomic_load(&s->shared->hold_at);

	return at && atomic_load(&s->shared->touched) >= at;
}

/* Every page of every view, its share of them, in random order: as saved; then written to, which must last. */
static inline void *toucher_main(void *arg)
{
	struct toucher *t = arg;
	uint64_t n = 0, seed = t->s->seed + t->number, *order = calloc(all_touches(t->s), sizeof(*order));

	for (uint64_t i = t->number; i < all_touches(t->s); i += TOUCHERS)
		order[n++] = i;
	for (uint64_t i = n; i-- > 1;) {
		uint64_t k = tap_rand(&seed) % (i + 1), swap = order[i];

		order[i] = order[k];
		order[k] = swap;
	}
	for (uint64_t i = 0; i < n; i++) {
		uint32_t v;
		uint64_t page = touch_of(t->s, order[i], &v);

		while (held(t->s))
			usleep(300);
		touch_page(t, order[i], v, page);
	}
	free(order);
	return NULL;
}

/* Every byte once more: what was saved and what was written since. */
static inline void check_all(const struct stage *s, struct gmem_view **views)
{
	for (uint32_t v = 0; v < s->nviews; v++) {
		for (uint64_t page = 0; page < s->views[v].len / P; page++) {
			uint64_t at = page + s->views[v].off / P, *w;

			w = (uint64_t *)((char *)gmem_view_addr(views[v]) + page * P);
			if (w[1 + v] != mark(v, at))
				FAIL("page %llu was filled again after the program wrote to it",
				     (unsigned long long)at);
			w[1 + v] = word_at(s->views[v].file, at * P + (1 + v) * 8);
			if (!touched_page_ok(s, w, v, at))
				FAIL("page %llu is wrong in the end", (unsigned long long)at);
			w[1 + v] = mark(v, at);
		}
	}
}

static inline void touch_everything(struct stage *s, struct gmem_view **views)
{
	struct toucher t[TOUCHERS];
	pthread_t threads[TOUCHERS];

	for (uint32_t i = 0; i < TOUCHERS; i++) {
		t[i] = (struct toucher){ .s = s, .views = views, .number = i };
		pthread_create(&threads[i], NULL, toucher_main, &t[i]);
	}
	for (int i = 0; i < TOUCHERS; i++)
		pthread_join(threads[i], NULL);
}

static inline _Noreturn void be_program(struct stage *s)
{
	struct gmem_view *views[MAX_VIEWS];
	int sock = fcntl(gmem_keeper_attach_fd(s->keeper), F_DUPFD_CLOEXEC, 0);

	gmem_keeper_free(s->keeper);
	for (uint32_t v = 0; v < s->nviews; v++) {
		CHECK_OK(gmem_view_map(s->files[s->views[v].file], s->views[v].off, s->views[v].len,
				       PROT_READ | PROT_WRITE, &views[v]));
		CHECK_OK(gmem_attach_view(sock, views[v]));
	}
	atomic_store(&s->shared->attached, true);
	if (s->program)
		s->program(s, views);
	while (!atomic_load(&s->shared->go))
		usleep(300);
	touch_everything(s, views);
	while (!atomic_load(&s->shared->complete))
		usleep(300);
	check_all(s, views);
	_exit(0);
}

/* Returns when it has attached. This process lets go of the keeper, which it has no use for any more. */
static inline void start_program(struct stage *s)
{
	s->v = fork_checked();
	if (!s->v)
		be_program(s);
	gmem_keeper_free(s->keeper);
	s->keeper = NULL;
	WAIT_FOR(atomic_load(&s->shared->attached));
}

static inline void start_stage(struct stage *s, uint64_t npages, uint32_t nfiles)
{
	set_stage(s, npages, nfiles);
	run_keeper(s);
	start_program(s);
}

/* Pages of all files in no toucher's reach yet. */
static inline uint64_t unserved(const struct stage *s, uint64_t *ret_filling)
{
	uint64_t n = 0;

	if (ret_filling)
		*ret_filling = 0;
	for (uint32_t i = 0; i < s->nfiles; i++) {
		struct gmem_file_counts c = { .size = sizeof(c) };

		CHECK_OK(gmem_file_query(s->files[i], &c));
		n += c.absent + c.filling;
		if (ret_filling)
			*ret_filling += c.filling;
	}
	return n;
}

/* Touchers that wait in a fault; to be asked when no server lives. */
static inline int in_flight(const struct stage *s)
{
	uint64_t before[TOUCHERS];
	int n = 0;

	for (int i = 0; i < TOUCHERS; i++)
		before[i] = atomic_load(&s->shared->touching[i]);
	usleep(SLOW_BUILD ? 20000 : 3000);
	for (int i = 0; i < TOUCHERS; i++)
		n += before[i] && before[i] == atomic_load(&s->shared->touching[i]);
	return n;
}

/* ---- servers, in processes of their own */

struct server_how {
	bool take_over, no_fill;
	unsigned int slow_us; /* a step of the fill */
	void (*before)(int arg); /* runs in it first */
	int arg;
};

static inline int slow_progress(void *opaque, uint64_t done, uint64_t total)
{
	(void)done;
	(void)total;
	usleep(*(const unsigned int *)opaque);
	return 0;
}

/* A server that fills, then stays until it is killed. */
static inline pid_t start_server(struct stage *s, const struct server_how *how)
{
	static const struct server_how plain;
	struct gmem_server_opts o = { .size = sizeof(o) };
	struct gmem_server *server;
	pid_t pid = fork_checked();
	int err;

	if (pid)
		return pid;
	how = how ? how : &plain;
	o.take_over = how->take_over;
	if (how->before)
		how->before(how->arg);
	err = gmem_server_connect(s->sock, &o, &server);
	/* A program that needs no server any more is let go, and the keeper ends with it. */
	while (err && atomic_load(&s->shared->complete))
		pause();
	CHECK_OK(err);
	atomic_fetch_add(&s->shared->connected, 1);
	if (!how->no_fill) {
		unsigned int slow_us = how->slow_us;
		gmem_progress_fn progress = slow_us ? slow_progress : NULL;
		int64_t n = gmem_pager_fill(gmem_server_pager(server), progress, &slow_us);

		/* The same: all was touched before the fill came to it. */
		if (n != -ESRCH || !atomic_load(&s->shared->complete))
			CHECK_OK(n);
		atomic_store(&s->shared->complete, true);
	}
	for (;;)
		pause();
}

/* The last server does its work, the program ends, and the keeper with it. */
static inline void finish_program(struct stage *s)
{
	atomic_store(&s->shared->go, true);
	WAIT_FOR(atomic_load(&s->shared->touched) == all_touches(s));
	WAIT_FOR(!unserved(s, NULL));
	atomic_store(&s->shared->complete, true);
	wait_ok(s->v);
	wait_ok(s->k);
	CHECK(access(s->sock, F_OK) != 0);
}

static inline void finish(struct stage *s, pid_t server)
{
	finish_program(s);
	kill_and_wait(server);
	strike_stage(s);
}

static inline struct gmem_server *connect_server(struct stage *s)
{
	struct gmem_server *server;

	CHECK_OK(gmem_server_connect(s->sock, NULL, &server));
	return server;
}

static inline void get_status(struct gmem_server *server, struct gmem_server_status *status)
{
	*status = (struct gmem_server_status){ .size = sizeof(*status) };
	CHECK_OK(gmem_server_status(server, status));
}

/* As finish(), where the last server is this process's. */
static inline void finish_here(struct stage *s, struct gmem_server *server)
{
	CHECK_OK(gmem_pager_fill(gmem_server_pager(server), NULL, NULL));
	finish_program(s);
	gmem_server_free(server);
	strike_stage(s);
}

static inline void flip_byte(const struct stage *s, off_t at)
{
	int fd = open(s->image, O_RDWR | O_CLOEXEC);
	unsigned char byte;

	CHECK(fd >= 0);
	CHECK_EQ(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	CHECK_EQ(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

/* The descriptors process `pid` holds. */
static inline unsigned int count_fds(pid_t pid)
{
	char path[64];
	unsigned int n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	CHECK(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

#endif
