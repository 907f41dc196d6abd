/* SPDX-License-Identifier: MIT */
/* Ledgers: what is written is read again, what is damaged is refused, what a kill leaves behind is no ledger. */
#include "tap.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "link/serve/ledger.h"

static char path[64];

static struct gmem_ledger_dir *new_dir(void)
{
	struct gmem_ledger_dir *dir;

	strcpy(path, "/tmp/gmem-ledger-XXXXXX");
	CHECK(mkdtemp(path));
	CHECK_OK(gmem_ledger_dir_open(path, &dir));
	return dir;
}

static void remove_dir(struct gmem_ledger_dir *dir)
{
	char cmd[96];

	gmem_ledger_dir_free(dir);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", path);
	CHECK_EQ(system(cmd), 0);
}

static struct gmem_ledger *example(const char *id)
{
	struct gmem_ledger *l;
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	CHECK_OK(fd);
	CHECK_OK(gmem_ledger_new(id, getpid(), &l));
	strcpy(l->name, "a \"name\" \\ of people's \xc3\xa4");
	strcpy(l->kind, "firecracker");
	snprintf(l->connection, sizeof(l->connection), "%s.c", id);
	l->uid = 4294967294u;
	l->gid = 3;
	l->len = UINT64_C(1) << 40;
	l->page_size = 4096;
	CHECK_OK(gmem_ledger_add_fd(l, fd, UINT64_C(0xffff800000000000), 4096));
	CHECK_OK(gmem_ledger_add_fd(l, fd, 0, 0));
	CHECK_OK(gmem_ledger_set(&l->hello, "[{\"offset\":0}]\n\t"));
	CHECK_OK(gmem_ledger_set(&l->source, "nbd:unix:/run/x"));
	close(fd);
	return l;
}

static void check_same(const struct gmem_ledger *a, const struct gmem_ledger *b)
{
	CHECK_STR(a->id, b->id);
	CHECK_STR(a->name, b->name);
	CHECK_STR(a->kind, b->kind);
	CHECK_STR(a->boot, b->boot);
	CHECK_STR(a->connection, b->connection);
	CHECK_EQ(a->pid, b->pid);
	CHECK_EQ(a->start, b->start);
	CHECK_EQ(a->uid, b->uid);
	CHECK_EQ(a->gid, b->gid);
	CHECK_EQ(a->len, b->len);
	CHECK_EQ(a->page_size, b->page_size);
	CHECK_EQ(a->created_ns, b->created_ns);
	CHECK_EQ(a->nfds, b->nfds);
	for (uint32_t i = 0; i < a->nfds; i++) {
		CHECK_STR(a->fds[i].name, b->fds[i].name);
		CHECK_STR(a->fds[i].kind, b->fds[i].kind);
		CHECK_EQ(a->fds[i].dev, b->fds[i].dev);
		CHECK_EQ(a->fds[i].ino, b->fds[i].ino);
		CHECK_EQ(a->fds[i].hva, b->fds[i].hva);
		CHECK_EQ(a->fds[i].len, b->fds[i].len);
	}
	CHECK_STR(a->hello, b->hello);
	CHECK_STR(a->source, b->source);
	CHECK(!a->options == !b->options && !a->trouble == !b->trouble);
}

TEST(what_is_written_is_read)
{
	struct gmem_ledger_dir *dir = new_dir();
	struct gmem_ledger *l = example("1abc"), *r;

	CHECK(l->start && strlen(l->boot) == GMEM_LEDGER_BOOT_LEN && l->nfds == 2);
	CHECK_STR(l->fds[1].name, "1abc.1");
	CHECK_OK(gmem_ledger_write(dir, l));
	CHECK_OK(gmem_ledger_read(dir, "1abc", &r));
	check_same(l, r);
	gmem_ledger_free(r);
	/* Replaced as one. */
	CHECK_OK(gmem_ledger_set(&l->trouble, "gone"));
	CHECK_OK(gmem_ledger_set(&l->source, NULL));
	l->connection[0] = '\0';
	CHECK_OK(gmem_ledger_write(dir, l));
	CHECK_OK(gmem_ledger_read(dir, "1abc", &r));
	CHECK_STR(r->trouble, "gone");
	CHECK(!r->source && !r->connection[0]);
	gmem_ledger_free(r);
	CHECK_OK(gmem_ledger_remove(dir, "1abc"));
	CHECK_OK(gmem_ledger_remove(dir, "1abc"));
	CHECK_ERR(gmem_ledger_read(dir, "1abc", &r), -ENOENT);
	gmem_ledger_free(l);
	remove_dir(dir);
}

