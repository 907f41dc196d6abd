/* SPDX-License-Identifier: MIT */
/*
 * The device state of a virtual machine: taken from a running QEMU, given to a waiting one.
 *
 * Enters: a monitor. Leaves: the bytes of a migration stream without RAM (x-ignore-shared), and a machine that is
 * stopped, or as it was before. Who owns it: the caller. No lock.
 */
#ifndef GMEM_LINK_DEVICE_STATE_H
#define GMEM_LINK_DEVICE_STATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gmem_qmp;

/* More than this in a stream means that RAM is in it. */
#define GMEM_STATE_MAX (256ull << 20)

/*
 * What gmem_device_state_stop() found, so that gmem_device_state_resume() can put it back. Zero-initialised by the
 * caller.
 */
struct gmem_device_state {
	char status[24]; /* QEMU's word: "running", "paused", "prelaunch" */
	bool was_running;
	bool stopped;
	bool migrated; /* the machine is in `postmigrate`, its disks are not QEMU's any more */
	json_t *caps; /* capabilities to switch back */
	int64_t bandwidth; /* limit to set back, -1: none */
	uint64_t stop_ns; /* CLOCK_MONOTONIC when it was stopped */
};

/*
 * Optional, on a machine that runs: what gmem_device_state_take() would ask and set first. Undone by
 * gmem_device_state_resume().
 */
int gmem_device_state_prepare(struct gmem_qmp *qmp, struct gmem_device_state *state);

/* -EBUSY for a machine that cannot be saved as it is now (waiting for a stream, crashed, saved before and not
 * continued). */
int gmem_device_state_stop(struct gmem_qmp *qmp, struct gmem_device_state *state);

/* Takes the stream, allocated. The machine must be stopped. -EFBIG (RAM is in it), -EREMOTEIO, -ETIMEDOUT. */
int gmem_device_state_take(struct gmem_qmp *qmp, struct gmem_device_state *state, void **ret, size_t *ret_len);

/* Switches capabilities back and lets the machine go on if it ran. *ret_stopped_ns, which may be NULL: how long it was
 * stopped. */
int gmem_device_state_resume(struct gmem_qmp *qmp, struct gmem_device_state *state, uint64_t *ret_stopped_ns);
void gmem_device_state_clear(struct gmem_device_state *state);

/*
 * In parts, for those who read the stream themselves. `shared`: without RAM (x-ignore-shared). *ret_back: what to set
 * state->caps to.
 */
int gmem_device_state_caps(struct gmem_qmp *qmp, bool shared, json_t **ret_back);
void gmem_device_state_lift_bandwidth(struct gmem_qmp *qmp, struct gmem_device_state *state);
int gmem_device_state_wait(struct gmem_qmp *qmp);
/* Waits until QEMU has let go of the stream; the error text of `err`, which went wrong, is kept. */
void gmem_device_state_cancel(struct gmem_qmp *qmp, int err);

/*
 * Gives a stream to a QEMU that was started with `-incoming defer` and waits until it is loaded; the machine is then
 * paused. `shared`: it was taken with x-ignore-shared. -EREMOTEIO: QEMU's own words; -ECONNRESET: it ended (its stderr
 * says why).
 */
int gmem_device_state_load(struct gmem_qmp *qmp, const void *data, size_t len, bool shared);

/* `cont`. */
int gmem_device_state_cont(struct gmem_qmp *qmp);

#endif
