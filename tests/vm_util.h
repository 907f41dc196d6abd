/* SPDX-License-Identifier: MIT */
/*
 * QEMUs for tests: TCG, no guest system, a boot sector that counts A to P on the serial port and lives in RAM.
 * Everything a case makes is in one folder, which vm_folder_remove() removes.
 */
#ifndef GMEM_TESTS_VM_UTIL_H
#define GMEM_TESTS_VM_UTIL_H

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "link/qemu.h"

#define VM_WORDS 64

struct vm {
	char dir[64];
	pid_t pid;
};

static inline void vm_sleep_ms(long ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

/* "DIR/name"; valid until the fourth call after it. */
static inline const char *vm_path(const struct vm *vm, const char *name)
{
	static char bufs[4][128];
	static unsigned int turn;
	char *buf = bufs[turn++ % 4];

	snprintf(buf, sizeof(bufs[0]), "%s/%s", vm->dir, name);
	return buf;
}

static inline const char *vm_gmem(void)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/gmem", getenv("GMEM_BUILD") ? getenv("GMEM_BUILD") : "build");
	return path;
}

static inline bool vm_in_path(const char *program)
{
	char path[PATH_MAX], *list = strdup(getenv("PATH") ?: ""), *save = NULL, *dir;
	bool found = false;

	for (dir = strtok_r(list, ":", &save); dir && !found; dir = strtok_r(NULL, ":", &save)) {
		snprintf(path, sizeof(path), "%s/%s", dir, program);
		found = !access(path, X_OK);
	}
	free(list);
	return found;
}

