/* SPDX-License-Identifier: MIT */
/* The exports of real NBD servers as sources: bytes, zeros, connections, TLS, and what is refused. */
#include "tap.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "nbd_util.h"

#define PAGE GMEM_PAGE_SIZE
#define NPAGES 3000u

struct memory {
	struct gmem_source *s;
	uint8_t *bytes, *data;
	uint64_t npages;
};

struct job {
	pthread_t thread;
	const struct memory *m;
	uint64_t seed;
	int rounds;
};

static void *read_some(void *arg)
{
	struct job *job = arg;
	const struct memory *m = job->m;
	uint8_t *got = malloc(64 * PAGE);

	for (int k = 0; k < job->rounds; k++) {
		uint64_t i = tap_rand(&job->seed) % m->npages, n = 1 + tap_rand(&job->seed) % 64;
		uint64_t start = i * PAGE, len = PAGE;

		if (n > m->npages - i)
			n = m->npages - i;
		memset(got, 0xee, n * PAGE);
		CHECK_OK(gmem_source_read(m->s, i * PAGE, got, n * PAGE));
		CHECK_MEM(got, m->bytes + i * PAGE, n * PAGE);
		CHECK_ERR(gmem_source_read_nowait(m->s, i * PAGE, got, PAGE), -EAGAIN);
		gmem_source_extent(m->s, &start, &len);
		CHECK(start <= i * PAGE && start + len >= (i + 1) * PAGE && start + len <= m->npages * PAGE);
		CHECK(start / 65536 == i * PAGE / 65536 && (start + len - 1) / 65536 == i * PAGE / 65536);
		CHECK_OK(gmem_source_read(m->s, start, got, len));
		CHECK_MEM(got, m->bytes + start, len);
	}
	free(got);
	return NULL;
}

static void read_at_once(const struct memory *m, uint64_t seed, int nthreads, int rounds)
{
	struct job jobs[8];

	for (int i = 0; i < nthreads; i++) {
		jobs[i] = (struct job){ .m = m, .seed = tap_rand(&seed), .rounds = rounds };
		CHECK(pthread_create(&jobs[i].thread, NULL, read_some, &jobs[i]) == 0);
	}
	for (int i = 0; i < nthreads; i++)
		CHECK(pthread_join(jobs[i].thread, NULL) == 0);
}

/* Known to be zero is a hole of the file's, all of them, and nothing else; without asking nothing is known. */
static void check_zeros(const struct memory *m)
{
	for (uint64_t i = 0; i < m->npages; i++)
		CHECK(!gmem_source_is_zero(m->s, i * PAGE, PAGE, true));
	for (uint64_t i = 0; i < m->npages; i++)
		CHECK_EQ(gmem_source_is_zero(m->s, i * PAGE, PAGE, false), !m->data[i]);
	for (uint64_t i = 0; i < m->npages; i++)
		CHECK_EQ(gmem_source_is_zero(m->s, i * PAGE, PAGE, true), !m->data[i]);
	CHECK(!gmem_source_is_zero(m->s, m->npages * PAGE, PAGE, false));
}

static void check_memory(struct memory *m, const char *uri, const struct gmem_nbd_opts *opts, bool zeros, uint64_t seed)
{
	uint8_t got[PAGE];

	CHECK_OK(gmem_source_new_nbd(uri, opts, &m->s));
	CHECK_EQ(gmem_source_len(m->s), m->npages * PAGE);
	if (zeros)
		check_zeros(m);
	read_at_once(m, seed, 4, tap_slow() ? 50 : 300);
	CHECK_ERR(gmem_source_read(m->s, m->npages * PAGE, got, PAGE), -ENODATA);
	CHECK_ERR(gmem_source_read(m->s, UINT64_MAX - PAGE + 1, got, PAGE), -ENODATA);
	gmem_source_unref(m->s);
}

static void memory_free(struct memory *m)
{
	free(m->bytes);
	free(m->data);
}

