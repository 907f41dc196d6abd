/* SPDX-License-Identifier: MIT */
/*
 * NBD servers that are slow, fail, stop, die and come back with the same bytes or with others. Time-outs here are
 * either far too short for the server or an hour: nothing depends on how fast the machine is.
 */
#include "tap.h"

#include <pthread.h>
#include <stdatomic.h>

#include "nbd_util.h"

#define PAGE GMEM_PAGE_SIZE
#define NPAGES 1000u
#define HOUR_MS 3600000u

struct memory {
	struct nbd_server server;
	char path[96];
	struct gmem_source *s;
	uint8_t *bytes, *data;
	uint64_t seed;
};

static void memory_new(struct memory *m)
{
	m->seed = tap_seed();
	need_nbd("nbdkit");
	nbd_folder(&m->server);
	nbd_memory(&m->server, m->path, NPAGES, tap_rand(&m->seed), &m->bytes, &m->data);
}

static void memory_free(struct memory *m)
{
	gmem_source_unref(m->s);
	nbd_end(&m->server);
	free(m->bytes);
	free(m->data);
}

static void open_with(struct memory *m, uint32_t connections, uint32_t timeout_ms)
{
	struct gmem_nbd_opts opts = { .size = sizeof(opts), .connections = connections, .timeout_ms = timeout_ms };

	int r;

	/* A short time may be too short for a connect, too. */
	do
		r = gmem_source_new_nbd(m->server.uri, &opts, &m->s);
	while (r == -ETIMEDOUT);
	CHECK_OK(r);
}

static int read_page(const struct memory *m, uint64_t i)
{
	uint8_t got[PAGE];
	int r;

	memset(got, 0xee, PAGE);
	r = gmem_source_read(m->s, i * PAGE, got, PAGE);
	if (r == 0)
		CHECK_MEM(got, m->bytes + i * PAGE, PAGE);
	/* Never one of those that lose a page. */
	CHECK(r != -EIO && r != -EBADMSG && r != -ENODATA && r <= 0);
	return r;
}

static void set_file(const struct memory *m, const char *name, bool there)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", m->server.folder, name);
	if (!there) {
		CHECK(unlink(path) == 0);
		return;
	}
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	close(fd);
}

TEST(a_failing_server_is_not_now_and_then_it_is)
{
	struct memory m = { 0 };
	char file[128];

	memory_new(&m);
	snprintf(file, sizeof(file), "error-pread-file=%s/fail", m.server.folder);
	nbdkit(&m.server, "--filter=error", "file", m.path, "error-pread=EIO", "error-pread-rate=100%", file, NULL);
	open_with(&m, 4, HOUR_MS);
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(read_page(&m, 1), 0);
		set_file(&m, "fail", true);
		CHECK_EQ(read_page(&m, 2), -EREMOTEIO);
		CHECK_HAS(gmem_last_error(), "offset 0x2000: NBD: read");
		CHECK_EQ(read_page(&m, 1), -EREMOTEIO);
		set_file(&m, "fail", false);
		CHECK_EQ(read_page(&m, 2), 0);
	}
	memory_free(&m);
}

TEST(each_error_of_a_server_is_not_now)
{
	static const struct {
		const char *error;
		int want;
	} cases[] = {
		{ "error-pread=EPERM", -EPERM },   { "error-pread=EIO", -EREMOTEIO }, { "error-pread=ENOMEM", -ENOMEM },
		{ "error-pread=EINVAL", -EINVAL }, { "error-pread=ENOSPC", -ENOSPC },
	};
	struct memory m = { 0 };

	memory_new(&m);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		nbdkit(&m.server, "--filter=error", "file", m.path, cases[i].error, "error-pread-rate=100%", NULL);
		open_with(&m, 1, HOUR_MS);
		CHECK_EQ(read_page(&m, 3), cases[i].want);
		gmem_source_unref(m.s);
		m.s = NULL;
		nbd_kill(&m.server);
	}
	memory_free(&m);
}

