/* SPDX-License-Identifier: MIT */
/*
 * libnbd, loaded when an export is opened: it brings TLS, XML and C++ libraries with it, which a program that has its
 * memory elsewhere should neither wait for nor have mapped. Enters: nothing. Leaves: its functions. Loaded once a
 * source, by the loader once a process; never unloaded, since its threads' data may outlive every source.
 */
#ifndef GMEM_SOURCE_NBD_LIB_H
#define GMEM_SOURCE_NBD_LIB_H

#include <libnbd.h>

#define GMEM_NBD_CALLS(X)           \
	X(create)                   \
	X(close)                    \
	X(get_error)                \
	X(get_errno)                \
	X(add_meta_context)         \
	X(set_uri_allow_local_file) \
	X(get_size)                 \
	X(can_multi_conn)           \
	X(can_meta_context)         \
	X(aio_connect_uri)          \
	X(aio_disconnect)           \
	X(aio_is_ready)             \
	X(aio_is_dead)              \
	X(aio_is_closed)            \
	X(aio_get_fd)               \
	X(aio_get_direction)        \
	X(aio_notify_read)          \
	X(aio_notify_write)         \
	X(aio_pread)                \
	X(aio_block_status)         \
	X(aio_command_completed)

struct gmem_nbd_lib {
	void *handle;
#define X(name) __typeof__(nbd_##name) *name;
	GMEM_NBD_CALLS(X)
#undef X
	/* Younger ones: NULL where they are missing. */
	int64_t (*get_block_size)(struct nbd_handle *h, int type);
	int (*set_pread_initialize)(struct nbd_handle *h, bool request);
};

/* -EOPNOTSUPP: it is not installed. */
int gmem_nbd_lib_load(struct gmem_nbd_lib *lib);
void gmem_nbd_lib_unload(struct gmem_nbd_lib *lib);

#endif