TEST_TIMEOUT(nbdkits_file_is_what_the_file_is, 60)
{
	struct gmem_nbd_opts one = { .size = sizeof(one), .connections = 1 };
	struct memory m = { .npages = NPAGES };
	uint64_t seed = tap_seed();
	struct nbd_server server;
	char path[96];

	need_nbd("nbdkit");
	nbd_folder(&server);
	nbd_memory(&server, path, NPAGES, tap_rand(&seed), &m.bytes, &m.data);
	nbdkit(&server, "file", path, NULL);
	check_memory(&m, server.uri, NULL, true, tap_rand(&seed));
	check_memory(&m, server.uri, &one, false, tap_rand(&seed));
	nbd_end(&server);
	memory_free(&m);
}

/* qemu-nbd lets so many clients in, and leaves the next one waiting. */
static void qemu_nbd(struct nbd_server *server, const char *path, const char *shared)
{
	char pid_file[128],
		*argv[] = { (char *)"qemu-nbd", (char *)"-r", (char *)"-t",   (char *)"-f", (char *)"raw", (char *)"-e",
			    (char *)shared,	(char *)"-k", server->socket, pid_file,	    (char *)path,  NULL };

	snprintf(pid_file, sizeof(pid_file), "--pid-file=%s", server->pid_file);
	nbd_spawn(server, argv);
}

static void qemu_nbd_with(const char *shared)
{
	struct memory m = { .npages = NPAGES };
	uint64_t seed = tap_seed();
	struct nbd_server server;
	char path[96];

	need_nbd("qemu-nbd");
	nbd_folder(&server);
	nbd_memory(&server, path, NPAGES, tap_rand(&seed), &m.bytes, &m.data);
	qemu_nbd(&server, path, shared);
	check_memory(&m, server.uri, NULL, true, tap_rand(&seed));
	nbd_end(&server);
	memory_free(&m);
}

TEST_TIMEOUT(qemu_nbds_file_is_what_the_file_is, 60)
{
	qemu_nbd_with("8");
}

TEST_TIMEOUT(a_server_that_takes_one_client_gets_one, 60)
{
	qemu_nbd_with("1");
}

TEST_TIMEOUT(a_server_that_takes_fewer_clients_than_wanted_gets_fewer, 60)
{
	qemu_nbd_with("2");
}

TEST(a_pattern_and_its_sparse_zeros_come_over)
{
	struct nbd_server server;
	struct gmem_source *s;
	uint8_t got[4 * PAGE];
	uint64_t want;

	need_nbd("nbdkit");
	nbd_folder(&server);
	/* Each 8 bytes hold their offset, most significant byte first. */
	nbdkit(&server, "pattern", "1T", NULL);
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	CHECK_EQ(gmem_source_len(s), 1ll << 40);
	for (uint64_t off = PAGE; off < UINT64_C(1) << 40; off = off * 3 / PAGE * PAGE) {
		if (off + sizeof(got) > UINT64_C(1) << 40)
			break;
		CHECK_OK(gmem_source_read(s, off, got, sizeof(got)));
		for (size_t i = 0; i < sizeof(got); i += 8) {
			memcpy(&want, got + i, 8);
			CHECK_EQ(__builtin_bswap64(want), off + i);
		}
		CHECK(!gmem_source_is_zero(s, off, PAGE, false));
	}
	gmem_source_unref(s);
	nbd_kill(&server);
	/* 1 GiB with one byte at 64 MiB + 5 and one at the end of the first page. */
	nbdkit(&server, "data", "data=@4095 1 @67108869 2", "size=1G", "allocator=sparse", NULL);
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	CHECK_OK(gmem_source_read(s, 64 << 20, got, PAGE));
	CHECK(got[5] == 2 && got[4] == 0);
	CHECK(!gmem_source_is_zero(s, 64 << 20, PAGE, false));
	CHECK(!gmem_source_is_zero(s, 0, PAGE, false));
	CHECK(gmem_source_is_zero(s, 512 << 20, PAGE, false));
	CHECK(gmem_source_is_zero(s, (1 << 30) - PAGE, PAGE, false));
	CHECK(!gmem_source_is_zero(s, 1 << 30, PAGE, false));
	gmem_source_unref(s);
	nbd_end(&server);
}

