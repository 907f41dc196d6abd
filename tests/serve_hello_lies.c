/* SPDX-License-Identifier: MIT */
/* First messages that are wrong, each in one way: refused with a reason, and nothing of them is kept. */
#include "tap.h"

#include <fcntl.h>
#include <jansson.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "serve_hello_util.h"
#include "sys/call.h"
#include "sys/kvm.h"

struct lie {
	enum fc_lie lie;
	int err;
	const char *text;
};

/* The lie's text, from a process, for it may be more than a socket holds. */
static int tell(struct scene *s, const struct fc_options *o, const int *fds, size_t nfds)
{
	int r = 0, status;
	pid_t pid = fork();

	if (!pid) {
		fc_send(s->client, o, s->text, s->len, fds, nfds);
		_exit(0);
	}
	while (!r) {
		usleep(100);
		r = gmem_hello_tick(s->hello);
	}
	shutdown(s->server, SHUT_RDWR);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	return r;
}

TEST(texts)
{
	static const struct lie lies[] = {
		{ FC_SIZE_ZERO, -EINVAL, "region 0: size 0x0 is not a multiple of 4096" },
		{ FC_UNALIGNED, -EINVAL, "base_host_virt_addr 0x7f0000000008 is not a multiple" },
		{ FC_SIZE_UNALIGNED, -EINVAL, "size 0xcfffffff is not a multiple" },
		{ FC_OFFSET_UNALIGNED, -EINVAL, "offset 0x200 is not a multiple" },
		{ FC_WRAPS, -EINVAL, "reach too far" },
		{ FC_NEGATIVE, -EINVAL, "\"size\" is not a number from 0 on" },
		{ FC_HUGE_NUMBER, -EPROTO, "no good JSON" },
		{ FC_FRACTION, -EINVAL, "\"size\" is not a number" },
		{ FC_STRING, -EINVAL, "\"size\" is not a number" },
		{ FC_OVERLAP, -EINVAL, "two regions overlap at base_host_virt_addr 0x7f00cffff000" },
		{ FC_OFFSETS_OVERLAP, -EINVAL, "two regions overlap at offset 0x0" },
		{ FC_NO_SIZE, -EINVAL, "no \"size\"" },
		{ FC_TWICE, -EPROTO, "no good JSON" },
		{ FC_PAGE_SIZES_DISAGREE, -EINVAL, "\"page_size_kib\", which is in bytes too, is 4" },
		{ FC_PAGE_SIZE_ODD, -EINVAL, "pages of 12345 bytes: there are 4096 and 2097152" },
		{ FC_PAGE_SIZES_MIXED, -EINVAL, "region 1: pages of 2097152 bytes, and of 4096 before" },
		{ FC_NO_REGIONS, -EPROTO, "no regions" },
		{ FC_MANY_REGIONS, -E2BIG, "1025 regions: at most 1024" },
		{ FC_NOT_OBJECTS, -EPROTO, "region 0: not a JSON object" },
		{ FC_NESTED, -E2BIG, "nested deeper than 16" },
		{ FC_MANY_VALUES, -E2BIG, "more than 65536 values" },
		{ FC_GARBAGE, -EPROTO, "begins with byte 0x47" },
		{ FC_BAD_JSON, -EPROTO, "no good JSON at byte" },
		{ FC_TOO_LONG, -E2BIG, "more than 1048576 bytes" },
	};

	CHECK_EQ(sizeof(lies) / sizeof(lies[0]), FC_FIRST_FD_LIE - 1);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct fc_options o = two_regions(FC_1_12);
		struct scene s;
		int r;

		o.lie = lies[i].lie;
		CHECK_EQ(o.lie, i + 1);
		begin(&s, &o);
		r = tell(&s, &o, &s.uffd, 1);
		if (r != lies[i].err || !strstr(gmem_last_error(), lies[i].text))
			FAIL("lie %zu: %d, \"%s\"", i, r, gmem_last_error());
		CHECK_ERR(gmem_hello_feed(s.hello), lies[i].err);
		CHECK_HAS(gmem_last_error(), lies[i].text);
		CHECK(!gmem_hello_message(s.hello));
		end(&s);
	}
}