static inline void vm_file(const struct vm *vm, const char *name, const void *head, size_t head_len, off_t size)
{
	int fd = open(vm_path(vm, name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	CHECK_EQ(pwrite(fd, head, head_len, 0), (ssize_t)head_len);
	CHECK_EQ(ftruncate(fd, size), 0);
	close(fd);
}

/* A folder of its own, the boot floppy in it. Skips the case where there is no QEMU. */
static inline void vm_folder(struct vm *vm)
{
	static const unsigned char code[] = {
		0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x31, 0xdb, /* cli; ds = 0; bx = 0 */
		0x43, 0x88, 0xd8, 0x24, 0x0f, 0x04, 0x41, /* inc bx; al = 'A' + (bl & 15) */
		0xba, 0xf8, 0x03, 0xee, /* out 0x3f8, al */
		0xb9, 0xff, 0xff, 0x90, 0xe2, 0xfd, /* a pause */
		0x89, 0x1e, 0x00, 0x06, 0xeb, 0xe9, /* [0x600] = bx; again */
	};
	unsigned char sector[512] = { 0 };

	if (!vm_in_path("qemu-system-x86_64"))
		SKIP("qemu", "no qemu-system-x86_64; to run it: apt-get install qemu-system-x86");
	memset(vm, 0, sizeof(*vm));
	snprintf(vm->dir, sizeof(vm->dir), "/tmp/gmem-test-XXXXXX");
	CHECK(mkdtemp(vm->dir));
	memcpy(sector, code, sizeof(code));
	sector[510] = 0x55;
	sector[511] = 0xaa;
	vm_file(vm, "boot.img", sector, sizeof(sector), 1474560);
}

static inline void vm_kill(struct vm *vm)
{
	if (vm->pid > 0) {
		kill(vm->pid, SIGKILL);
		waitpid(vm->pid, NULL, 0);
	}
	vm->pid = 0;
}

static inline void vm_folder_remove(struct vm *vm)
{
	char line[128];

	vm_kill(vm);
	snprintf(line, sizeof(line), "rm -rf -- '%s'", vm->dir);
	CHECK_EQ(system(line), 0);
}

/* Splits at blanks; "@/" becomes the folder. The words are never freed: the case ends with its process. */
static inline size_t vm_words(const struct vm *vm, char **words, const char *text)
{
	size_t n = 0;

	while (*text) {
		size_t len = strcspn(text, " ");
		char *word = malloc(len + 512), *o = word;
		const char *s;

		for (s = text; s < text + len; s++) {
			if (*s == '@')
				o = stpcpy(o, vm->dir);
			else
				*o++ = *s;
		}
		*o = '\0';
		CHECK(n < VM_WORDS);
		words[n++] = word;
		text += len + strspn(text + len, " ");
	}
	words[n] = NULL;
	return n;
}

static inline void vm_redirect(const struct vm *vm, const char *name)
{
	int fd = open(vm_path(vm, name), O_WRONLY | O_CREAT | O_APPEND, 0600);

	dup2(fd, 1);
	dup2(fd, 2);
	close(fd);
}

/* Starts a program in the folder; what it prints goes to the file `out`. */
static inline pid_t vm_spawn(const struct vm *vm, const char *out, const char *text, rlim_t max_file)
{
	char *words[VM_WORDS + 1];
	pid_t pid;

	vm_words(vm, words, text);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		struct rlimit limit = { max_file, max_file };

		if (max_file) {
			signal(SIGXFSZ, SIG_IGN);
			setrlimit(RLIMIT_FSIZE, &limit);
		}
		vm_redirect(vm, out);
		if (chdir(vm->dir) == 0)
			execvp(words[0], words);
		_exit(127);
	}
	return pid;
}

/* Runs `gmem ...` to its end: its exit status; what it printed is in `out`. */
static inline int vm_run_gmem(const struct vm *vm, char out[4096], const char *text, rlim_t max_file)
{
	char line[8192];
	ssize_t n;
	int fd, status;

	snprintf(line, sizeof(line), "%s %s", vm_gmem(), text);
	unlink(vm_path(vm, "out"));
	CHECK(waitpid(vm_spawn(vm, "out", line, max_file), &status, 0) > 0);
	fd = open(vm_path(vm, "out"), O_RDONLY | O_CLOEXEC);
	n = read(fd, out, 4095);
	out[n < 0 ? 0 : n] = '\0';
	close(fd);
	printf("$ gmem %s\n%s", text, out);
	CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static inline bool vm_listens(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool yes;

	strcpy(sa.sun_path, path);
	yes = !connect(fd, (struct sockaddr *)&sa, sizeof(sa));
	close(fd);
	return yes;
}

/* Starts a machine with the common options and waits for its monitor, "@/qmp". */
static inline void vm_start(struct vm *vm, bool by_gmem, const char *options)
{
	char line[8192];
	int i;

	snprintf(line, sizeof(line),
		 "%s%sqemu-system-x86_64 -nodefaults -display none -serial file:@/serial "
		 "-drive file=@/boot.img,format=raw,if=floppy,readonly=on %s%s",
		 by_gmem ? vm_gmem() : "", by_gmem ? " run --qmp @/qmp -- " : "",
		 by_gmem ? "" : "-qmp unix:@/qmp,server=on,wait=off ", options);
	unlink(vm_path(vm, "qmp"));
	vm->pid = vm_spawn(vm, "qemu.out", line, 0);
	for (i = 0; i < 500 && !vm_listens(vm_path(vm, "qmp")); i++) {
		vm_sleep_ms(20);
		if (waitpid(vm->pid, NULL, WNOHANG) > 0)
			FAIL("QEMU did not start: %s", line);
	}
	CHECK(i < 500);
}

static inline struct gmem_qmp *vm_qmp(const struct vm *vm)
{
	struct gmem_qmp *qmp;

	CHECK_OK(gmem_qmp_connect(vm_path(vm, "qmp"), &qmp));
	return qmp;
}

/* A whole file of the folder, NUL-terminated; its length. */
static inline size_t vm_read(const struct vm *vm, const char *name, char *buf, size_t cap)
{
	int fd = open(vm_path(vm, name), O_RDONLY | O_CLOEXEC);
	size_t have = 0;
	ssize_t n;

	CHECK(fd >= 0);
	while (have < cap - 1 && (n = read(fd, buf + have, cap - 1 - have)) > 0)
		have += (size_t)n;
	buf[have] = '\0';
	close(fd);
	return have;
}

/* Waits until the guest has written `more` letters than `than`. */
static inline void vm_counts(const struct vm *vm, size_t than, size_t more)
{
	struct stat st = { .st_size = 0 };

	for (int i = 0; i < 1000; i++) {
		if (!stat(vm_path(vm, "serial"), &st) && (size_t)st.st_size >= than + more)
			return;
		vm_sleep_ms(10);
	}
	FAIL("the guest does not count: %lld letters", (long long)st.st_size);
}

/* Each letter follows the one before. */
static inline void vm_check_letters(const char *text, size_t n)
{
	for (size_t i = 1; i < n; i++)
		if (text[i] != 'A' + (text[i - 1] - 'A' + 1) % 16)
			FAIL("letter %zu is '%c' after '%c'", i, text[i], text[i - 1]);
}

static inline int vm_listen(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(sa.sun_path, path);
	unlink(path);
	CHECK_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_EQ(listen(fd, 4), 0);
	return fd;
}

/* Reads a whole image into new memory and starts a QEMU on it, not lazily: what gmem restore does otherwise. The
 * machine is paused. */
static inline struct gmem_qmp *vm_restore(struct vm *vm, const char *path, struct gmem_saved **ret_saved)
{
	struct gmem_cmdline *cl;
	struct gmem_image *image;
	struct gmem_saved *saved;
	struct gmem_qmp *qmp;
	int fds[8], listener;
	size_t len, i, k;
	void *data;

	CHECK_OK(gmem_image_open(path, &image));
	CHECK_OK(gmem_image_section(image, GMEM_SECTION_QEMU, &data, &len));
	CHECK_OK(gmem_saved_parse(data, len, &saved));
	free(data);
	CHECK(saved->nbackends <= 8);
	for (i = 0; i < saved->nbackends; i++) {
		struct gmem_image_region region = { .size = sizeof(region), .name = "" };
		uint64_t off;
		char *buf = malloc(1 << 20);

		for (k = 0; k < gmem_image_nregions(image); k++) {
			CHECK_OK(gmem_image_region(image, k, &region));
			if (!strcmp(region.name, saved->backends[i].region))
				break;
		}
		CHECK(k < gmem_image_nregions(image));
		CHECK_EQ(region.len, saved->backends[i].size);
		fds[i] = memfd_create("restored", 0);
		CHECK_EQ(ftruncate(fds[i], (off_t)region.len), 0);
		for (off = 0; off < region.len; off += 1 << 20) {
			CHECK_OK(gmem_image_read(image, k, off, buf, 1 << 20));
			CHECK_EQ(pwrite(fds[i], buf, 1 << 20, (off_t)off), 1 << 20);
		}
		free(buf);
	}
	listener = vm_listen(vm_path(vm, "private"));
	CHECK_OK(gmem_disks_check(saved));
	CHECK_OK(gmem_qemu_restore_cmdline(saved, NULL, fds, listener, &cl));
	CHECK_OK(gmem_disks_overlay(saved, cl));
	unlink(vm_path(vm, "serial"));
	vm->pid = fork();
	if (!vm->pid) {
		char **argv = gmem_cmdline_argv(cl);

		fcntl(listener, F_SETFD, 0);
		vm_redirect(vm, "qemu.out");
		if (!chdir(saved->cwd))
			execvp(argv[0], argv);
		_exit(127);
	}
	gmem_cmdline_free(cl);
	for (i = 0; i < saved->nbackends; i++)
		close(fds[i]);
	close(listener);
	CHECK_OK(gmem_qmp_connect(vm_path(vm, "private"), &qmp));
	CHECK_OK(gmem_saved_check(qmp, saved));
	CHECK_OK(gmem_image_section(image, GMEM_SECTION_STATE, &data, &len));
	CHECK_OK(gmem_device_state_load(qmp, data, len, true));
	free(data);
	gmem_image_close(image);
	if (ret_saved)
		*ret_saved = saved;
	else
		gmem_saved_free(saved);
	return qmp;
}

static inline void vm_check_status(struct gmem_qmp *qmp, const char *status)
{
	json_t *info;

	CHECK_OK(gmem_qmp_exec(qmp, "query-status", NULL, &info));
	CHECK_STR(json_string_value(json_object_get(info, "status")), status);
	json_decref(info);
}

#endif
