/* SPDX-License-Identifier: MIT */
/*
 * gmem save: stops a machine, takes its device state over QMP and its memory from the memory file, and lets it go on or
 * ends it. Whatever fails, the machine is put back as it was and nothing appears under the image's name.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gmem.h"
#include "link/qemu.h"
#include "tools/cmd.h"
#include "tools/ui.h"

#define QUESTION_TIMEOUT_MS 10000
#define WORK_TIMEOUT_MS 60000

static const char help[] =
	"Usage: gmem save --qmp SOCKET [OPTION]... FILE\n"
	"\n"
	"Writes the memory and device state of a running QEMU to the image FILE.\n"
	"\n"
	"  --qmp SOCKET           QEMU's control monitor (qemu -qmp unix:SOCKET,server=on,wait=off)\n"
	"  --quit                 end the machine when the image is complete; without it the machine goes on\n"
	"  --compress zstd|none   how pages are stored (zstd)\n"
	"  --level N              zstd level, 1 to 19 (1)\n"
	"  --chunk SIZE           bytes stored and checked as one: 4K to 256K (64K with zstd, 4K without)\n"
	"  --pid PID              QEMU's process, where the socket does not tell\n"
	"  --help                 this text\n";

struct args {
	const char *socket, *path;
	struct gmem_image_writer_opts opts;
	pid_t pid;
	bool quit;
};

struct save {
	const struct args *args;
	struct gmem_qmp *qmp;
	struct gmem_machine machine;
	struct gmem_saved *saved; /* the machine's */
	struct gmem_device_state state;
	struct gmem_image_writer *writer;
	void *device;
	size_t device_len;
	uint64_t begun, stopped_ns;
	bool snapshotted;
	bool gave_up; /* continuing the machine failed and was said */
};

/* SIGINT and SIGTERM must not leave the machine stopped: the flag is looked at wherever progress is told. */
static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

static int step(void *opaque, uint64_t done, uint64_t total)
{
	gmem_ui_progress_step(opaque, done, total);
	return interrupted ? -EINTR : 0;
}

/* Memory that is itself being restored is completed first, while the machine runs. */
static int complete_first(pid_t pid)
{
	struct gmem_ui_progress progress;
	int r;

	gmem_ui_progress_start(&progress, "completing the restore");
	r = gmem_complete_memory(pid, step, &progress);
	gmem_ui_progress_end(&progress);
	if (r && interrupted)
		return gmem_ui_fail("interrupted by signal %d: nothing was saved", (int)interrupted);
	return r ? gmem_ui_fail_last() : 0;
}

static int inspect(struct save *s)
{
	if (gmem_machine_inspect(s->qmp, s->args->pid, s->args->quit, &s->machine))
		return gmem_ui_fail_last();
	s->saved = s->machine.saved;
	return complete_first(s->machine.pid);
}

static void tell_overlays(const struct save *s)
{
	size_t i;

	for (i = 0; i < s->saved->ndisks; i++)
		if (s->saved->disks[i].overlay)
			gmem_ui_note("disk %s is frozen: the machine now writes to %s; keep both",
				     s->saved->disks[i].path, s->saved->disks[i].overlay);
}

static int stop(struct save *s)
{
	if (gmem_device_state_stop(s->qmp, &s->state))
		return gmem_ui_fail_last();
	s->saved->running = s->state.was_running;
	if (gmem_disks_snapshot(s->qmp, s->saved))
		return gmem_ui_fail_last();
	s->snapshotted = true;
	if (gmem_device_state_take(s->qmp, &s->state, &s->device, &s->device_len) || gmem_disks_identify(s->saved))
		return gmem_ui_fail_last();
	return 0;
}

static int write_regions(struct save *s)
{
	struct gmem_ui_progress progress;
	char label[96];
	size_t i;
	int r = 0;

	for (i = 0; i < s->machine.ram->n && !r; i++) {
		const struct gmem_ram_backend *b = &s->machine.ram->backends[i];

		snprintf(label, sizeof(label), "saving %.64s", b->id);
		gmem_ui_progress_start(&progress, label);
		r = gmem_image_add_region(s->writer, b->id, b->gpa, b->fd, b->off, b->size, step, &progress);
		gmem_ui_progress_end(&progress);
	}
	if (r && interrupted)
		return gmem_ui_fail("interrupted by signal %d: nothing was saved", (int)interrupted);
	return r ? gmem_ui_fail_last() : 0;
}