TEST(descriptors)
{
	static const struct lie lies[] = {
		{ FC_NO_FD, 0, "" },
		{ FC_TWO_FDS, -EPROTO, "2 descriptors, more than 1" },
		{ FC_TEN_FDS, -EPROTO, "10 descriptors, more than 1" },
		{ FC_SIXTY_FDS, -E2BIG, "more than 34 descriptors" },
		{ FC_DEV_NULL, -EBADF, "descriptor 0 is no userfaultfd" },
		{ FC_MEMFD, -EBADF, "descriptor 0 is no userfaultfd" },
		{ FC_NO_API, -EBADF, "without UFFDIO_API" },
		{ FC_FORK_EVENTS, -EBADF, "EVENT_FORK" },
	};
	static const int counts[] = { 0, 2, 10, 60, 1, 1, 1, 1 };

	CHECK_EQ(sizeof(lies) / sizeof(lies[0]), FC_FIRST_DEED - FC_FIRST_FD_LIE);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct fc_options o = two_regions(FC_1_12);
		int fds[FC_MAX_FDS], fd = -1;
		struct scene s;

		begin(&s, &o);
		CHECK_EQ(lies[i].lie, FC_FIRST_FD_LIE + i);
		if (lies[i].lie == FC_DEV_NULL)
			fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		else if (lies[i].lie == FC_MEMFD)
			fd = memfd_create("lie", MFD_CLOEXEC);
		else if (lies[i].lie == FC_NO_API)
			fd = gmem_sys_userfaultfd(O_CLOEXEC | O_NONBLOCK);
		else if (lies[i].lie == FC_FORK_EVENTS)
			fd = fc_uffd(UFFD_FEATURE_EVENT_FORK, true);
		for (int k = 0; k < 60; k++)
			fds[k] = fd < 0 ? s.uffd : fd;
		CHECK(fc_send_part(s.client, s.text, s.len, fds, (size_t)counts[i]) > 0);
		if (lies[i].err)
			CHECK_ERR(gmem_hello_feed(s.hello), lies[i].err);
		else
			CHECK_EQ(gmem_hello_feed(s.hello), 0);
		CHECK_HAS(gmem_last_error(), lies[i].text);
		if (fd >= 0)
			close(fd);
		end(&s);
	}
}

/* A file's name may be that of a userfaultfd, or of a guest_memfd; the kernel's words for those are no path. */
TEST(files_with_the_names_of_others)
{
	static const char *const names[] = { "anon_inode:[userfaultfd]", "anon_inode:[kvm-gmem]", "[kvm-gmem]" };
	struct fc_options o = two_regions(FC_1_12);
	char folder[] = "/tmp/gmem-names-XXXXXX";

	CHECK(mkdtemp(folder));
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char path[128];
		struct scene s;
		int fds[3];

		snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
		fds[1] = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		CHECK(fds[1] >= 0);
		begin(&s, &o);
		fds[0] = i ? s.uffd : fds[1];
		fds[2] = fds[1];
		CHECK(fc_send_part(s.client, s.text, s.len, fds, i ? 3 : 1) > 0);
		CHECK_ERR(gmem_hello_feed(s.hello), -EBADF);
		CHECK_HAS(gmem_last_error(), i ? "descriptor 1 is no guest_memfd" : "is no userfaultfd");
		close(fds[1]);
		unlink(path);
		end(&s);
	}
	rmdir(folder);
}

/* ---- With a guest_memfd. */

/* One of 64 MiB, and of KVM a descriptor that it needs. */
static int guest_memfd(int *ret_vm)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), fd;
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_KERNEL };
	struct gmem_file *file;

	*ret_vm = -1;
	if (kvm < 0)
		SKIP("kvm", "/dev/kvm: %s", strerror(errno));
	close(kvm);
	if (gmem_file_create(64 << 20, &o, &file))
		SKIP("kvm", "%s", gmem_last_error());
	fd = fcntl(gmem_file_fd(file), F_DUPFD_CLOEXEC, 0);
	CHECK(fd >= 0);
	gmem_file_free(file);
	return fd;
}

