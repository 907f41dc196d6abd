/* SPDX-License-Identifier: MIT */
/* A conversion that a peer's pin refuses disturbs nobody: a pinned page is never out of reach, not for a moment. */
#include "tap.h"

#include "convert_util.h"

#define N 16u

static _Atomic bool stop;
static _Atomic uint64_t touches;

/* Mapped anew for each touch: what has no translation could be marked without anybody's noticing. */
static void *toucher(void *arg)
{
	char *page = arg;

	while (!atomic_load(&stop)) {
		int byte = peek(page);

		if (byte != 42)
			FAIL("the pinned page reads %d", byte);
		madvise(page, P, MADV_DONTNEED);
		atomic_fetch_add(&touches, 1);
	}
	return NULL;
}

TEST(a_refusal_never_marks_what_is_pinned)
{
	struct gmem_file *file = file_of(N, 0), *peer;
	struct gmem_view *view;
	uint64_t where = 0;
	pthread_t thread;
	char byte = 42;

	need_markers();
	for (uint64_t i = 0; i < N; i++)
		CHECK_OK(gmem_file_write(file, i * P, &byte, 1));
	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &peer));
	view = view_of(peer, 0, N, PROT_READ | PROT_WRITE);
	/* It is registered for markers then. */
	convert(file, 9, 1, PRIVATE);
	convert(file, 9, 1, 0);
	CHECK_OK(gmem_file_pin(peer, 3 * P, P));
	CHECK_EQ(pthread_create(&thread, NULL, toucher, page_of(view, 3)), 0);
	for (int i = 0; i < (tap_slow() ? 300 : 3000); i++) {
		CHECK_ERR(gmem_file_set_attributes(file, 0, N * P, PRIVATE, &where), -EAGAIN);
		CHECK_EQ(where, 3 * P);
	}
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	CHECK(atomic_load(&touches) > 10);
	CHECK_OK(gmem_file_unpin(peer, 3 * P, P));
	CHECK_OK(gmem_file_set_attributes(file, 0, N * P, PRIVATE, NULL));
	CHECK_EQ(peek(page_of(view, 3)), -1);
	gmem_view_unmap(view);
	gmem_file_free(peer);
	gmem_file_free(file);
}