TEST(a_hole_that_is_not_said_to_be_zero_is_read)
{
	struct nbd_server server;
	struct gmem_source *s;
	uint8_t got[PAGE];

	need_nbd("nbdkit");
	nbd_folder(&server);
	/* The first pages are said to be a hole, the others zeros, with a page of which a half is not. */
	nbdkit(&server, "eval", "get_size=echo 65536", "pread=head -c $3 /dev/zero | tr '\\0' x",
	       "extents=echo 0 16384 hole; echo 16384 6144 zero; echo 22528 10240 hole,zero; echo 32768 2048; "
	       "echo 34816 30720 hole,zero",
	       NULL);
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	for (uint64_t i = 0; i < 16; i++)
		CHECK_EQ(gmem_source_is_zero(s, i * PAGE, PAGE, false), i >= 4 && i != 8);
	CHECK(gmem_source_is_zero(s, 4 * PAGE, 4 * PAGE, true));
	CHECK(!gmem_source_is_zero(s, 4 * PAGE, 5 * PAGE, true));
	CHECK_OK(gmem_source_read(s, 0, got, PAGE));
	CHECK(got[0] == 'x' && got[PAGE - 1] == 'x');
	gmem_source_unref(s);
	nbd_end(&server);
}

TEST(a_server_without_words_for_zeros_is_read)
{
	struct memory m = { .npages = 100 };
	uint64_t seed = tap_seed();
	struct nbd_server server;
	char path[96];

	need_nbd("nbdkit");
	nbd_folder(&server);
	nbd_memory(&server, path, 100, tap_rand(&seed), &m.bytes, &m.data);
	/* It has none; it has them, and fails. */
	for (int fails = 0; fails < 2; fails++) {
		if (fails)
			nbdkit(&server, "--filter=error", "file", path, "error-extents-rate=100%", NULL);
		else
			nbdkit(&server, "--no-sr", "file", path, NULL);
		CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &m.s));
		for (uint64_t i = 0; i < 100; i++)
			CHECK(!gmem_source_is_zero(m.s, i * PAGE, PAGE, i % 2));
		read_at_once(&m, tap_rand(&seed), 2, 20);
		gmem_source_unref(m.s);
		nbd_kill(&server);
	}
	nbd_end(&server);
	memory_free(&m);
}

TEST(an_export_may_end_within_a_page)
{
	struct nbd_server server;
	uint64_t start, len;
	struct gmem_source *s;
	uint8_t got[2 * PAGE];

	need_nbd("nbdkit");
	nbd_folder(&server);
	nbdkit(&server, "pattern", "43008", NULL); /* 10.5 pages */
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	CHECK_EQ(gmem_source_len(s), 43008);
	CHECK_OK(gmem_source_read(s, 9 * PAGE, got, PAGE));
	CHECK_ERR(gmem_source_read(s, 10 * PAGE, got, PAGE), -ENODATA);
	CHECK_ERR(gmem_source_read(s, 9 * PAGE, got, 2 * PAGE), -ENODATA);
	CHECK_HAS(gmem_last_error(), "the export has 0xa800 bytes");
	start = 3 * PAGE;
	len = PAGE;
	gmem_source_extent(s, &start, &len);
	CHECK(start == 0 && len == 10 * PAGE);
	start = 10 * PAGE;
	len = PAGE;
	gmem_source_extent(s, &start, &len);
	CHECK(start == 10 * PAGE && len == PAGE);
	gmem_source_unref(s);
	nbd_end(&server);
}