TEST(with_a_guest_memfd)
{
	struct fc_options o = { .version = FC_GUEST_MEMFD, .sizes = { 48 << 20, 16 << 20 } };
	int vm, fds[4] = { -1, guest_memfd(&vm), memfd_create("bitmap", MFD_CLOEXEC), -1 };
	struct scene s;

	CHECK_EQ(ftruncate(fds[2], 64 << 20 >> 12 >> 3), 0);
	fds[3] = fds[2];
	for (int saying = 0; saying < 2; saying++) {
		for (size_t nfds = 1; nfds <= 4; nfds++) {
			const struct gmem_hello_message *m;
			int r;

			/* Its text has not always said so. */
			o.version = saying ? FC_GUEST_MEMFD : FC_1_12;
			begin(&s, &o);
			fds[0] = s.uffd;
			CHECK(fc_send_part(s.client, s.text, s.len, fds, nfds) > 0);
			r = gmem_hello_feed(s.hello);
			m = gmem_hello_message(s.hello);
			if (nfds == 4 || (!saying && nfds == 2)) {
				CHECK_EQ(r, -EPROTO);
			} else if (saying && nfds == 1) {
				CHECK_EQ(r, 0);
				CHECK_STR(gmem_hello_missing(s.hello), "not all of its descriptors have come");
			} else {
				CHECK_EQ(r, 1);
				CHECK_EQ(m->kind, nfds == 1 ? GMEM_HELLO_FIRECRACKER : GMEM_HELLO_GUEST_MEMFD);
				CHECK_EQ(m->memory_fd >= 0, nfds > 1);
				CHECK_EQ(m->bitmap_fd >= 0, nfds > 2);
				CHECK_EQ(m->regions[1].gpa, saying ? 816 << 20 : 0);
				CHECK_EQ(m->regions[1].file_off, 48 << 20);
			}
			end(&s);
		}
	}
	/* In the wrong order; a bitmap that is too short. */
	o.version = FC_GUEST_MEMFD;
	begin(&s, &o);
	CHECK(fc_send_part(s.client, s.text, s.len, (int[]){ s.uffd, fds[2], fds[1] }, 3) > 0);
	CHECK_ERR(gmem_hello_feed(s.hello), -EBADF);
	end(&s);
	CHECK_EQ(ftruncate(fds[2], (64 << 20 >> 12 >> 3) - 1), 0);
	begin(&s, &o);
	CHECK(fc_send_part(s.client, s.text, s.len, (int[]){ s.uffd, fds[1], fds[2] }, 3) > 0);
	CHECK_ERR(gmem_hello_feed(s.hello), -EBADF);
	CHECK_HAS(gmem_last_error(), "the userfault bitmap has 2047 bytes, not 2048");
	end(&s);
	close(fds[1]);
	close(fds[2]);
}

/* What it says of some, it must say of all. */
TEST(a_guest_memfd_of_some)
{
	static const char text[] =
		"[{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":0,\"is_guest_memfd\":true},"
		"{\"base_host_virt_addr\":8192,\"size\":4096,\"offset\":4096,\"is_guest_memfd\":false}]";
	struct gmem_hello_message *m;

	CHECK_ERR(gmem_hello_parse(text, sizeof(text) - 1, NULL, 0, &m), -EINVAL);
	CHECK_HAS(gmem_last_error(), "some regions are of a guest_memfd and some are not");
}

/* ---- gmem's own attach. */

struct attach {
	int fds[GMEM_HELLO_MAX_FDS];
	struct gmem_file *file;
};

static void attach_begin(struct attach *a, size_t nuffds)
{
	CHECK_OK(gmem_file_create(16 << 20, NULL, &a->file));
	for (size_t i = 0; i < nuffds; i++) {
		a->fds[i] = fc_uffd(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, true);
		if (a->fds[i] < 0)
			SKIP("uffd", "userfaultfd: %s", strerror(-a->fds[i]));
	}
	a->fds[nuffds] = fcntl(gmem_file_fd(a->file), F_DUPFD_CLOEXEC, 0);
	a->fds[nuffds + 1] = fcntl(gmem_file_state_fd(a->file), F_DUPFD_CLOEXEC, 0);
}

static void attach_end(struct attach *a, size_t nfds)
{
	for (size_t i = 0; i < nfds; i++)
		close(a->fds[i]);
	gmem_file_free(a->file);
}

#define REGION(hva, size, off, file_off, uffd)                                                                \
	"{\"base_host_virt_addr\":" #hva ",\"size\":" #size ",\"offset\":" #off ",\"file_offset\":" #file_off \
	",\"uffd\":" #uffd "}"

static int parse(const char *text, const struct attach *a, size_t nfds, struct gmem_hello_message **ret)
{
	return gmem_hello_parse(text, strlen(text), a->fds, nfds, ret);
}

