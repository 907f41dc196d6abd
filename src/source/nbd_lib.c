/* SPDX-License-Identifier: MIT */
#include "source/nbd_lib.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"

#define SONAME "libnbd.so.0"

static int missing(void)
{
	const char *text = dlerror();

	return gmem_err(-EOPNOTSUPP, "NBD: %s; install libnbd", text ? text : SONAME);
}

/* The way POSIX has for a pointer to a function. */
static void find(void *handle, const char *name, void *ret)
{
	void *p = dlsym(handle, name);

	memcpy(ret, &p, sizeof(p));
}

int gmem_nbd_lib_load(struct gmem_nbd_lib *lib)
{
	struct gmem_nbd_lib l = { .handle = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) };

	if (!l.handle)
		return missing();
#define X(name)                                \
	find(l.handle, "nbd_" #name, &l.name); \
	if (!l.name) {                         \
		int r = missing();             \
                                               \
		dlclose(l.handle);             \
		return r;                      \
	}
	GMEM_NBD_CALLS(X)
#undef X
	find(l.handle, "nbd_get_block_size", &l.get_block_size);
	find(l.handle, "nbd_set_pread_initialize", &l.set_pread_initialize);
	*lib = l;
	return 0;
}

void gmem_nbd_lib_unload(struct gmem_nbd_lib *lib)
{
	if (lib->handle)
		dlclose(lib->handle);
	lib->handle = NULL;
}