struct job {
	pthread_t thread;
	const struct memory *m;
	uint64_t seed;
	int rounds;
	uint64_t errors;
	atomic_bool *stop;
};

/* Reads until it has what it wants, as a pager does. */
static void *insist(void *arg)
{
	struct job *job = arg;

	for (int k = 0; k < job->rounds || (job->stop && !atomic_load(job->stop)); k++) {
		uint64_t i = tap_rand(&job->seed) % NPAGES;

		while (!gmem_source_is_zero(job->m->s, i * PAGE, PAGE, k % 2) && read_page(job->m, i) < 0) {
			job->errors++;
			nbd_pause_ms(1);
		}
		if (gmem_source_is_zero(job->m->s, i * PAGE, PAGE, true))
			CHECK(!job->m->data[i]);
	}
	return NULL;
}

static void start(struct job *jobs, int n, struct memory *m, int rounds, atomic_bool *stop)
{
	for (int i = 0; i < n; i++) {
		jobs[i] = (struct job){ .m = m, .seed = tap_rand(&m->seed), .rounds = rounds, .stop = stop };
		CHECK(pthread_create(&jobs[i].thread, NULL, insist, &jobs[i]) == 0);
	}
}

static uint64_t join(struct job *jobs, int n)
{
	uint64_t errors = 0;

	for (int i = 0; i < n; i++) {
		CHECK(pthread_join(jobs[i].thread, NULL) == 0);
		errors += jobs[i].errors;
	}
	return errors;
}

TEST_TIMEOUT(a_server_that_fails_half_of_the_time, 60)
{
	struct memory m = { 0 };
	struct job jobs[4];

	memory_new(&m);
	nbdkit(&m.server, "--filter=error", "file", m.path, "error-rate=50%", NULL);
	open_with(&m, 4, HOUR_MS);
	start(jobs, 4, &m, tap_slow() ? 50 : 200, NULL);
	CHECK(join(jobs, 4) > 0);
	memory_free(&m);
}

TEST_TIMEOUT(a_slow_server_is_waited_for, 60)
{
	struct memory m = { 0 };
	struct job jobs[4];

	memory_new(&m);
	nbdkit(&m.server, "--filter=delay", "file", m.path, "rdelay=50ms", "delay-extents=50ms", NULL);
	open_with(&m, 4, HOUR_MS);
	start(jobs, 4, &m, 15, NULL);
	CHECK_EQ(join(jobs, 4), 0);
	memory_free(&m);
}

TEST_TIMEOUT(a_server_that_is_too_slow_times_out, 60)
{
	struct memory m = { 0 };

	memory_new(&m);
	nbdkit(&m.server, "--filter=delay", "file", m.path, "rdelay=3600", NULL);
	open_with(&m, 4, 200);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(read_page(&m, 5), -ETIMEDOUT);
		CHECK_HAS(gmem_last_error(), " in time");
	}
	memory_free(&m);
}

/* It would take hours to be told what is zero in all of it. */
TEST_TIMEOUT(a_server_that_knows_its_zeros_too_late_is_read, 60)
{
	struct gmem_nbd_opts opts = { .size = sizeof(opts), .timeout_ms = HOUR_MS };
	struct nbd_server server;
	struct gmem_source *s;
	uint8_t got[PAGE];

	need_nbd("nbdkit");
	nbd_folder(&server);
	nbdkit(&server, "--filter=delay", "memory", "1T", "delay-extents=3600", NULL);
	CHECK_OK(gmem_source_new_nbd(server.uri, &opts, &s));
	for (uint64_t off = 0; off < UINT64_C(1) << 40; off += 64 << 20) {
		CHECK(!gmem_source_is_zero(s, off, PAGE, false));
		if (off % (4ull << 30) == 0)
			CHECK_OK(gmem_source_read(s, off, got, PAGE));
	}
	gmem_source_unref(s);
	nbd_end(&server);
}