TEST_TIMEOUT(tls_by_a_shared_key, 60)
{
	struct gmem_nbd_opts opts = { .size = sizeof(opts), .timeout_ms = 20000 };
	struct memory m = { .npages = 200 };
	char path[96], key[96], psk[128], uri[400];
	uint8_t got[PAGE];
	uint64_t seed = tap_seed();
	struct nbd_server server;
	struct gmem_source *s;
	FILE *f;

	need_nbd("nbdkit");
	if (system("nbdkit --dump-config | grep -q '^tls=yes'") != 0)
		SKIP("nbd", "nbdkit has no TLS");
	nbd_folder(&server);
	nbd_memory(&server, path, 200, tap_rand(&seed), &m.bytes, &m.data);
	snprintf(key, sizeof(key), "%s/keys", server.folder);
	f = fopen(key, "we");
	CHECK(f && fputs("vmm:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n", f) >= 0);
	CHECK(fclose(f) == 0);
	snprintf(psk, sizeof(psk), "--tls-psk=%s", key);
	nbdkit(&server, "--tls=require", psk, "file", path, NULL);
	snprintf(uri, sizeof(uri), "nbds+unix://vmm@/?socket=%s&tls-psk-file=%s", server.socket, key);
	check_memory(&m, uri, &opts, true, tap_rand(&seed));
	/* A connection that has broken is no signal. */
	CHECK_OK(gmem_source_new_nbd(uri, &opts, &m.s));
	read_at_once(&m, tap_rand(&seed), 2, 5);
	nbd_kill(&server);
	for (int i = 0; i < 5; i++)
		CHECK(gmem_source_read(m.s, 0, got, PAGE) < 0);
	nbdkit(&server, "--tls=require", psk, "file", path, NULL);
	while (gmem_source_read(m.s, 0, got, PAGE) < 0)
		nbd_pause_ms(1);
	CHECK_MEM(got, m.bytes, PAGE);
	gmem_source_unref(m.s);
	/* In the clear it says nothing. */
	CHECK(gmem_source_new_nbd(server.uri, &opts, &s) < 0);
	CHECK_HAS(gmem_last_error(), "gmem_source_new_nbd: nbd+unix:");
	/* And a server without TLS is not taken for one with. */
	nbd_kill(&server);
	nbdkit(&server, "file", path, NULL);
	CHECK(gmem_source_new_nbd(uri, &opts, &s) < 0);
	nbd_end(&server);
	memory_free(&m);
}

TEST(what_cannot_serve_is_refused)
{
	struct gmem_nbd_opts opts = { .size = sizeof(opts), .connections = 65 }, quick = { .size = sizeof(quick) };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct nbd_server server;
	uint8_t *got = malloc(100 * PAGE);
	struct gmem_source *s;
	int fd;

	need_nbd("nbdkit");
	nbd_folder(&server);
	CHECK_ERR(gmem_source_new_nbd(server.uri, NULL, &s), -ENOENT);
	CHECK_HAS(gmem_last_error(), server.uri);
	CHECK_ERR(gmem_source_new_nbd("http://host/", NULL, &s), -EINVAL);
	CHECK_ERR(gmem_source_new_nbd("", NULL, &s), -EINVAL);
	CHECK_ERR(gmem_source_new_nbd("nbd+unix:///", NULL, &s), -EINVAL);
	CHECK_ERR(gmem_source_new_nbd(server.uri, &opts, &s), -EINVAL);
	opts.size = 8;
	CHECK_ERR(gmem_source_new_nbd(server.uri, &opts, &s), -EINVAL);
	/* Somebody who listens and says nothing. */
	memcpy(addr.sun_path, server.socket, strlen(server.socket) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 8) == 0);
	quick.timeout_ms = 100;
	CHECK_ERR(gmem_source_new_nbd(server.uri, &quick, &s), -ETIMEDOUT);
	close(fd);
	CHECK_ERR(gmem_source_new_nbd(server.uri, NULL, &s), -ECONNREFUSED);
	nbdkit(&server, "--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=64K", "blocksize-preferred=64K",
	       NULL);
	CHECK_ERR(gmem_source_new_nbd(server.uri, NULL, &s), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "blocks of 65536 bytes");
	nbd_kill(&server);
	nbdkit(&server, "--filter=blocksize-policy", "pattern", "1M", "blocksize-minimum=4K", "blocksize-preferred=4K",
	       "blocksize-maximum=16K", "blocksize-error-policy=error", NULL);
	CHECK_OK(gmem_source_new_nbd(server.uri, NULL, &s));
	/* More than one command takes. */
	CHECK_OK(gmem_source_read(s, PAGE, got, 100 * PAGE));
	CHECK(got[99 * PAGE] == 0 && got[99 * PAGE + 5] == 100 * PAGE >> 16 && got[98 * PAGE + 7] == 0);
	free(got);
	gmem_source_unref(s);
	nbd_end(&server);
}
