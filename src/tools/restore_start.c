/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/restore.h"

#define START_TIMEOUT_MS 30000

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

int restore_interrupted(void)
{
	return interrupted;
}

void restore_catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* How a child of ours ended, as a shell tells it. */
static int exit_code(const struct restore *r, pid_t pid, int status)
{
	if (pid < 0)
		return GMEM_UI_FAILED;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	if (!r->killed)
		gmem_ui_note("QEMU was ended by signal %d (%s)%s", WTERMSIG(status), strsignal(WTERMSIG(status)),
			     WTERMSIG(status) == SIGBUS ? ": it touched a page that is lost" : "");
	return 128 + WTERMSIG(status);
}

int restore_vm_status(struct restore *r, int timeout_ms)
{
	int status = 0;
	pid_t pid;

	if (!r->vm)
		return r->vm_status;
	if (r->process >= 0 && gmem_process_wait(r->process, timeout_ms) == -ETIMEDOUT)
		return -1;
	if (r->child) {
		do {
			pid = waitpid(r->vm, &status, 0);
		} while (pid < 0 && errno == EINTR);
		r->vm_status = exit_code(r, pid, status);
	}
	r->vm = 0;
	return r->vm_status;
}

/* ---- image and memory */

static int open_image(struct restore *r)
{
	void *data;
	size_t len;
	int err;

	if (gmem_image_open(r->path, &r->image))
		return gmem_ui_fail_last();
	if (gmem_image_section(r->image, GMEM_SECTION_QEMU, &data, &len))
		return gmem_ui_fail("%s; this image was not saved from a QEMU", gmem_last_error());
	err = gmem_saved_parse(data, len, &r->saved);
	free(data);
	if (err || (!r->incoming && gmem_disks_check(r->saved)))
		return gmem_ui_fail_last();
	if (r->saved->nbackends > GMEM_RESTORE_MAX_FILES)
		return gmem_ui_fail("%s: %zu memory backends, this gmem knows %d", r->path, r->saved->nbackends,
				    GMEM_RESTORE_MAX_FILES);
	return 0;
}

int restore_find_region(const struct restore *r, const struct gmem_saved_backend *b, size_t *ret)
{
	struct gmem_image_region region = { .size = sizeof(region) };

	/* The image has no memory. */
	if (r->incoming) {
		*ret = (size_t)(b - r->saved->backends);
		return 0;
	}
	for (size_t i = 0; i < gmem_image_nregions(r->image); i++) {
		if (gmem_image_region(r->image, i, &region) || strcmp(region.name, b->region))
			continue;
		if (region.len != b->size)
			return gmem_ui_fail("%s: region \"%s\" has %llu bytes, RAM '%s' %llu", r->path, b->region,
					    (unsigned long long)region.len, b->id, (unsigned long long)b->size);
		*ret = i;
		return 0;
	}
	return gmem_ui_fail("%s: no region \"%s\" in it", r->path, b->region);
}

static int make_files(struct restore *r)
{
	for (size_t i = 0; i < r->saved->nbackends; i++) {
		if (gmem_file_create(r->saved->backends[i].size, NULL, &r->files[i]))
			return gmem_ui_fail_last();
		r->nfiles++;
	}
	return 0;
}

static bool all_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, GMEM_PAGE_SIZE - 1);
}

/* Zero pages stay holes. */
static int write_pages(struct gmem_file *file, uint64_t off, const char *buf, size_t len)
{
	int err = 0;

	for (size_t at = 0; at < len && !err;) {
		size_t n = 0;

		while (at + n < len && !all_zero(buf + at + n))
			n += GMEM_PAGE_SIZE;
		if (n)
			err = gmem_file_write(file, off + at, buf + at, n);
		at += n ? n : GMEM_PAGE_SIZE;
	}
	return err;
}

