/* SPDX-License-Identifier: MIT */
/* Keepers that die, and new ones made of what the program holds. */
#include "keeper_util.h"

#define NPAGES 512ull

/* A keeper made of what the program holds; run in a process of its own. */
static void adopt(struct stage *s)
{
	CHECK_OK(gmem_keeper_adopt(s->sock, s->v, &s->keeper));
	run_keeper(s);
	gmem_keeper_free(s->keeper);
	s->keeper = NULL;
}

TEST_TIMEOUT(keeper_and_server_killed, 60)
{
	const struct server_how idle = { .no_fill = true };
	struct stage s;

	set_stage(&s, NPAGES * 2, 2);
	s.nviews = 3;
	s.views[2] = (struct span){ .file = 0, .off = s.len / 4, .len = s.len / 2 };
	run_keeper(&s);
	start_program(&s);
	atomic_store(&s.shared->go, true);
	for (int i = 0; i < 4; i++) {
		uint64_t touched = atomic_load(&s.shared->touched);
		pid_t server = start_server(&s, &idle);

		WAIT_FOR(atomic_load(&s.shared->touched) > touched + NPAGES / 4);
		kill_and_wait(i & 1 ? server : s.k);
		kill_and_wait(i & 1 ? s.k : server);
		CHECK(in_flight(&s) > 0);
		touched = atomic_load(&s.shared->touched);
		usleep(20000);
		CHECK_EQ(atomic_load(&s.shared->touched), touched);
		adopt(&s);
	}
	CHECK(unserved(&s, NULL) * 10 > 4 * NPAGES);
	finish(&s, start_server(&s, NULL));
}

TEST(server_goes_on_without_its_keeper)
{
	struct gmem_server_status status;
	struct gmem_server *server;
	struct gmem_keeper *none;
	struct stage s;
	char text[32];

	start_stage(&s, NPAGES, 1);
	server = connect_server(&s);
	kill_and_wait(s.k);
	WAIT_FOR((get_status(server, &status), !status.keeper_alive));
	snprintf(text, sizeof(text), "pid %d", (int)getpid());
	CHECK_ERR(gmem_keeper_adopt(s.sock, s.v, &none), -EBUSY);
	CHECK_HAS(gmem_last_error(), text);
	CHECK(access(s.sock, F_OK) != 0);
	atomic_store(&s.shared->go, true);
	WAIT_FOR(atomic_load(&s.shared->touched) == NPAGES);
	gmem_server_free(server);
	atomic_store(&s.shared->complete, true);
	wait_ok(s.v);
	CHECK_ERR(gmem_keeper_adopt(s.sock, s.v, &none), -ESRCH);
	strike_stage(&s);
}

TEST(adopts_only_what_is_gmems)
{
	struct gmem_keeper *none;
	struct stage s;
	char away[128];
	pid_t stranger;

	need_uffd();
	stranger = fork_checked();
	if (!stranger)
		for (;;)
			pause();
	start_stage(&s, NPAGES, 1);
	kill_and_wait(s.k);
	CHECK_ERR(gmem_keeper_adopt(s.sock, stranger, &none), -ENOENT);
	kill_and_wait(stranger);
	CHECK(access(s.sock, F_OK) != 0);

	snprintf(away, sizeof(away), "%s/away", s.dir);
	CHECK_EQ(rename(s.image, away), 0);
	CHECK_ERR(gmem_keeper_adopt(s.sock, s.v, &none), -ENOENT);
	CHECK_HAS(gmem_last_error(), s.image);
	write_image(s.image, 1, s.len);
	CHECK_ERR(gmem_keeper_adopt(s.sock, s.v, &none), -ESTALE);
	CHECK_HAS(gmem_last_error(), s.image);
	CHECK(access(s.sock, F_OK) != 0);
	CHECK_EQ(rename(away, s.image), 0);
	adopt(&s);
	finish(&s, start_server(&s, NULL));
}

/* Of three views two go; what is mapped in their place is not attached, and never touched. */
static void unmap_some(struct stage *s, struct gmem_view **views)
{
	for (int i = 0; i < 2; i++) {
		gmem_view_unmap(views[i]);
		CHECK_OK(gmem_view_map(s->files[0], s->views[i].off, s->views[i].len, PROT_READ | PROT_WRITE,
				       &views[i]));
	}
	atomic_store(&s->shared->answer, 1);
	for (;;)
		pause();
}

TEST(unmapped_view_is_not_adopted)
{
	struct gmem_server_status status;
	struct gmem_server *server;
	struct stage s;

	set_stage(&s, NPAGES, 1);
	s.nviews = 3;
	s.views[1] = (struct span){ .off = 0, .len = s.len / 2 };
	s.views[2] = (struct span){ .off = s.len / 2, .len = s.len / 2 };
	s.program = unmap_some;
	run_keeper(&s);
	start_program(&s);
	WAIT_FOR(atomic_load(&s.shared->answer));
	kill_and_wait(s.k);
	adopt(&s);
	server = connect_server(&s);
	get_status(server, &status);
	CHECK_EQ(status.nregions, 1);
	CHECK_EQ(status.vm_pid, s.v);
	CHECK_ERR(gmem_server_check_mappings(server), -EPERM);
	gmem_server_free(server);
	kill_and_wait(s.v);
	wait_ok(s.k);
	strike_stage(&s);
}
