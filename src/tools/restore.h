/* SPDX-License-Identifier: MIT */
/*
 * gmem restore, in parts: restore.c (arguments), restore_start.c (memory, QEMU, device state), restore_keeper.c (the
 * keeper, and joining one), restore_serve.c (pages, and what is told of them), restore_workset.c (which come first).
 * One thread, and one more that replays a working set; no lock.
 */
#ifndef GMEM_TOOLS_RESTORE_H
#define GMEM_TOOLS_RESTORE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "gmem.h"
#include "link/qemu.h"
#include "tools/ui.h"

#define GMEM_RESTORE_MAX_FILES 32

struct restore {
	/* arguments */
	const char *path; /* image */
	const char *socket; /* of the keeper; NULL: one is made up */
	const char *reattach; /* socket of a keeper, or pid of the program */
	struct gmem_cmdline *override;
	const char *record_path, *replay_path; /* working sets, NULL: none */
	bool eager, no_fill, detach, take_over, learn;
	/*
	 * gmem migrate receive: a machine that comes from another one. The image has its regions and how it is started,
	 * and `source` its pages; all other answers are those of a restore.
	 */
	bool incoming;
	int (*source)(void *opaque, struct gmem_image *image, size_t region, struct gmem_source **ret);
	void (*completed)(struct restore *r); /* every page is in place, or the machine has ended */
	void (*tick)(struct restore *r); /* now and then while pages are missing */
	int (*unresumed)(struct restore *r); /* joined a guest that had not run yet */
	void *migration;

	/* what is running */
	char keeper_path[100], qmp_path[108];
	char kernel_user[64]; /* an option that has the kernel touch guest memory, "" if there is none */
	struct gmem_image *image;
	struct gmem_saved *saved;
	struct gmem_file *files[GMEM_RESTORE_MAX_FILES];
	size_t nfiles;
	struct gmem_keeper *keeper;
	struct gmem_server *server;
	struct gmem_qmp *qmp;
	int vm_status; /* QEMU's exit code, once vm is 0 again */
	pid_t vm; /* QEMU, our child unless reattached; 0: none */
	bool child, killed; /* ours to wait for; by ourselves */
	int process; /* a descriptor of it; -1: none */
	uint64_t begun, ready, resumed; /* ns; 0: not yet */
	struct gmem_workset *recorded, *replayed;
	pthread_t replayer;
	bool replaying; /* the thread has to be joined; what follows is its until then */
	int64_t replay_result;
	uint64_t replay_end; /* ns */
	char replay_error[256];
};

/* restore_start.c: up to a guest that runs. GMEM_UI_*, as all of these. */
int restore_start(struct restore *r);
/* The same in two parts: up to a QEMU that waits for its state; and back, if the guest does not come to run. */
int restore_prepare(struct restore *r);
void restore_undo(struct restore *r);
/* Gives back all that is held. */
void restore_clean_up(struct restore *r);
/* Tells why QEMU does not answer. */
int restore_qemu_failed(struct restore *r);
int restore_find_region(const struct restore *r, const struct gmem_saved_backend *backend, size_t *ret);
/* Gives the device state to a QEMU that waits for it, and lets the guest go on if it ran when it was saved. */
int restore_load_state(struct restore *r);
int restore_resume(struct restore *r);
/* Is the QEMU behind r->qmp one that can take the state, and is all of its memory served? */
int restore_check_vm(struct restore *r);

/*
 * The note left with the memory (gmem_server_set_note()) once the guest runs: from then on, a pause is somebody's
 * wish.
 */
#define RESTORE_RESUMED 1

/* restore_keeper.c. */
/* A folder that only this user can enter. `len` at least 80. */
int restore_runtime_folder(char *buf, size_t len);
int restore_name_sockets(struct restore *r, const char *given);
int restore_start_keeper(struct restore *r);
int restore_connect(struct restore *r);
/* Joins a guest that another server has left. */
int restore_join(struct restore *r);

/* restore_workset.c. The files are opened before anything is started; it begins before the guest runs. */
int restore_workset_open(struct restore *r);
int restore_workset_begin(struct restore *r);
/* Tells, and writes what is to be kept. Before the server ends. `filled_pages`: of a fill that has just ended, or 0. */
void restore_workset_end(struct restore *r, uint64_t filled_pages);
void restore_workset_close(struct restore *r);

/* Where this process was told to stop: the signal's number, or 0. */
int restore_interrupted(void);
void restore_catch_signals(void);
/* QEMU's exit code, once it has ended; -1 while it runs. Waits for so long; -1: until it ends or a signal comes. */
int restore_vm_status(struct restore *r, int timeout_ms);

/* restore_serve.c: fills, tells, waits. */
int restore_serve(struct restore *r);
void restore_event(void *opaque, const struct gmem_pager_event *event);

#endif
