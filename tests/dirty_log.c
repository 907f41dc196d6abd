/* SPDX-License-Identifier: MIT */
/* The log of what a guest writes: no page that was written after it was read is taken for a good one. */
#include "link/migrate/dirty_log.h"
#include "tap.h"
#include "vm_util.h"

#define PAGE 4096u
#define RAM_MIB 64u
#define NPAGES (RAM_MIB * 256u)

/* Counts in two words of each page from 0x10000 to 0x8ffff, without end. */
static const unsigned char writer[] = {
	0xfa, /* cli */
	0xb8, 0x00, 0x10, /* ax = 0x1000 */
	0x8e, 0xd8, 0x31, 0xff, /* ds = ax; di = 0 */
	0xff, 0x05, 0x81, 0xc7, 0x00, 0x08, 0x75, 0xf8, /* [di]++; di += 0x800; until 0 */
	0x05, 0x00, 0x10, 0x3d, 0x00, 0x90, 0x75, 0xec, /* ax += 0x1000; until 0x9000 */
	0xeb, 0xe7, /* from the start */
};

/* What somebody who reads the memory while the guest runs has of it. */
struct shadow {
	char *bytes;
	unsigned char valid[NPAGES];
	unsigned int again, last; /* pages read again; told after the end */
	bool ended;
};

struct scene {
	struct vm vm;
	struct gmem_qmp *qmp;
	struct gmem_ram *ram;
	struct gmem_device_state state;
	struct gmem_dirty_log *log;
	struct shadow *shadow;
};

static void read_page(struct scene *s, uint64_t page)
{
	const struct gmem_ram_backend *b = &s->ram->backends[0];

	CHECK_EQ(pread(b->fd, s->shadow->bytes + page * PAGE, PAGE, (off_t)(b->off + page * PAGE)), (ssize_t)PAGE);
	s->shadow->valid[page] = 1;
}

static int on_dirty(void *opaque, size_t backend, uint64_t off, uint64_t npages, const void *bitmap)
{
	const unsigned char *bits = bitmap;
	struct scene *s = opaque;

	CHECK_EQ(backend, 0u);
	CHECK_EQ(off % (8 * PAGE), 0u);
	CHECK(off / PAGE + npages <= NPAGES);
	for (uint64_t i = 0; i < npages; i++) {
		if (!(bits[i / 8] >> i % 8 & 1))
			continue;
		if (s->shadow->ended) {
			s->shadow->valid[off / PAGE + i] = 0;
			s->shadow->last++;
		} else {
			read_page(s, off / PAGE + i);
			s->shadow->again++;
		}
	}
	return 0;
}

static void begin(struct scene *s, const char *options)
{
	unsigned char sector[512] = { 0 };

	vm_folder(&s->vm);
	memcpy(sector, writer, sizeof(writer));
	sector[510] = 0x55;
	sector[511] = 0xaa;
	vm_file(&s->vm, "boot.img", sector, sizeof(sector), 1474560);
	vm_start(&s->vm, true, options);
	s->qmp = vm_qmp(&s->vm);
	CHECK_OK(gmem_ram_find(s->qmp, s->vm.pid, &s->ram));
	CHECK_EQ(s->ram->n, 1u);
	s->shadow = calloc(1, sizeof(*s->shadow));
	s->shadow->bytes = malloc((size_t)NPAGES * PAGE);
}

static uint16_t word_at(const struct scene *s, off_t off)
{
	uint16_t word;

	CHECK_EQ(pread(s->ram->backends[0].fd, &word, 2, (off_t)s->ram->backends[0].off + off), 2);
	return word;
}

/* There are KVMs that emulate the firmware so slowly that it gives up on its floppy: with or without gmem. */
static void wait_boot(struct scene *s)
{
	for (int i = 0; i < 6000; i++) {
		if (word_at(s, 0x50800))
			return;
		vm_sleep_ms(10);
	}
	vm_folder_remove(&s->vm);
	SKIP("kvm", "this KVM does not boot a floppy within 60 s; to run it: a machine that is less busy");
}