TEST(long_texts)
{
	struct gmem_ledger_dir *dir = new_dir();
	struct gmem_ledger *l = example("a"), *r;
	size_t n = GMEM_LEDGER_MAX_TEXT;
	char *big = malloc(n + 2);

	CHECK(big);
	/* Each becomes six bytes of JSON. */
	memset(big, 1, n / 4);
	memset(big + n / 4, 'x', n - n / 4);
	big[n] = '\0';
	CHECK_OK(gmem_ledger_set(&l->hello, big));
	CHECK_OK(gmem_ledger_write(dir, l));
	CHECK_OK(gmem_ledger_read(dir, "a", &r));
	CHECK_STR(r->hello, big);
	gmem_ledger_free(r);
	strcpy(big + n, "x");
	CHECK_ERR(gmem_ledger_set(&l->hello, big), -E2BIG);
	free(big);
	gmem_ledger_free(l);
	remove_dir(dir);
}

TEST(what_cannot_be_is_refused)
{
	static const char *const ids[] = { "", "../x", "a/b", ".x", "a b", "0123456789012345678901234567", "a\n" };
	struct gmem_ledger_dir *dir = new_dir();
	struct gmem_ledger *l = example("ok"), *r;
	char *text;
	size_t len;

	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		CHECK_ERR(gmem_ledger_new(ids[i], 0, &r), -EINVAL);
		CHECK_ERR(gmem_ledger_read(dir, ids[i], &r), -EINVAL);
		CHECK_ERR(gmem_ledger_remove(dir, ids[i]), -EINVAL);
		CHECK_ERR(gmem_ledger_dir_state(dir, ids[i], true), -EINVAL);
	}
	strcpy(l->name, "\xff");
	CHECK_ERR(gmem_ledger_format(l, &text, &len), -EINVAL);
	CHECK_ERR(gmem_ledger_write(dir, l), -EINVAL);
	strcpy(l->name, "");
	l->nfds = GMEM_LEDGER_MAX_FDS;
	CHECK_ERR(gmem_ledger_add_fd(l, 0, 0, 0), -ENOSPC);
	l->nfds = 0;
	CHECK_ERR(gmem_ledger_add_fd(l, 999, 0, 0), -EBADF);
	gmem_ledger_free(l);
	remove_dir(dir);
}

static int parse(const char *text, const char *old, const char *new)
{
	const char *at = old ? strstr(text, old) : NULL;
	struct gmem_ledger *l = NULL;
	char *changed;
	int err;

	CHECK(!old || at);
	CHECK(asprintf(&changed, "%.*s%s%s", (int)(at ? at - text : (long)strlen(text)), text, new,
		       at ? at + strlen(old) : "") > 0);
	gmem_err(0, "%s", "");
	err = gmem_ledger_parse(changed, strlen(changed), &l);
	if (err && !gmem_last_error()[0])
		FAIL("no text for %d: %s", err, changed);
	gmem_ledger_free(l);
	free(changed);
	return err;
}