TEST(attach_with_two_descriptors)
{
	static const char text[] =
		"{\"gmem\":1,\"source\":\"disk-7\",\"name\":\"vm 7\",\"else\":{\"a\":[null]},\"regions\":[" REGION(
			0x0, 0, 0, 0, 0) "]}";
	static const char good[] =
		"{\"gmem\":1,\"source\":\"disk-7\",\"name\":\"vm 7\",\"else\":{\"a\":[null]},\"regions\":[" REGION(
			1048576, 4194304, 8388608, 4194304, 1) "," REGION(8388608, 4194304, 4194304, 0, 0) ","
		/* The same bytes once more, at another address. */
		REGION(16777216, 4194304, 6291456, 2097152, 0) "]}";
	struct gmem_hello_message *m;
	int fds[GMEM_HELLO_MAX_FDS];
	struct attach a;

	attach_begin(&a, 2);
	CHECK_ERR(parse(text, &a, 4, &m), -EPROTO);
	CHECK_OK(parse(good, &a, 4, &m));
	CHECK_EQ(m->kind, GMEM_HELLO_ATTACH);
	CHECK_STR(m->source, "disk-7");
	CHECK_STR(m->name, "vm 7");
	CHECK_EQ(m->nregions, 3);
	CHECK_EQ(m->nuffds, 2);
	CHECK_EQ(m->uffds[1], a.fds[1]);
	CHECK_EQ(m->memory_fd, a.fds[2]);
	CHECK_EQ(m->state_fd, a.fds[3]);
	CHECK_EQ(m->regions[0].uffd, 1);
	CHECK_EQ(m->regions[0].file_off, 4194304);
	CHECK_EQ(m->source_end, 12582912);
	CHECK_EQ(gmem_hello_fds(m, fds), 4);
	CHECK_MEM(fds, a.fds, 4 * sizeof(int));
	CHECK_EQ(m->pidfd, -1);
	gmem_hello_message_free(m);
	CHECK_EQ(fcntl(a.fds[0], F_GETFD), -1);
	gmem_file_free(a.file);
}

TEST(attach_that_is_wrong)
{
	static const struct {
		const char *text;
		int err;
		const char *why;
	} cases[] = {
		{ "{}", -EINVAL, "no \"gmem\"" },
		{ "{\"gmem\":2}", -EPROTO, "version 2 of the protocol" },
		{ "{\"gmem\":1}", -EPROTO, "no regions" },
		{ "{\"gmem\":1,\"regions\":{}}", -EPROTO, "no regions" },
		{ "{\"gmem\":1,\"source\":7}", -EINVAL, "\"source\" is not a string" },
		{ "{\"gmem\":1,\"source\":\"a\\nb\"}", -EINVAL, "not printable" },
		{ "{\"gmem\":1,\"name\":\"\\u00e4\"}", -EINVAL, "not printable" },
		{ "{\"gmem\":1,\"name\":\"a\\u0000b\"}", -EPROTO, "no good JSON" },
		{ "{\"gmem\":1,\"user_mode_only\":1}", -EINVAL, "user_mode_only" },
		{ "{\"gmem\":1,\"regions\":[{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":0}]}", -EINVAL,
		  "no \"file_offset\"" },
		{ "{\"gmem\":1,\"regions\":[" REGION(4096, 4096, 0, 0, 1) "]}", -EINVAL,
		  "no region has userfault descriptor 0 of 2" },
		{ "{\"gmem\":1,\"regions\":[" REGION(4096, 4096, 0, 0, 32) "]}", -E2BIG, "at most 32 userfault" },
		{ "{\"gmem\":1,\"regions\":[" REGION(4096, 4096, 0, 1, 0) "]}", -EINVAL, "file_offset 0x1" },
		{ "{\"gmem\":1,\"regions\":[" REGION(4096, 8192, 0, 0, 0) "," REGION(8192, 4096, 8192, 8192, 0) "]}",
		  -EINVAL, "overlap at base_host_virt_addr 0x2000" },
		/* One byte of the file from two places of the source, and the other way round. */
		{ "{\"gmem\":1,\"regions\":[" REGION(4096, 8192, 0, 0, 0) "," REGION(65536, 4096, 8192, 4096, 0) "]}",
		  -EINVAL, "overlap at file_offset 0x1000" },
		{ "{\"gmem\":1,\"regions\":[" REGION(4096, 8192, 0, 0, 0) "," REGION(65536, 4096, 4096, 8192, 0) "]}",
		  -EINVAL, "overlap at offset 0x1000" },
		{ "{\"gmem\":1,\"regions\":[" REGION(4096, 4096, 0, 16777216, 0) "]}", -EBADF,
		  "the memory file has 16777216 bytes, not 16781312" },
	};
	struct gmem_hello_message *m;
	struct attach a;

	attach_begin(&a, 1);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int err = parse(cases[i].text, &a, 3, &m);

		if (err != cases[i].err || !strstr(gmem_last_error(), cases[i].why))
			FAIL("case %zu: %d, \"%s\"", i, err, gmem_last_error());
	}
	attach_end(&a, 3);
}

