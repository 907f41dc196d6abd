/* SPDX-License-Identifier: MIT */
/*
 * gmem migrate, in parts: migrate.c (what both sides share), migrate_journal.c (what a sender leaves for the next one),
 * migrate_send.c (up to the moment the guest is the other machine's), migrate_precopy.c, migrate_serve.c (pages after
 * it), migrate_receive.c, migrate_session.c (links after the first). One thread; the channel's own call the functions
 * named on_event.
 */
#ifndef GMEM_TOOLS_MIGRATE_H
#define GMEM_TOOLS_MIGRATE_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "gmem.h"
#include "link/migrate/migrate.h"
#include "link/qemu.h"
#include "tools/restore.h"
#include "tools/ui.h"

/* Sections of a migration. */
#define MIGRATE_QEMU "qemu" /* as of an image: what is to be started */
#define MIGRATE_STOPPED "qemu-stopped" /* the same once the guest is stopped: its disks as they are now */
#define MIGRATE_STATE "device-state" /* without RAM: x-ignore-shared */
#define MIGRATE_STATE_WHOLE "device-state-whole" /* a stream of pre-copy: not so */
#define MIGRATE_ID "id" /* 32 letters; the first session has MIGRATE_QEMU too, those after it have not */

#define MIGRATE_ID_LEN 32
/* While the guest stands and is still the source's: how long it may, and how long without a link. */
#define MIGRATE_WAIT_MS 30000
#define MIGRATE_LOST_MS 5000

/* Who this machine is, and who the other one must be. */
struct migrate_identity {
	const char *dir; /* ca-cert.pem, cert.pem, key.pem */
	const char *peer; /* a name of the other side's certificate, or "sha256:HEX" */
};

/* GMEM_UI_*, as all here. */
int migrate_tls(const struct migrate_identity *who, struct gmem_tls_ctx **ret);
/* Looks at an option both sides have; false: it is not one. */
bool migrate_take_identity(struct migrate_identity *who, int c, const char *value);
void migrate_catch_signals(void);
int migrate_interrupted(void);
/* "gmem: the link is lost: ...", and the like. */
void migrate_tell_event(const struct gmem_channel_event *event);

/* ---- the sender */

struct migrate_send {
	/* arguments */
	const char *socket, *address, *resume;
	struct migrate_identity who;
	pid_t pid;
	unsigned int precopy; /* rounds */
	bool keep, take_back;

	/* what is known */
	struct gmem_qmp *qmp;
	struct gmem_machine machine;
	struct gmem_device_state state;
	struct gmem_tls_ctx *tls;
	struct gmem_page_server *server;
	struct migrate_journal *journal;
	char id[MIGRATE_ID_LEN + 1];
	struct gmem_page_server_stats before; /* of sessions that are over */
	_Atomic uint64_t lost; /* ns: since when there is no link, after there was one; 0: there is */
	atomic_bool refused; /* the other side does not know our session: it has a new process */
	bool gone; /* GO may have been said: the guest must not run here */
	bool was_running;
	uint64_t begun, prepared, stopped, resumed; /* ns; 0: not yet */
};

int cmd_migrate_send(int argc, char **argv);
int cmd_migrate_receive(int argc, char **argv);

/* migrate_send.c: a page server over the regions of the machine. */
int migrate_new_session(struct migrate_send *s, uint32_t first_ms);
/* migrate_precopy.c: pages while the guest runs; stops it; *ret is its device state. */
int migrate_precopy(struct migrate_send *s, void **ret, size_t *ret_len);
/* migrate_serve.c: answers for pages until the other side has all. */
int migrate_serve(struct migrate_send *s);
int migrate_resume_serving(struct migrate_send *s);

/* What a sender leaves behind for the next one, should it die. */
enum migrate_mark {
	MIGRATE_MARK_STOPPED = 1, /* the guest stands, and may go on here */
	MIGRATE_MARK_GONE = 2, /* it may run on the other machine: never here */
};

struct migrate_journal {
	char path[PATH_MAX];
	char *socket, *address, *dir, *peer; /* of the arguments, paths absolute */
	char id[MIGRATE_ID_LEN + 1];
	pid_t pid;
	bool was_running, keep;
	enum migrate_mark mark;
};

/* Chooses a place for it; nothing is written yet. */
int migrate_journal_new(const struct migrate_send *s, struct migrate_journal **ret);
/* On disk when it returns. */
int migrate_journal_mark(struct migrate_journal *journal, enum migrate_mark mark);
int migrate_journal_read(const char *path, struct migrate_journal **ret);
void migrate_journal_remove(struct migrate_journal *journal);
void migrate_journal_free(struct migrate_journal *journal); /* NULL is allowed; the file stays */

/* ---- the receiver */

#define RESTORE_GO 2 /* beside RESTORE_RESUMED: the source has given the guest up */

struct migrate_receive {
	struct restore r;
	char *address, *dir, *peer;
	char id[MIGRATE_ID_LEN + 1];
	char image_path[128];
	int listen_fd;
	struct gmem_tls_ctx *tls;
	struct gmem_incoming *incoming;
	struct gmem_exchange *exchanges[GMEM_RESTORE_MAX_FILES]; /* by backend */
	atomic_bool refused; /* somebody came with another session: the sender's process is a new one */
	bool reattached; /* there is no session yet, after the first */
	bool running; /* the guest is ours, and runs */
};

/* migrate_session.c: the listening socket, and sessions after the first. */
int migrate_listen(struct migrate_receive *m);
int migrate_new_incoming(struct migrate_receive *m);
/* Puts this session's sources behind the exchanges. */
int migrate_connect_sources(struct migrate_receive *m);
/* One attempt at a session with a sender that knows our guest; 1: there is one. Waits a few seconds at most. */
int migrate_next_session(struct migrate_receive *m);
/* For restore's fill: looks after the session. */
void migrate_tick(struct restore *r);

/* migrate_receive.c: what the local image says of the migration. */
#define MIGRATE_SECTION "migration"

#endif