TEST(damaged_ones)
{
	struct gmem_ledger *l = example("ok"), *r = NULL;
	char *text;
	size_t len;

	CHECK_OK(gmem_ledger_format(l, &text, &len));
	CHECK_EQ(parse(text, NULL, ""), 0);
	CHECK_EQ(parse(text, "\"version\": 1", "\"version\": 2"), -EPROTONOSUPPORT);
	CHECK_EQ(parse(text, "gmem-ledger", "gmem-letter"), -EPROTO);
	CHECK_EQ(parse(text, "\"id\": \"ok\"", "\"id\": \"..\""), -EINVAL);
	CHECK_EQ(parse(text, "\"id\": \"ok\"", "\"id\": \"../../etc/x\""), -EINVAL);
	CHECK_EQ(parse(text, "\"id\": \"ok\"", "\"id\": 7"), -EPROTO);
	CHECK_EQ(parse(text, "\"page_size\": \"0x1000\"", "\"page_size\": \"0x0\""), -EINVAL);
	CHECK_EQ(parse(text, "\"page_size\": \"0x1000\"", "\"page_size\": \"4096\""), -EPROTO);
	CHECK_EQ(parse(text, "\"page_size\": \"0x1000\"", "\"page_size\": \"0x00000000000001000\""), -EPROTO);
	CHECK_EQ(parse(text, "\"len\": \"0x10000000000\"", "\"len\": \"0x1\""), -EINVAL);
	CHECK_EQ(parse(text, "\"len\": \"0x10000000000\"", "\"len\": \"0xfffffffffffff000\""), -EINVAL);
	CHECK_EQ(parse(text, "\"hva\": \"0xffff800000000000\"", "\"hva\": \"0xfffffffffffff001\""), -EINVAL);
	CHECK_EQ(parse(text, "\"uid\": 4294967294", "\"uid\": 4294967296"), -EINVAL);
	CHECK_EQ(parse(text, "\"uid\": 4294967294", "\"uid\": -1"), -EINVAL);
	CHECK_EQ(parse(text, "\"uid\": 4294967294", "\"uid\": 1.5"), -EPROTO);
	CHECK_EQ(parse(text, "\"ok.0\"", "\"o:.0\""), -EINVAL);
	CHECK_EQ(parse(text, "\"ok.0\"", "\"0123456789012345678901234567890123\""), -EINVAL);
	CHECK_EQ(parse(text, "\"fds\": [", "\"fds\": [7,"), -EPROTO);
	CHECK_EQ(parse(text, "\"hello\": \"", "\"hello\": 1, \"x\": \""), -EPROTO);
	CHECK_EQ(parse(text, "\"hello\": \"", "\"hello\": \"\\u0000"), -EPROTO);
	CHECK_EQ(parse(text, "\"gid\": 3", "\"gid\": 3, \"gid\": 3"), -EPROTO);
	CHECK_EQ(parse(text, "\"gid\": 3", "\"gid\": 3, \"of another day\": {}"), 0);
	/* Cut anywhere; the last byte is the brace. */
	for (size_t i = 0; i < len; i++) {
		CHECK_ERR(gmem_ledger_parse(text, i, &r), -EPROTO);
		CHECK(!r);
	}
	free(text);
	gmem_ledger_free(l);
}

struct walk {
	int good, bad;
};

static int count(void *opaque, const char *id, struct gmem_ledger *l, int err)
{
	struct walk *w = opaque;

	CHECK(!l == (err != 0));
	if (err)
		CHECK(gmem_last_error()[0]);
	else
		CHECK_STR(l->id, id);
	w->good += !err;
	w->bad += err != 0;
	gmem_ledger_free(l);
	return 0;
}