static int write_sections(struct save *s)
{
	char *text;
	int r;

	if (gmem_saved_format(s->saved, &text))
		return gmem_ui_fail_last();
	r = gmem_image_add_section(s->writer, GMEM_SECTION_STATE, s->device, s->device_len);
	if (!r)
		r = gmem_image_add_section(s->writer, GMEM_SECTION_QEMU, text, strlen(text));
	free(text);
	return r ? gmem_ui_fail_last() : 0;
}

static int commit(struct save *s)
{
	struct gmem_image_writer *writer = s->writer;

	s->writer = NULL;
	return gmem_image_commit(writer) ? gmem_ui_fail_last() : 0;
}

/* The image is complete under its name; the disks must be as they were noted when the process is gone. */
static int end_machine(struct save *s)
{
	int r;

	/* It may be gone before its answer is. */
	r = gmem_qmp_exec(s->qmp, "quit", NULL, NULL);
	if ((r && r != -ECONNRESET) || gmem_process_wait(s->machine.process, 60000))
		return gmem_ui_fail("%s; the image is complete, but the machine did not end", gmem_last_error());
	s->state.stopped = false;
	if (gmem_disks_check(s->saved))
		return gmem_ui_fail_last();
	return 0;
}

static int go_on(struct save *s)
{
	if (!gmem_device_state_resume(s->qmp, &s->state, &s->stopped_ns))
		return 0;
	s->gave_up = true;
	gmem_ui_fail("%s%s", gmem_last_error(),
		     s->state.stopped ? "; if QEMU lives, the machine is stopped: QMP cont" : "");
	return GMEM_UI_FAILED;
}

/* With --quit the image is safe on disk before the machine ends; else the machine goes on as soon as its memory has
 * been read. */
static int write_image(struct save *s)
{
	int r;

	r = write_regions(s);
	if (!r)
		r = write_sections(s);
	if (r)
		return r;
	if (s->args->quit) {
		r = commit(s);
		return r ? r : end_machine(s);
	}
	r = go_on(s);
	return r ? r : commit(s);
}

static void put_back(struct save *s)
{
	gmem_image_abort(s->writer);
	s->writer = NULL;
	/* A QEMU that has died needs nothing, and a second error line would hide the first. */
	if (s->state.stopped && !s->gave_up && gmem_process_wait(s->machine.process, 0))
		go_on(s);
	if (s->snapshotted)
		tell_overlays(s);
}

static void report(const struct save *s)
{
	char a[GMEM_UI_TEXT], b[GMEM_UI_TEXT];
	struct gmem_image_region region = { .size = sizeof(region) };
	uint64_t pages = 0, data = 0;
	struct gmem_ui_table table;
	struct gmem_image *image;
	struct stat st;
	size_t i;

	if (gmem_image_open(s->args->path, &image) || stat(s->args->path, &st)) {
		gmem_ui_fail_last();
		return;
	}
	for (i = 0; i < gmem_image_nregions(image); i++) {
		if (gmem_image_region(image, i, &region))
			continue;
		pages += region.len / GMEM_PAGE_SIZE;
		data += region.data_pages;
	}
	gmem_image_close(image);
	gmem_ui_table_init(&table, 2, 2);
	gmem_ui_table_cell(&table, "device state");
	gmem_ui_table_cell(&table, "%s", gmem_ui_size(a, s->device_len));
	gmem_ui_table_cell(&table, "pages stored");
	gmem_ui_table_cell(&table, "%llu", (unsigned long long)data);
	gmem_ui_table_cell(&table, "pages zero");
	gmem_ui_table_cell(&table, "%llu", (unsigned long long)(pages - data));
	gmem_ui_table_cell(&table, "image");
	gmem_ui_table_cell(&table, "%s", gmem_ui_size(a, (uint64_t)st.st_size));
	gmem_ui_table_cell(&table, "machine stopped");
	if (s->args->quit)
		gmem_ui_table_cell(&table, "ended");
	else if (!s->saved->running)
		gmem_ui_table_cell(&table, "was paused");
	else
		gmem_ui_table_cell(&table, "%s", gmem_ui_time(b, s->stopped_ns));
	gmem_ui_table_cell(&table, "total");
	gmem_ui_table_cell(&table, "%s", gmem_ui_time(b, gmem_ui_now() - s->begun));
	gmem_ui_table_print(&table, stdout, "");
	gmem_ui_table_free(&table);
}