static void wait_writes(const struct scene *s)
{
	uint16_t first = word_at(s, 0x50800);

	for (int i = 0; i < 20000 && word_at(s, 0x50800) == first; i++)
		vm_sleep_ms(10);
	CHECK(word_at(s, 0x50800) != first);
}

static void end(struct scene *s)
{
	gmem_device_state_clear(&s->state);
	gmem_ram_free(s->ram);
	gmem_qmp_close(s->qmp);
	free(s->shadow->bytes);
	free(s->shadow);
	vm_folder_remove(&s->vm);
}

/* The bytes of every page that is called good are those of the memory now. */
static void compare(struct scene *s)
{
	char *now = malloc(PAGE);

	for (unsigned int i = 0; i < NPAGES; i++) {
		const struct gmem_ram_backend *b = &s->ram->backends[0];

		CHECK_EQ(pread(b->fd, now, PAGE, (off_t)(b->off + (uint64_t)i * PAGE)), (ssize_t)PAGE);
		if (s->shadow->valid[i])
			CHECK_MEM(s->shadow->bytes + (size_t)i * PAGE, now, PAGE);
	}
	free(now);
}

static void check_machine_goes_on(struct scene *s)
{
	CHECK_OK(gmem_device_state_resume(s->qmp, &s->state, NULL));
	vm_check_status(s->qmp, "running");
	wait_writes(s);
}

static void need_kvm(void)
{
	if (access("/dev/kvm", R_OK | W_OK))
		SKIP("kvm", "/dev/kvm cannot be opened; to run it: join the group kvm");
}

static void never_misses(const char *options, unsigned int rounds)
{
	unsigned int done = 0;
	struct scene s = { 0 };
	void *state = NULL;
	size_t len = 0;

	need_kvm();
	begin(&s, options);
	wait_boot(&s);
	wait_writes(&s);
	CHECK_OK(gmem_dirty_log_start(s.qmp, s.ram, &s.state, &s.log));
	for (unsigned int i = 0; i < NPAGES; i++)
		read_page(&s, i);
	while (done < rounds && !gmem_dirty_log_ended(s.log)) {
		/* A slow link: the guest writes meanwhile. */
		vm_sleep_ms(30);
		CHECK(gmem_dirty_log_wait(s.log, 20) >= 0);
		CHECK_OK(gmem_dirty_log_take(s.log, on_dirty, &s));
		CHECK_OK(gmem_dirty_log_rounds(s.log, &done));
	}
	CHECK_OK(gmem_dirty_log_stop(s.log, &state, &len));
	s.shadow->ended = true;
	CHECK_OK(gmem_dirty_log_take(s.log, on_dirty, &s));
	gmem_dirty_log_free(s.log);
	/* The stream without the pages is that of a small machine. */
	CHECK(len > 1000 && len < 4u << 20);
	printf("# %u rounds, %u pages again, %u told at the end, %zu bytes of state\n", done, s.shadow->again,
	       s.shadow->last, len);
	CHECK(s.shadow->again + s.shadow->last > 0);
	compare(&s);
	check_machine_goes_on(&s);
	free(state);
	end(&s);
}

TEST_TIMEOUT(what_is_written_while_pages_are_read_is_told, 400)
{
	never_misses("-m 64 -accel kvm", 1);
}

TEST_TIMEOUT(so_it_is_after_many_rounds, 400)
{
	never_misses("-m 64 -accel kvm", 8);
}

TEST_TIMEOUT(so_it_is_with_a_display_and_flash_beside_ram, 400)
{
	never_misses("-m 64 -accel kvm -vga std", 3);
}

/* An emulated CPU writes after it has logged that it will. */
TEST_TIMEOUT(an_emulated_cpu_is_refused, 60)
{
	struct scene s = { 0 };

	begin(&s, "-m 64 -accel tcg");
	CHECK_EQ(gmem_dirty_log_start(s.qmp, s.ram, &s.state, &s.log), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "without pre-copy");
	vm_check_status(s.qmp, "running");
	end(&s);
}