/* --eager: everything before the guest runs, and nothing to serve afterwards. */
static int load_all(struct restore *r)
{
	const size_t step = 1 << 20;
	struct gmem_ui_progress progress;
	char *buf = aligned_alloc(GMEM_PAGE_SIZE, step);
	int err = buf ? 0 : gmem_ui_fail("out of memory");

	for (size_t i = 0; i < r->nfiles && !err; i++) {
		uint64_t len = r->saved->backends[i].size;
		size_t region;

		err = restore_find_region(r, &r->saved->backends[i], &region);
		gmem_ui_progress_start(&progress, "loading");
		for (uint64_t off = 0; off < len && !err; off += step) {
			size_t n = len - off < step ? (size_t)(len - off) : step;

			if (gmem_image_read(r->image, region, off, buf, n) || write_pages(r->files[i], off, buf, n))
				err = gmem_ui_fail_last();
			else if (interrupted)
				err = gmem_ui_fail("interrupted");
			gmem_ui_progress_step(&progress, off + n, len);
		}
		gmem_ui_progress_end(&progress);
	}
	free(buf);
	return err;
}

/* ---- QEMU */

static bool is_one_of(const char *word, size_t len, const char *const *list)
{
	for (; *list; list++)
		if (len == strlen(*list) && !strncmp(word, *list, len))
			return true;
	return false;
}

/*
 * The first option that has the kernel read or write guest memory for QEMU: disks, shared folders, network. NULL:
 * none.
 */
static const char *kernel_user(const struct gmem_cmdline *cl)
{
	static const char *const always[] = { "drive", "blockdev", "hda",    "hdb", "hdc",    "hdd",   "cdrom", "fda",
					      "fdb",   "mtdblock", "pflash", "sd",  "virtfs", "fsdev", NULL };
	static const char *const network[] = { "netdev", "nic", "net", NULL };
	static const char *const harmless[] = { "user", "none", "nic", "hubport", NULL };

	for (size_t i = 0; i < gmem_cmdline_count(cl); i++) {
		const char *name = gmem_cmdline_name(cl, i), *value = gmem_cmdline_value(cl, i);

		if (is_one_of(name, strlen(name), always) || !*name)
			return value ? value : name;
		if (is_one_of(name, strlen(name), network) &&
		    !(value && is_one_of(value, strcspn(value, ","), harmless)))
			return value ? value : name;
		if (!strcmp(name, "device") && value &&
		    (!strncmp(value, "vhost-", 6) || !strncmp(value, "virtio-9p", 9)))
			return value;
	}
	return NULL;
}

/* A monitor's socket that somebody listens on would be taken from him: QEMU removes it and makes its own. */
static int check_sockets(const struct gmem_cmdline *cl)
{
	static const char *const options[] = { "qmp", "qmp-pretty", "monitor", NULL };

	for (size_t i = 0; i < gmem_cmdline_count(cl); i++) {
		const char *name = gmem_cmdline_name(cl, i), *value = gmem_cmdline_value(cl, i);
		char path[108];
		size_t len;

		if (!value || !is_one_of(name, strlen(name), options) || strncmp(value, "unix:", 5) ||
		    !strstr(value, ",server"))
			continue;
		len = strcspn(value + 5, ",");
		if (len >= sizeof(path))
			continue;
		memcpy(path, value + 5, len);
		path[len] = '\0';
		if (gmem_spawn_listened(path))
			return gmem_ui_fail(
				"-%s %s: another process listens there (the machine this was saved from?): end it, or "
				"give another command line after --",
				name, value);
	}
	return 0;
}