static void touch(struct gmem_ledger_dir *dir, const char *name, const char *text)
{
	int fd = openat(gmem_ledger_dir_fd(dir), name, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);

	CHECK_OK(fd);
	CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static bool is_there(struct gmem_ledger_dir *dir, const char *name)
{
	return faccessat(gmem_ledger_dir_fd(dir), name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

TEST(what_a_kill_leaves_is_swept)
{
	struct gmem_ledger_dir *dir = new_dir();
	struct gmem_ledger *l = example("b");
	struct walk w = { 0 };

	CHECK_OK(gmem_ledger_write(dir, l));
	close((int)CHECK_OK(gmem_ledger_dir_state(dir, "b", true)));
	CHECK_ERR(gmem_ledger_dir_state(dir, "b", true), -EEXIST);
	close((int)CHECK_OK(gmem_ledger_dir_state(dir, "b", false)));
	CHECK_ERR(gmem_ledger_dir_state(dir, "c", false), -ENOENT);
	touch(dir, "b.json.new", "{");
	touch(dir, "c.json.new", "{");
	touch(dir, "d.state", "");
	touch(dir, "e.json", "{");
	touch(dir, "e.state", "");
	touch(dir, "f.json", "");
	CHECK_EQ(symlinkat("b.json", gmem_ledger_dir_fd(dir), "g.json"), 0);
	CHECK_EQ(mkdirat(gmem_ledger_dir_fd(dir), "h.json", 0700), 0);
	touch(dir, "of another kind", "");
	CHECK_EQ(gmem_ledger_dir_sweep(dir), 3);
	CHECK(is_there(dir, "b.json") && is_there(dir, "b.state") && is_there(dir, "of another kind"));
	/* A ledger that cannot be read is for people to look at, with its table. */
	CHECK(is_there(dir, "e.json") && is_there(dir, "e.state"));
	CHECK(!is_there(dir, "b.json.new") && !is_there(dir, "c.json.new") && !is_there(dir, "d.state"));
	CHECK_OK(gmem_ledger_each(dir, count, &w));
	CHECK_EQ(w.good, 1);
	CHECK_EQ(w.bad, 4);
	gmem_ledger_free(l);
	remove_dir(dir);
}

TEST(directories_of_others)
{
	struct gmem_ledger_dir *dir = new_dir(), *no = NULL;

	gmem_ledger_dir_free(dir);
	CHECK_EQ(chmod(path, 0770), 0);
	CHECK_ERR(gmem_ledger_dir_open(path, &no), -EPERM);
	CHECK_EQ(chmod(path, 0755), 0);
	CHECK_OK(gmem_ledger_dir_open(path, &dir));
	CHECK_ERR(gmem_ledger_dir_open("/dev/null", &no), -ENOTDIR);
	CHECK_ERR(gmem_ledger_dir_open("/nowhere/of/this/name", &no), -ENOENT);
	CHECK(!no);
	if (!geteuid()) {
		CHECK_EQ(chown(path, 1, 1), 0);
		CHECK_ERR(gmem_ledger_dir_open(path, &no), -EPERM);
	}
	remove_dir(dir);
}

/* A process that has the fence; ends when its pipe is closed. */
static pid_t fence_holder(int *ret_pipe)
{
	int fds[2], ready[2];
	struct gmem_ledger_dir *dir;
	pid_t pid;
	char c;

	CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(ready, O_CLOEXEC), 0);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		close(fds[1]);
		CHECK_OK(gmem_ledger_dir_open(path, &dir));
		CHECK_OK(gmem_ledger_dir_lock(dir, 0, NULL));
		close(ready[1]);
		_exit(read(fds[0], &c, 1) < 0);
	}
	close(fds[0]);
	close(ready[1]);
	CHECK_EQ(read(ready[0], &c, 1), 0);
	close(ready[0]);
	*ret_pipe = fds[1];
	return pid;
}

TEST(the_fence)
{
	struct gmem_ledger_dir *dir = new_dir(), *two;
	int pipe_fd, status;
	pid_t pid, told = 0;

	pid = fence_holder(&pipe_fd);
	CHECK_ERR(gmem_ledger_dir_lock(dir, 0, &told), -EBUSY);
	CHECK_EQ(told, pid);
	CHECK_ERR(gmem_ledger_dir_lock(dir, 30, NULL), -EBUSY);
	close(pipe_fd);
	CHECK_OK(gmem_ledger_dir_lock(dir, 20000, NULL));
	CHECK_OK(gmem_ledger_dir_lock(dir, 0, NULL));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	CHECK_OK(gmem_ledger_dir_open(path, &two));
	CHECK_ERR(gmem_ledger_dir_lock(two, 0, &told), -EBUSY);
	CHECK_EQ(told, getpid());
	gmem_ledger_dir_free(dir);
	CHECK_OK(gmem_ledger_dir_lock(two, 0, NULL));
	remove_dir(two);
}

TEST(taking_over)
{
	struct gmem_ledger_dir *dir = new_dir();
	int pipe_fd, status;
	pid_t pid = fence_holder(&pipe_fd);

	CHECK_OK(gmem_ledger_dir_take_over(dir, 20000));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	close(pipe_fd);
	remove_dir(dir);
}

TEST(taking_over_kills_nobody_else)
{
	struct gmem_ledger_dir *dir = new_dir();
	char text[64];
	int fd;
	pid_t pid;

	/* Somebody locks the file and does not say who it is; the file names a process that lives, of another start. */
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		pause();
		_exit(0);
	}
	snprintf(text, sizeof(text), "%d 1\n", (int)pid);
	touch(dir, "lock", text);
	fd = openat(gmem_ledger_dir_fd(dir), "lock", O_RDONLY | O_CLOEXEC);
	CHECK_EQ(flock(fd, LOCK_EX), 0);
	CHECK_ERR(gmem_ledger_dir_take_over(dir, 50), -EBUSY);
	CHECK_EQ(waitpid(pid, NULL, WNOHANG), 0);
	close(fd);
	CHECK_OK(gmem_ledger_dir_take_over(dir, 20000));
	CHECK_EQ(kill(pid, SIGKILL), 0);
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
	remove_dir(dir);
}