/* The state that is left is one that a QEMU takes, with the memory brought there by other ways. */
TEST_TIMEOUT(the_rest_of_the_stream_is_a_machine, 400)
{
	struct gmem_saved *saved = NULL;
	struct gmem_cmdline *cl = NULL;
	struct scene s = { 0 };
	struct gmem_qmp *qmp;
	void *state = NULL;
	size_t len = 0;
	int listener;

	need_kvm();
	/* With a display whose memory QEMU has in the stream. */
	begin(&s, "-m 64 -accel kvm -vga std");
	wait_boot(&s);
	wait_writes(&s);
	CHECK_OK(gmem_saved_collect(s.qmp, s.vm.pid, &saved));
	CHECK_OK(gmem_saved_add_backend(saved, s.ram->backends[0].id, s.ram->backends[0].size,
					s.ram->backends[0].canonical));
	CHECK_OK(gmem_dirty_log_start(s.qmp, s.ram, &s.state, &s.log));
	CHECK_OK(gmem_dirty_log_stop(s.log, &state, &len));
	gmem_dirty_log_free(s.log);
	gmem_qmp_close(s.qmp);
	vm_kill(&s.vm);

	listener = vm_listen(vm_path(&s.vm, "private"));
	CHECK_OK(gmem_qemu_restore_cmdline(saved, NULL, &s.ram->backends[0].fd, listener, &cl));
	s.vm.pid = fork();
	if (!s.vm.pid) {
		char **argv = gmem_cmdline_argv(cl), name[64];
		int fd;

		/* Its own descriptor cannot write. */
		snprintf(name, sizeof(name), "/proc/self/fd/%d", s.ram->backends[0].fd);
		fd = open(name, O_RDWR);
		dup2(fd, s.ram->backends[0].fd);
		fcntl(listener, F_SETFD, 0);
		vm_redirect(&s.vm, "qemu.out");
		execvp(argv[0], argv);
		_exit(127);
	}
	close(listener);
	CHECK_OK(gmem_qmp_connect(vm_path(&s.vm, "private"), &qmp));
	CHECK_OK(gmem_device_state_load(qmp, state, len, false));
	vm_check_status(qmp, "paused");
	CHECK_OK(gmem_device_state_cont(qmp));
	wait_writes(&s);
	s.qmp = qmp;
	gmem_cmdline_free(cl);
	gmem_saved_free(saved);
	free(state);
	end(&s);
}

TEST_TIMEOUT(given_up_the_machine_goes_on, 400)
{
	struct scene s = { 0 };
	json_t *params;
	void *state;
	size_t len;

	need_kvm();
	begin(&s, "-m 64 -accel kvm");
	wait_boot(&s);
	wait_writes(&s);
	/* Nothing was taken; something was; the machine was stopped, and its state taken. */
	for (int i = 0; i < 3; i++) {
		CHECK_OK(gmem_dirty_log_start(s.qmp, s.ram, &s.state, &s.log));
		if (i) {
			CHECK_OK(gmem_dirty_log_take(s.log, on_dirty, &s));
			CHECK(gmem_dirty_log_wait(s.log, 50) >= 0);
		}
		if (i == 2) {
			CHECK_OK(gmem_dirty_log_stop(s.log, &state, &len));
			free(state);
		}
		gmem_dirty_log_free(s.log);
		check_machine_goes_on(&s);
		CHECK_OK(gmem_qmp_exec(s.qmp, "query-migrate-parameters", NULL, &params));
		CHECK_EQ(json_integer_value(json_object_get(params, "downtime-limit")), 300);
		json_decref(params);
	}
	end(&s);
}

/* QEMU dies: told, not waited for. */
TEST_TIMEOUT(a_machine_that_ends_ends_its_log, 400)
{
	struct scene s = { 0 };
	void *state;
	size_t len;

	need_kvm();
	begin(&s, "-m 64 -accel kvm");
	CHECK_OK(gmem_dirty_log_start(s.qmp, s.ram, &s.state, &s.log));
	vm_kill(&s.vm);
	CHECK(gmem_dirty_log_stop(s.log, &state, &len) < 0);
	gmem_dirty_log_free(s.log);
	end(&s);
}

#include "tap_main.h"
