/* SPDX-License-Identifier: MIT */
#include "link/serve/identity.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"

static int add_file(struct gmem_text *ret, const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return gmem_err_sys(-errno, "%s", path);
	gmem_text_add(ret, "%llx.%llu.%llu.%lld.%09ld;", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino,
		      (unsigned long long)st.st_size, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	return 0;
}

/* Up to a comma that is not doubled. Sets `*spec` to what follows it, or to the end. */
static int next_path(const char **spec, char path[PATH_MAX])
{
	const char *s = *spec;
	size_t n = 0;

	for (; *s && (s[0] != ',' || s[1] == ','); s += s[0] == ',' ? 2 : 1) {
		if (n + 1 == PATH_MAX)
			return gmem_err(-ENAMETOOLONG, "source: a path is longer than %d bytes", PATH_MAX - 1);
		path[n++] = *s;
	}
	path[n] = 0;
	*spec = *s ? s + 1 : s;
	return 0;
}

static bool take_prefix(const char **s, const char *prefix)
{
	size_t n = strlen(prefix);

	if (strncmp(*s, prefix, n))
		return false;
	*s += n;
	return true;
}

static int raw_files(const char *spec, struct gmem_text *ret)
{
	char path[PATH_MAX];
	int err = next_path(&spec, path);

	if (!err)
		err = add_file(ret, path);
	while (!err && take_prefix(&spec, "layer=")) {
		err = next_path(&spec, path);
		if (!err)
			err = add_file(ret, path);
	}
	return err;
}

int gmem_identity(const char *spec, struct gmem_text *ret)
{
	struct gmem_text path = { 0 };
	int err = 0;

	if (take_prefix(&spec, "raw:"))
		return raw_files(spec, ret);
	if (take_prefix(&spec, "ch:"))
		gmem_text_add(&path, "%s/memory-ranges", spec);
	else if (take_prefix(&spec, "image:"))
		gmem_text_add(&path, "%.*s", (int)strcspn(spec, "#"), spec);
	if (path.failed)
		err = gmem_err_sys(-ENOMEM, "source");
	else if (path.len)
		err = add_file(ret, path.s);
	gmem_text_free(&path);
	return err;
}
