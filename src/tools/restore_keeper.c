/* SPDX-License-Identifier: MIT */
/* gmem restore: the keeper, and joining one whose server has died. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/restore.h"

/* A folder only this user can enter. */
int restore_runtime_folder(char *buf, size_t len)
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	struct stat st;

	if (xdg && *xdg == '/' && strlen(xdg) < 60)
		snprintf(buf, len, "%s/gmem", xdg);
	else
		snprintf(buf, len, "/tmp/gmem-%u", (unsigned int)geteuid());
	if (mkdir(buf, 0700) && errno != EEXIST)
		return gmem_ui_fail("%s: %s (it holds the sockets; --socket PATH puts them elsewhere)", buf,
				    strerror(errno));
	if (lstat(buf, &st) || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
		return gmem_ui_fail(
			"%s: not a folder that only this user can enter (--socket PATH puts the sockets elsewhere)",
			buf);
	return 0;
}

int restore_name_sockets(struct restore *r, const char *given)
{
	char folder[80];

	if (given) {
		if (strlen(given) >= sizeof(r->keeper_path))
			return gmem_ui_fail("%s: too long for a socket's path", given);
		strcpy(r->keeper_path, given);
	} else {
		if (restore_runtime_folder(folder, sizeof(folder)))
			return GMEM_UI_FAILED;
		snprintf(r->keeper_path, sizeof(r->keeper_path), "%s/%d", folder, (int)getpid());
	}
	snprintf(r->qmp_path, sizeof(r->qmp_path), "%s.qmp", r->keeper_path);
	return 0;
}

/* The connections of a migration end with the process that has them. */
static void close_network(void)
{
	struct sockaddr_storage addr;

	for (int fd = 3; fd < 1024; fd++) {
		socklen_t len = sizeof(addr);

		if (!getsockname(fd, (struct sockaddr *)&addr, &len) && addr.ss_family != AF_UNIX)
			close(fd);
	}
}

/* The keeper outlives us, and must not keep our terminal or pipes open for those who read them to their end. */
static _Noreturn void be_keeper(struct restore *r)
{
	int null = open("/dev/null", O_RDWR);
	int err;

	setsid();
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		close(null);
	}
	if (r->incoming)
		close_network();
	if (r->qmp)
		gmem_qmp_close(r->qmp);
	for (size_t i = 0; i < r->nfiles; i++)
		gmem_file_free(r->files[i]);
	gmem_image_close(r->image);
	err = gmem_keeper_run(r->keeper);
	gmem_keeper_free(r->keeper);
	/* What the program had beside it goes with it. */
	unlink(r->qmp_path);
	if (r->incoming && r->path)
		unlink(r->path);
	_exit(err ? 1 : 0);
}

static int fork_keeper(struct restore *r)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return gmem_ui_fail("starting the keeper: %s", strerror(errno));
	if (pid == 0) {
		/* Twice, so that it is nobody's child: init reaps it. */
		if (fork() == 0)
			be_keeper(r);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	return 0;
}

int restore_start_keeper(struct restore *r)
{
	size_t region;

	if (gmem_keeper_create(r->keeper_path, &r->keeper))
		return gmem_ui_fail_last();
	for (size_t i = 0; i < r->nfiles; i++) {
		if (restore_find_region(r, &r->saved->backends[i], &region))
			return GMEM_UI_FAILED;
		if (gmem_keeper_add_file(r->keeper, r->files[i], region))
			return gmem_ui_fail_last();
	}
	if (gmem_keeper_set_image(r->keeper, gmem_image_fd(r->image), r->path))
		return gmem_ui_fail_last();
	return fork_keeper(r);
}

