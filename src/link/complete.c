/* SPDX-License-Identifier: MIT */
#include "link/complete.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/state.h"

#define POLL_MS 50
#define STALL_MS 30000

/* Pages not in place yet; lost ones are counted apart. */
static uint64_t count_absent(const struct gmem_state *state, uint64_t *ret_lost)
{
	uint64_t absent = 0, lost = 0;

	for (uint64_t page = 0; page < state->npages; page++) {
		uint32_t word = gmem_state_word(state, page);

		absent += gmem_word_absent(word);
		lost += !!(word & GMEM_WORD_POISONED);
	}
	*ret_lost = lost;
	return absent;
}

static int no_server(pid_t pid, const struct gmem_state *state, uint64_t absent)
{
	return gmem_err(-EBUSY,
			"%llu pages of process %d are still in the image it is restored from (%s), and nobody serves "
			"them: gmem restore --reattach first",
			(unsigned long long)absent, (int)pid, state->header->image_path);
}

/* The server is asked to fill, and watched: one that cannot go on is not waited for without end. */
static int wait_for_table(pid_t pid, struct gmem_state *state, gmem_progress_fn progress, void *opaque)
{
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };
	uint64_t absent, lost, before = UINT64_MAX;
	unsigned int still = 0;
	int err;

	while ((absent = count_absent(state, &lost))) {
		atomic_store(&state->header->fill_wanted, 1);
		if (!gmem_state_server_alive(state))
			return no_server(pid, state, absent);
		still = absent < before ? 0 : still + 1;
		before = absent;
		if (still > STALL_MS / POLL_MS)
			return gmem_err(
				-ETIMEDOUT,
				"%llu pages of process %d are not in place, and its page server (process %d) has "
				"brought in none for %d s: see what that one says",
				(unsigned long long)absent, (int)pid, (int)atomic_load(&state->header->server_pid),
				STALL_MS / 1000);
		if (progress) {
			err = progress(opaque, (state->npages - absent) * GMEM_PAGE_SIZE,
				       state->npages * GMEM_PAGE_SIZE);
			if (err)
				return err;
		}
		nanosleep(&pause, NULL);
	}
	if (lost)
		return gmem_err(-EHWPOISON,
				"%llu pages of process %d are lost (their image is damaged): a save would make that "
				"final",
				(unsigned long long)lost, (int)pid);
	return 0;
}

struct waiting {
	pid_t pid;
	gmem_progress_fn progress;
	void *opaque;
};

static int complete_table(void *opaque, int number)
{
	const struct waiting *w = opaque;
	struct gmem_state state;
	char path[64];
	int fd, err;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)w->pid, number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return gmem_err_sys(-errno, "%s", path);
	err = gmem_state_open(&state, fd);
	close(fd);
	if (err)
		return err;
	err = wait_for_table(w->pid, &state, w->progress, w->opaque);
	gmem_state_close(&state);
	return err;
}

int gmem_complete_memory(pid_t pid, gmem_progress_fn progress, void *opaque)
{
	struct waiting w = { .pid = pid, .progress = progress, .opaque = opaque };

	return gmem_state_find(pid, complete_table, &w);
}