/* QEMU's argv, cwd and descriptors. With `preload` it attaches to the keeper before it touches its memory. */
static int spawn(struct restore *r, const char *preload, int qmp_fd)
{
	struct gmem_spawn how = { .cwd = r->saved->cwd, .preload = preload };
	int keep[GMEM_RESTORE_MAX_FILES + 1];
	struct gmem_cmdline *cl = NULL;
	char **argv = NULL;
	int err;

	for (size_t i = 0; i < r->nfiles; i++)
		keep[how.nkeep++] = gmem_file_fd(r->files[i]);
	err = gmem_qemu_restore_cmdline(r->saved, r->override, keep, qmp_fd, &cl);
	keep[how.nkeep++] = qmp_fd;
	how.keep = keep;
	if (!err) {
		const char *user = kernel_user(cl);

		snprintf(r->kernel_user, sizeof(r->kernel_user), "%s", user ? user : "");
		if (check_sockets(cl)) {
			gmem_cmdline_free(cl);
			return GMEM_UI_FAILED;
		}
		err = gmem_disks_overlay(r->saved, cl);
	}
	if (!err) {
		argv = gmem_cmdline_argv(cl);
		how.argv = argv;
		how.attach_fd = preload ? gmem_keeper_attach_fd(r->keeper) : -1;
		err = argv ? gmem_spawn(&how, &r->vm) : -ENOMEM;
	}
	if (err == -ENOENT && argv)
		err = gmem_ui_fail(
			"%s: install QEMU (Debian, Ubuntu: apt-get install qemu-system-x86), or give a command line "
			"after --",
			gmem_last_error());
	else if (err)
		err = gmem_ui_fail_last();
	r->child = !err;
	if (!err)
		r->process = gmem_process_open(r->vm);
	free(argv);
	gmem_cmdline_free(cl);
	return err;
}

/*
 * Why QEMU is not there any more, or does not answer: what the preload told the keeper says more than QEMU's own
 * exit.
 */
int restore_qemu_failed(struct restore *r)
{
	struct gmem_server_status status = { .size = sizeof(status) };
	char why[512];
	int code;

	snprintf(why, sizeof(why), "%s", gmem_last_error());
	if (r->server && !gmem_server_status(r->server, &status) && status.attach_error)
		return gmem_ui_fail("QEMU's memory cannot be restored on demand: %s (--eager restores it whole)",
				    status.attach_text);
	code = restore_vm_status(r, 0);
	if (code >= 0)
		return gmem_ui_fail("QEMU ended with exit code %d before the guest ran; what it says is above", code);
	return gmem_ui_fail("%s", why);
}

static int start_qemu(struct restore *r, const char *preload)
{
	int qmp_fd = gmem_spawn_listen(r->qmp_path);
	int err;

	if (qmp_fd < 0)
		return gmem_ui_fail_last();
	err = spawn(r, preload, qmp_fd);
	close(qmp_fd);
	if (err)
		return err;
	/* Only the program may hold its end: when that closes, it has ended. */
	gmem_keeper_free(r->keeper);
	r->keeper = NULL;
	if (gmem_qmp_connect(r->qmp_path, &r->qmp))
		return restore_qemu_failed(r);
	r->ready = gmem_ui_now();
	return 0;
}

/* A user-mode-only descriptor is enough where nothing but QEMU's own code touches guest memory. */
static int check_kernel_access(const struct restore *r)
{
	static const char why[] =
		"pages that are not in place yet would be errors (EFAULT) there, and a full userfaultfd is not "
		"permitted here: run `gmem info`, or restore with --eager";

	if (!strcmp(r->saved->accel, "kvm"))
		return gmem_ui_fail("KVM touches guest memory in the kernel: %s", why);
	if (*r->kernel_user)
		return gmem_ui_fail("'%s' has guest memory read and written by the kernel: %s", r->kernel_user, why);
	return 0;
}

static int check_memory(struct restore *r)
{
	struct gmem_server_status status = { .size = sizeof(status) };

	/*
	 * QEMU answers when its memory is mapped, so its regions are at the keeper; our copy of the news may be a
	 * moment behind.
	 */
	for (int i = 0; i < 200; i++) {
		gmem_server_status(r->server, &status);
		if (status.nregions >= status.nfiles || status.attach_error)
			break;
		usleep(5000);
	}
	if (status.attach_error)
		return gmem_ui_fail("QEMU's memory cannot be restored on demand: %s (--eager restores it whole)",
				    status.attach_text);
	if (status.nregions < status.nfiles)
		return gmem_ui_fail(
			"QEMU maps %zu of %zu memory files: is libgmem-attach.so loaded (a static or set-user-id QEMU "
			"ignores LD_PRELOAD)? --eager does without",
			status.nregions, status.nfiles);
	if (status.user_mode_only && check_kernel_access(r))
		return GMEM_UI_FAILED;
	if (gmem_server_check_mappings(r->server))
		return gmem_ui_fail_last();
	return 0;
}

