/* SPDX-License-Identifier: MIT */
/*
 * The ledger: what a server writes down of each VM, so that its successor goes on. One file a VM, ID.json, beside the
 * table of its page states, ID.state, in the service's state directory (0700, best of a tmpfs). A ledger is written
 * under another name and renamed: it is there whole, or not at all. It makes the VM exist for a successor; a table
 * without a ledger is rubbish, and so is a stored descriptor (link/serve/store.h).
 *
 * Enters: entries, and files that anybody may have damaged. Leaves: checked entries, negative errnos with a text.
 * Thread rule: any thread, but one at a time for one id. Nothing is synced to a disk: a ledger is worth nothing after
 * the machine has been started anew, which the boot's id in it tells.
 */
#ifndef GMEM_LINK_SERVE_LEDGER_H
#define GMEM_LINK_SERVE_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "link/serve/store.h"

#define GMEM_LEDGER_MAX_FDS 40u
#define GMEM_LEDGER_MAX_TEXT (4u << 20) /* of the handshake, of a source, of the options: each */
#define GMEM_LEDGER_MAX_NAME 127u
#define GMEM_LEDGER_BOOT_LEN 36u

/* A descriptor of the client's: its name in the store, and how to know it again in the client itself. */
struct gmem_ledger_fd {
	char name[GMEM_STORE_MAX_NAME + 1];
	/*
	 * What fstat(2) says of it, see gmem_ledger_add_fd(). The kernel gives each userfaultfd an inode of its own
	 * since 5.12; where it does not, a range tells one from another.
	 */
	uint64_t dev, ino;
	char kind[32]; /* an anonymous inode: what /proc calls it, "anon_inode:[userfaultfd]"; else "" */
	uint64_t hva, len; /* a userfaultfd: a range that is registered with it; else len is 0 */
};

struct gmem_ledger {
	char id[GMEM_STORE_MAX_ID + 1]; /* [A-Za-z0-9_-], not empty */
	char name[GMEM_LEDGER_MAX_NAME + 1]; /* for people; may be empty */
	char kind[32]; /* the caller's word, for example "firecracker" */
	pid_t pid; /* of the client; 0: not known, it cannot be recovered */
	uint64_t start; /* gmem_process_start() */
	char boot[GMEM_LEDGER_BOOT_LEN + 1]; /* gmem_ledger_boot() */
	uid_t uid;
	gid_t gid;
	uint64_t len, page_size; /* of the table of page states */
	uint64_t created_ns; /* CLOCK_REALTIME */
	char connection[GMEM_STORE_MAX_NAME + 1]; /* its socket's name in the store; "": there is none any more */
	uint32_t nfds;
	struct gmem_ledger_fd fds[GMEM_LEDGER_MAX_FDS]; /* in the order of the handshake */
	/* Text, each its own allocation, UTF-8 without NUL; NULL: none. */
	char *hello; /* the handshake as it came, for gmem_hello_parse() */
	char *source; /* where its pages come from, in the caller's words */
	char *options; /* likewise */
	char *trouble; /* why it is not being served at present */
};

/* Zero, with a pid's start time and this boot's id. `pid` may be 0. -ENAMETOOLONG, -EINVAL (id), -ESRCH, -ENOMEM. */
int gmem_ledger_new(const char *id, pid_t pid, struct gmem_ledger **ret);
void gmem_ledger_free(struct gmem_ledger *ledger); /* NULL is allowed */

/* This boot's id, /proc/sys/kernel/random/boot_id. Negative errno. */
int gmem_ledger_boot(char ret[GMEM_LEDGER_BOOT_LEN + 1]);

/*
 * Appends a descriptor: name "ID.N" with N its index, what fstat(2) and /proc say of it. `hva`, `len`: of a
 * userfaultfd, a range that was registered with it. -ENOSPC, -EBADF.
 */
int gmem_ledger_add_fd(struct gmem_ledger *ledger, int fd, uint64_t hva, uint64_t len);

/* Replaces one of the texts: gmem_ledger_set(&ledger->source, "..."); NULL: none. -E2BIG, -ENOMEM. */
int gmem_ledger_set(char **text, const char *to);

/* ---- as text: one JSON object, version 1; unknown members are passed over */

/* -EINVAL (not UTF-8, an id or a name that cannot be), -ENOMEM. The text is the caller's: free(3). */
int gmem_ledger_format(const struct gmem_ledger *ledger, char **ret, size_t *ret_len);
/* -EPROTO (not a ledger), -EPROTONOSUPPORT (another version), -EINVAL (a value that cannot be), -E2BIG, -ENOMEM. */
int gmem_ledger_parse(const char *text, size_t len, struct gmem_ledger **ret);

/* ---- the directory */

struct gmem_ledger_dir;

/*
 * Opens the state directory, made (0700) if there is none. -EPERM: another user's, or others may write to it.
 * -ENOTDIR, -EACCES, -ENOMEM.
 */
int gmem_ledger_dir_open(const char *path, struct gmem_ledger_dir **ret);
void gmem_ledger_dir_free(struct gmem_ledger_dir *dir); /* drops the fence; NULL is allowed */
int gmem_ledger_dir_fd(const struct gmem_ledger_dir *dir); /* borrowed */

/*
 * The fence: one server at a time, by flock(2) of the directory's `lock`. The lock goes with the process, after the
 * last of its threads has left the kernel: who gets it knows that no other touches a page any more. Waits up to
 * `timeout_ms`. -EBUSY: another server has it; *ret_pid (may be NULL) is its pid, 0 if it cannot be told.
 */
int gmem_ledger_dir_lock(struct gmem_ledger_dir *dir, unsigned int timeout_ms, pid_t *ret_pid);

/*
 * As gmem_ledger_dir_lock(), but kills the server that has it first (SIGKILL by its pidfd): for one that nobody minds
 * any more, or that hangs. -EPERM: not allowed to.
 */
int gmem_ledger_dir_take_over(struct gmem_ledger_dir *dir, unsigned int timeout_ms);

/* Removes what a killed server left: half-written files, tables without a ledger. With the fence. How many. */
int gmem_ledger_dir_sweep(struct gmem_ledger_dir *dir);

/*
 * Opens the table of page states for gmem_file_create_anon(): `create`, a new one (-EEXIST: there is one), otherwise
 * the one that is there (-ENOENT). The descriptor is the caller's.
 */
int gmem_ledger_dir_state(struct gmem_ledger_dir *dir, const char *id, bool create);

/* Writes an entry; a present one is replaced as one. -ENOSPC, -EINVAL, errors of open(2), write(2), rename(2). */
int gmem_ledger_write(struct gmem_ledger_dir *dir, const struct gmem_ledger *ledger);
int gmem_ledger_read(struct gmem_ledger_dir *dir, const char *id, struct gmem_ledger **ret);
/* The entry first, then the table. What is not there is no error. */
int gmem_ledger_remove(struct gmem_ledger_dir *dir, const char *id);

/*
 * Calls `fn` for each entry, in the order of their ids. One that cannot be read comes as NULL with the error and its
 * text (gmem_last_error()): it is to be reported, and its files are left where they are. `fn` takes the ledger; what it
 * returns, if not 0, ends the walk. -ENOMEM, errors of readdir(3).
 */
int gmem_ledger_each(struct gmem_ledger_dir *dir,
		     int (*fn)(void *opaque, const char *id, struct gmem_ledger *ledger, int err), void *opaque);

#endif