int restore_connect(struct restore *r)
{
	struct gmem_server_opts opts = { .size = sizeof(opts),
					 .take_over = r->take_over,
					 .event = restore_event,
					 .opaque = r,
					 .source = r->source };

	int err = gmem_server_connect(r->keeper_path, &opts, &r->server);

	if (err == -ENOENT || err == -ECONNREFUSED)
		return gmem_ui_fail("%s; if the keeper has died too: gmem restore --reattach PID (of QEMU)",
				    gmem_last_error());
	return err ? gmem_ui_fail_last() : 0;
}

static bool is_number(const char *s)
{
	return *s && strspn(s, "0123456789") == strlen(s);
}

static int parse_saved(struct restore *r)
{
	void *data;
	size_t len;
	int err;

	if (gmem_image_section(gmem_server_image(r->server), GMEM_SECTION_QEMU, &data, &len))
		return gmem_ui_fail_last();
	err = gmem_saved_parse(data, len, &r->saved);
	free(data);
	return err ? gmem_ui_fail_last() : 0;
}

/* The server before us died before the guest ran: what it had not done yet is ours to do, its checks included. */
static int resume_first(struct restore *r)
{
	const char *status;
	json_t *answer;
	int err;

	if (gmem_qmp_connect(r->qmp_path, &r->qmp))
		return gmem_ui_fail("%s; the guest had not been resumed when its server died: end process %d and "
				    "restore the image again",
				    gmem_last_error(), (int)r->vm);
	err = restore_check_vm(r);
	if (err)
		return err;
	if (gmem_qmp_exec(r->qmp, "query-status", NULL, &answer))
		return gmem_ui_fail_last();
	status = json_string_value(json_object_get(answer, "status"));
	if (status && !strcmp(status, "inmigrate"))
		err = restore_load_state(r);
	else if (status && !strcmp(status, "paused"))
		err = restore_resume(r);
	json_decref(answer);
	return err;
}

int restore_join(struct restore *r)
{
	struct gmem_server_status status = { .size = sizeof(status) };
	int err;

	if (restore_name_sockets(r, is_number(r->reattach) ? r->socket : r->reattach))
		return GMEM_UI_FAILED;
	if (is_number(r->reattach)) {
		long pid = strlen(r->reattach) < 10 ? atol(r->reattach) : 0;

		if (pid <= 0)
			return gmem_ui_fail("--reattach %s: not a process id", r->reattach);
		if (r->take_over && gmem_server_end((pid_t)pid))
			return gmem_ui_fail_last();
		err = gmem_keeper_adopt(r->keeper_path, (pid_t)pid, &r->keeper);
		if (err == -EBUSY)
			return gmem_ui_fail(
				"%s: give its keeper's socket to --reattach, or end a server with --take-over",
				gmem_last_error());
		if (err)
			return gmem_ui_fail_last();
		if (fork_keeper(r))
			return GMEM_UI_FAILED;
		gmem_keeper_free(r->keeper);
		r->keeper = NULL;
	}
	if (restore_connect(r))
		return GMEM_UI_FAILED;
	/* A program that was starting when its server died goes on starting. */
	for (int i = 0; i < 1000; i++) {
		gmem_server_status(r->server, &status);
		if (status.nregions >= status.nfiles || !status.keeper_alive || status.attach_error)
			break;
		usleep(5000);
	}
	r->vm = status.vm_pid;
	r->process = r->vm ? gmem_process_open(r->vm) : -1;
	if (!status.nregions)
		return gmem_ui_fail("%s: QEMU has not mapped its memory, so it cannot be carried on: restore the image "
				    "again",
				    r->keeper_path);
	gmem_ui_note("server %u of process %d; %zu region(s)", status.generation, (int)r->vm, status.nregions);
	if (status.note != RESTORE_RESUMED || r->incoming) {
		int joined = parse_saved(r);

		if (joined || status.note == RESTORE_RESUMED)
			return joined || !gmem_server_check_mappings(r->server) ? joined : gmem_ui_fail_last();
		return r->unresumed ? r->unresumed(r) : resume_first(r);
	}
	return gmem_server_check_mappings(r->server) ? gmem_ui_fail_last() : 0;
}