TEST_TIMEOUT(a_server_that_is_stopped_and_goes_on, 120)
{
	struct memory m = { 0 };
	int status;

	memory_new(&m);
	nbdkit(&m.server, "file", m.path, NULL);
	open_with(&m, 4, 500);
	while (read_page(&m, 7) < 0)
		;
	CHECK(kill(m.server.pid, SIGSTOP) == 0);
	CHECK(waitpid(m.server.pid, &status, WUNTRACED) == m.server.pid && WIFSTOPPED(status));
	CHECK_EQ(read_page(&m, 7), -ETIMEDOUT);
	/* It listens still, but answers nobody. */
	CHECK_EQ(read_page(&m, 7), -ETIMEDOUT);
	CHECK(!gmem_source_is_zero(m.s, 0, PAGE, false));
	CHECK(kill(m.server.pid, SIGCONT) == 0);
	while (read_page(&m, 7) < 0)
		nbd_pause_ms(1);
	memory_free(&m);
}

TEST_TIMEOUT(a_server_killed_and_restarted_is_read_on, 120)
{
	struct memory m = { 0 };
	atomic_bool stop = false;
	struct job jobs[4];
	uint64_t errors;
	int r;

	memory_new(&m);
	nbdkit(&m.server, "file", m.path, NULL);
	/* Nothing may wait for an hour: a server that is away is known to be away. */
	open_with(&m, 4, HOUR_MS);
	start(jobs, 4, &m, 10, &stop);
	for (int i = 0; i < (tap_slow() ? 4 : 12); i++) {
		nbd_pause_ms((long)(tap_rand(&m.seed) % 50));
		nbd_kill(&m.server);
		nbd_pause_ms((long)(tap_rand(&m.seed) % 50));
		nbdkit(&m.server, "file", m.path, NULL);
	}
	atomic_store(&stop, true);
	errors = join(jobs, 4);
	printf("%llu reads failed and were done again\n", (unsigned long long)errors);
	/* One that is away for longer says so each time, and is found again. */
	CHECK_EQ(read_page(&m, 3), 0);
	nbd_kill(&m.server);
	for (int i = 0; i < 20; i++) {
		r = read_page(&m, 3);
		CHECK(r == -ECONNREFUSED || r == -ECONNRESET || r == -ENOENT);
		nbd_pause_ms(1);
	}
	nbdkit(&m.server, "file", m.path, NULL);
	while (read_page(&m, 3) < 0)
		nbd_pause_ms(1);
	memory_free(&m);
}

TEST_TIMEOUT(a_server_that_comes_back_with_another_size_is_not_believed, 60)
{
	struct memory m = { 0 };
	int r;

	memory_new(&m);
	nbdkit(&m.server, "file", m.path, NULL);
	open_with(&m, 2, HOUR_MS);
	CHECK_EQ(read_page(&m, 9), 0);
	nbd_kill(&m.server);
	nbdkit(&m.server, "memory", "64M", NULL);
	do {
		r = read_page(&m, 9);
		CHECK(r < 0);
	} while (r != -ESTALE);
	CHECK_HAS(gmem_last_error(), "the export has 67108864 bytes now, and had 4096000");
	nbd_kill(&m.server);
	nbdkit(&m.server, "file", m.path, NULL);
	while (read_page(&m, 9) < 0)
		nbd_pause_ms(1);
	memory_free(&m);
}

TEST_TIMEOUT(threads_wait_for_the_only_connection, 60)
{
	struct memory m = { 0 };
	struct job jobs[4];

	memory_new(&m);
	nbdkit(&m.server, "--filter=delay", "file", m.path, "rdelay=5ms", NULL);
	open_with(&m, 1, HOUR_MS);
	start(jobs, 4, &m, 20, NULL);
	CHECK_EQ(join(jobs, 4), 0);
	memory_free(&m);
}
