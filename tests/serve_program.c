/* SPDX-License-Identifier: MIT */
/* A program with memory of gmem's that attaches to the page server, and goes on when that is killed. */
#include "serve_scene.h"

#define LEN (SLOW_BUILD ? 4 * MIB : 16 * MIB)

struct program {
	_Atomic int attached, go, compared, answer;
	char text[256];
};

static void two_sources(struct serve *s, struct gmem_service *sv)
{
	char spec[128];

	CHECK_OK(gmem_service_add_source(sv, "nothing", "zero:"));
	snprintf(spec, sizeof(spec), "raw:%s", s->raw);
	CHECK_OK(gmem_service_add_source(sv, "snapshot", spec));
	CHECK_OK(gmem_service_listen(sv, s->sock, NULL));
	CHECK_OK(gmem_service_listen_metrics(sv, s->metrics));
}

/* Half of the memory is compared, then all of it; some was written, and some punched, in between. */
static void run(const struct serve *s, struct program *p, const char *source)
{
	struct gmem_service_attach_opts opts = {
		.size = sizeof(opts), .source = source, .name = "a \"program\"", .uffds = 2
	};
	const char *want = mmap(NULL, LEN, PROT_READ, MAP_SHARED, s->fd, 0);
	struct gmem_service_view views[2];
	struct gmem_file *file;
	char *at[2];
	int err;

	CHECK(want != MAP_FAILED);
	CHECK_OK(gmem_file_create(LEN, NULL, &file));
	for (uint64_t i = 0; i < 2; i++) {
		CHECK_OK(gmem_view_map(file, i * LEN / 2, LEN / 2, PROT_READ | PROT_WRITE, &views[i].view));
		views[i].source_off = i * LEN / 2;
		at[i] = gmem_view_addr(views[i].view);
	}
	err = gmem_service_attach(s->sock, &opts, views, 2);
	snprintf(p->text, sizeof(p->text), "%s", err ? gmem_last_error() : "");
	atomic_store(&p->answer, err);
	atomic_store(&p->attached, 1);
	if (!err) {
		CHECK_MEM(at[0], want, LEN / 4);
		memset(at[0] + P, 'w', P);
		CHECK_OK(gmem_file_punch(file, 2 * P, P));
		atomic_store(&p->compared, 1);
		WAIT_FOR(atomic_load(&p->go));
		CHECK_MEM(at[0], want, P);
		CHECK(at[0][P] == 'w' && at[0][2 * P - 1] == 'w');
		CHECK(at[0][2 * P] == 0 && at[0][3 * P - 1] == 0);
		CHECK_MEM(at[0] + 3 * P, want + 3 * P, LEN / 2 - 3 * P);
		CHECK_MEM(at[1], want + LEN / 2, LEN / 2);
	}
	for (int i = 0; i < 2; i++)
		gmem_view_unmap(views[i].view);
	gmem_file_free(file);
	munmap((void *)(uintptr_t)want, LEN);
	_exit(0);
}

static pid_t start(const struct serve *s, struct program **ret, const char *source)
{
	struct program *p = mmap(NULL, sizeof(*p), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	CHECK(p != MAP_FAILED);
	fflush(stdout);
	pid = fork();
	CHECK_OK(pid);
	if (!pid)
		run(s, p, source);
	*ret = p;
	return pid;
}

static void ends_well(pid_t pid)
{
	int status;

	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		FAIL("the program ended with status 0x%x", status);
}

TEST_TIMEOUT(attached_and_served_on, 60)
{
	struct program *p;
	struct serve s;
	pid_t pid;

	for (uint32_t flags = 0; flags <= GMEM_SERVICE_NO_FILL; flags += GMEM_SERVICE_NO_FILL) {
		serve_set(&s, LEN);
		s.more = two_sources;
		s.opts.flags = flags;
		serve_start(&s);
		pid = start(&s, &p, "snapshot");
		WAIT_FOR(atomic_load(&p->compared));
		CHECK(serve_metrics_has(&s, "name=\"a \\\"program\\\"\",source=\"snapshot\",protocol=\"gmem\"", 0));
		serve_kill(&s);
		serve_start(&s);
		atomic_store(&p->go, 1);
		ends_well(pid);
		WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 0);
		munmap(p, sizeof(*p));
		serve_end(&s);
	}
}

TEST_TIMEOUT(refused, 60)
{
	struct program *p;
	struct serve s;

	serve_set(&s, LEN);
	s.more = two_sources;
	s.opts.max_memory = LEN - P;
	serve_start(&s);
	ends_well(start(&s, &p, "no such thing"));
	CHECK_EQ(atomic_load(&p->answer), -ENOENT);
	CHECK_HAS(p->text, "no such thing");
	munmap(p, sizeof(*p));
	ends_well(start(&s, &p, "snapshot"));
	CHECK(atomic_load(&p->answer) < 0);
	CHECK_HAS(p->text, "more than the limit");
	munmap(p, sizeof(*p));
	CHECK_EQ(serve_metric(&s, "gmem_serve_vms "), 0);
	serve_end(&s);
}