TEST(attach_with_the_wrong_descriptors)
{
	static const char text[] = "{\"gmem\":1,\"regions\":[" REGION(4096, 4096, 0, 0, 0) "]}";
	int loose = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int plain = fc_uffd(0, true);
	struct gmem_hello_message *m;
	struct attach a, b;

	attach_begin(&a, 1);
	CHECK_ERR(parse(text, &a, 2, &m), -EPROTO);
	CHECK_ERR(parse(text, &a, 4, &m), -EPROTO);
	b = a;
	b.fds[0] = plain;
	CHECK_ERR(parse(text, &b, 3, &m), -EBADF);
	CHECK_HAS(gmem_last_error(), "without what memory files need");
	b = a;
	b.fds[1] = loose;
	CHECK_EQ(ftruncate(loose, 16 << 20), 0);
	CHECK_ERR(parse(text, &b, 3, &m), -EBADF);
	CHECK_HAS(gmem_last_error(), "the memory file is not sealed");
	b = a;
	b.fds[2] = a.fds[0];
	CHECK_ERR(parse(text, &b, 3, &m), -EBADF);
	CHECK_HAS(gmem_last_error(), "the page-state table is no memory file");
	close(loose);
	close(plain);
	CHECK_OK(parse(text, &a, 3, &m));
	gmem_hello_message_free(m);
	gmem_file_free(a.file);
}

TEST(answers)
{
	static const char text[] = "{\"gmem\":2}";
	struct fc_options o = two_regions(FC_1_12);
	struct scene s;
	char buf[4096];
	json_t *root;
	ssize_t n;

	begin(&s, &o);
	CHECK(fc_send_part(s.client, text, strlen(text), NULL, 0) > 0);
	CHECK_ERR(gmem_hello_feed(s.hello), -EPROTO);
	CHECK_OK(gmem_hello_answer(s.hello, -EPROTO, "one\ntwo \"\xff\\"));
	n = recv(s.client, buf, sizeof(buf), 0);
	CHECK(n > 0 && buf[n - 1] == '\n');
	root = json_loadb(buf, (size_t)n, 0, NULL);
	CHECK(root && json_is_false(json_object_get(root, "ok")));
	CHECK_EQ(json_integer_value(json_object_get(root, "error")), EPROTO);
	CHECK_STR(json_string_value(json_object_get(root, "text")), "one?two \"?\\");
	json_decref(root);
	CHECK_OK(gmem_hello_answer(s.hello, 0, NULL));
	n = recv(s.client, buf, sizeof(buf), 0);
	root = json_loadb(buf, (size_t)n, 0, NULL);
	CHECK(root && json_is_true(json_object_get(root, "ok")));
	json_decref(root);
	end(&s);
	/* Firecracker does not listen, and who has said nothing may be one. */
	begin(&s, &o);
	CHECK_OK(gmem_hello_answer(s.hello, -EPROTO, "no"));
	CHECK(fc_send(s.client, &o, s.text, s.len, &s.uffd, 1));
	CHECK_EQ(gmem_hello_feed(s.hello), 1);
	CHECK_OK(gmem_hello_answer(s.hello, 0, NULL));
	CHECK_EQ(left_in(s.client), 0);
	end(&s);
}

TEST(sockets_of_other_kinds)
{
	struct gmem_hello *h;
	int pair[2], fd = memfd_create("no socket", MFD_CLOEXEC);

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	CHECK_ERR(gmem_hello_new(pair[0], &h), -EINVAL);
	CHECK_ERR(gmem_hello_new(fd, &h), -ENOTSOCK);
	close(pair[0]);
	close(pair[1]);
	close(fd);
	gmem_hello_free(NULL);
	gmem_hello_message_free(NULL);
}