int restore_check_vm(struct restore *r)
{
	if (gmem_saved_check(r->qmp, r->saved) || gmem_devices_check(r->qmp))
		return gmem_ui_fail_last();
	return r->server ? check_memory(r) : 0;
}

int restore_resume(struct restore *r)
{
	if (r->saved->running && gmem_device_state_cont(r->qmp))
		return gmem_ui_fail_last();
	r->resumed = gmem_ui_now();
	if (r->server)
		gmem_server_set_note(r->server, RESTORE_RESUMED);
	return 0;
}

int restore_load_state(struct restore *r)
{
	void *data;
	size_t len;
	int err;

	if (gmem_image_section(r->image ? r->image : gmem_server_image(r->server), GMEM_SECTION_STATE, &data, &len))
		return gmem_ui_fail_last();
	err = gmem_device_state_load(r->qmp, data, len, true);
	free(data);
	if (err)
		return restore_qemu_failed(r);
	return restore_resume(r);
}

/* Tried on a page of our own before QEMU is started, whose own words on it would say less. */
static int check_userfaultfd(void)
{
	struct gmem_source *source = NULL;
	struct gmem_pager *pager = NULL;
	struct gmem_view *view = NULL;
	struct gmem_file *file = NULL;
	int err;

	err = gmem_file_create(GMEM_PAGE_SIZE, NULL, &file);
	if (!err)
		err = gmem_view_map(file, 0, GMEM_PAGE_SIZE, PROT_READ, &view);
	if (!err)
		err = gmem_source_new_zero(&source);
	if (!err)
		err = gmem_pager_create(NULL, &pager);
	if (!err)
		err = gmem_pager_add_view(pager, view, source, 0);
	if (err < 0)
		err = gmem_ui_fail("%s: nothing can be restored on demand here: run `gmem info`, or restore with "
				   "--eager",
				   gmem_last_error());
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_view_unmap(view);
	gmem_file_free(file);
	return err;
}

static int start_lazily(struct restore *r)
{
	char preload[4096];
	int err;

	err = check_userfaultfd();
	if (err)
		return err;
	if (gmem_spawn_find_preload(GMEM_PKGLIBDIR, preload, sizeof(preload)))
		return gmem_ui_fail_last();
	err = restore_start_keeper(r);
	if (!err)
		err = restore_connect(r);
	if (!err)
		err = start_qemu(r, preload);
	return err;
}

int restore_prepare(struct restore *r)
{
	int err;

	err = open_image(r);
	if (!err)
		err = restore_workset_open(r);
	if (!err)
		err = restore_name_sockets(r, r->socket);
	if (!err)
		err = make_files(r);
	if (!err && r->eager)
		err = load_all(r);
	if (!err)
		err = r->eager ? start_qemu(r, NULL) : start_lazily(r);
	return err ? err : restore_check_vm(r);
}

void restore_undo(struct restore *r)
{
	if (r->vm && r->child) {
		r->killed = true;
		kill(r->vm, SIGKILL);
		restore_vm_status(r, 10000);
	}
	if (r->saved)
		gmem_disks_discard(r->saved);
	if (*r->qmp_path)
		unlink(r->qmp_path);
}

int restore_start(struct restore *r)
{
	int err = restore_prepare(r);

	if (!err && r->server)
		err = restore_workset_begin(r);
	if (!err)
		err = restore_load_state(r);
	if (err)
		restore_undo(r);
	return err;
}