static int save(struct save *s)
{
	int r;

	if (gmem_qmp_connect(s->args->socket, &s->qmp))
		return gmem_ui_fail_last();
	/* Questions are answered at once or not at all. */
	gmem_qmp_set_timeout(s->qmp, QUESTION_TIMEOUT_MS);
	r = inspect(s);
	if (r)
		return r;
	/* Before the machine is stopped: a folder that cannot be written must not cost it anything. */
	if (gmem_image_create(s->args->path, &s->args->opts, &s->writer))
		return gmem_ui_fail_last();
	gmem_qmp_set_timeout(s->qmp, WORK_TIMEOUT_MS);
	r = stop(s);
	if (!r)
		r = write_image(s);
	if (r) {
		put_back(s);
		return r;
	}
	tell_overlays(s);
	report(s);
	if (!s->args->quit && !s->saved->running)
		gmem_ui_note("the machine was paused before and stays so");
	return GMEM_UI_OK;
}

static void catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	/* A limit on the size of files is an error of the image, told as such. */
	signal(SIGXFSZ, SIG_IGN);
}

static bool number(const char *text, long lo, long hi, long *ret)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(text, &end, 10);
	if (errno || end == text || *end || v < lo || v > hi)
		return false;
	*ret = v;
	return true;
}

static int set_chunk(struct args *args, const char *text)
{
	uint64_t len;

	if (gmem_size_parse(text, 1, &len) || len < 4096 || len > 256 << 10 || (len & (len - 1)))
		return gmem_ui_usage("save", "--chunk %s: a power of two from 4K to 256K is needed", text);
	args->opts.chunk_len = (uint32_t)len;
	return 0;
}

static int set_option(struct args *args, int c, const char *word)
{
	long v;

	switch (c) {
	case 'q':
		args->socket = optarg;
		return 0;
	case 'e':
		args->quit = true;
		return 0;
	case 'c':
		if (strcmp(optarg, "zstd") && strcmp(optarg, "none"))
			return gmem_ui_usage("save", "--compress %s: zstd or none", optarg);
		args->opts.compression = *optarg == 'n' ? GMEM_COMPRESS_NONE : GMEM_COMPRESS_ZSTD;
		return 0;
	case 'l':
		if (!number(optarg, 1, 19, &v))
			return gmem_ui_usage("save", "--level %s: a number from 1 to 19", optarg);
		args->opts.level = (int)v;
		return 0;
	case 'k':
		return set_chunk(args, optarg);
	case 'p':
		if (!number(optarg, 1, 1l << 30, &v))
			return gmem_ui_usage("save", "--pid %s: not a process id", optarg);
		args->pid = (pid_t)v;
		return 0;
	default:
		return gmem_ui_usage("save", "unknown option or missing value: '%s'", word);
	}
}

int cmd_save(int argc, char **argv)
{
	static const struct option options[] = {
		{ "qmp", required_argument, NULL, 'q' },      { "quit", no_argument, NULL, 'e' },
		{ "compress", required_argument, NULL, 'c' }, { "level", required_argument, NULL, 'l' },
		{ "chunk", required_argument, NULL, 'k' },    { "pid", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },	      { NULL, 0, NULL, 0 },
	};
	struct args args = { .opts = { .size = sizeof(args.opts) } };
	struct save s = { .args = &args, .begun = gmem_ui_now(), .machine.process = -1 };
	int c, r;

	optind = 1;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return GMEM_UI_OK;
		}
		r = set_option(&args, c, argv[optind - 1]);
		if (r)
			return r;
	}
	if (!args.socket)
		return gmem_ui_usage("save", "--qmp SOCKET is needed");
	if (optind + 1 != argc)
		return gmem_ui_usage("save", optind == argc ? "no image FILE given" : "more than one FILE given");
	args.path = argv[optind];
	catch_signals();
	r = save(&s);
	gmem_device_state_clear(&s.state);
	gmem_image_abort(s.writer);
	gmem_machine_release(&s.machine);
	gmem_qmp_close(s.qmp);
	free(s.device);
	return r;
}
