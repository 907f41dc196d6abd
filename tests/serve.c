/* SPDX-License-Identifier: MIT */
/* The page server as a whole: every version of Firecracker's handshake, balloons, many machines, sources by name. */
#include "serve_scene.h"

#define LEN (SLOW_BUILD ? 8 * MIB : 32 * MIB)

static void use_as_a_guest_does(struct fc_client *c, uint64_t len, bool balloon)
{
	CHECK_EQ(fc_read(c, len / 2, MIB), 0);
	if (balloon)
		CHECK_EQ(fc_balloon(c, MIB, MIB), 0);
	CHECK_EQ(fc_read(c, 0, 3 * MIB), 0);
	CHECK_EQ(fc_write(c, len / 4, 64 * P, 7), 0);
	if (balloon)
		CHECK_EQ(fc_balloon(c, len / 4, 16 * P), 0);
	CHECK_EQ(fc_syscall(c, len - MIB, MIB), 0);
	CHECK_EQ(fc_storm(c, 4, 200, tap_seed()), 0);
	CHECK_EQ(fc_read(c, 0, len), 0);
}

static void one_machine(enum fc_version version, uint32_t flags, bool balloon)
{
	struct fc_options o;
	struct fc_client *c;
	struct serve s;

	serve_set(&s, LEN);
	s.opts.flags = flags;
	serve_start(&s);
	o = serve_client(&s, version);
	o.no_balloon = !balloon;
	o.sizes[0] = LEN / 2;
	o.sizes[1] = LEN / 2;
	c = fc_start(&o);
	use_as_a_guest_does(c, LEN, balloon);
	if (!(flags & GMEM_SERVICE_NO_FILL))
		WAIT_FOR(atomic_load(&s.seen->events[GMEM_SERVICE_COMPLETE]));
	CHECK_EQ(fc_read(c, 0, LEN), 0);
	CHECK_EQ(serve_metric(&s, "gmem_serve_vms "), 1);
	fc_end(c);
	WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 0);
	CHECK_EQ(atomic_load(&s.seen->events[GMEM_SERVICE_CONNECTED]), 1);
	CHECK_EQ(atomic_load(&s.seen->events[GMEM_SERVICE_SERVING]), 1);
	CHECK_EQ(atomic_load(&s.seen->events[GMEM_SERVICE_ENDED]), 1);
	CHECK_EQ(atomic_load(&s.seen->events[GMEM_SERVICE_REFUSED]), 0);
	serve_end(&s);
}

TEST_TIMEOUT(firecracker_1_1_to_1_6, 60)
{
	one_machine(FC_1_1, 0, true);
	one_machine(FC_1_1, GMEM_SERVICE_NO_FILL, false);
}

TEST_TIMEOUT(firecracker_1_7_to_1_11, 60)
{
	one_machine(FC_1_7, 0, true);
	one_machine(FC_1_7, GMEM_SERVICE_NO_FILL, true);
}

TEST_TIMEOUT(firecracker_1_12_and_later, 60)
{
	one_machine(FC_1_12, 0, true);
	one_machine(FC_1_12, GMEM_SERVICE_NO_FILL, true);
}

TEST_TIMEOUT(many_machines_of_one_snapshot, 60)
{
	struct fc_client *c[4];
	struct fc_options o;
	struct serve s;

	serve_set(&s, LEN);
	serve_start(&s);
	for (int i = 0; i < 4; i++) {
		o = serve_client(&s, i % 2 ? FC_1_12 : FC_1_1);
		c[i] = fc_start(&o);
	}
	for (int i = 0; i < 4; i++)
		fc_begin(c[i], FC_STORM, 4, 200, (uint64_t)i + 1);
	for (int i = 0; i < 4; i++) {
		int ret;

		CHECK_EQ(fc_wait(c[i], -1, &ret), 1);
		CHECK_EQ(ret, 0);
		CHECK_EQ(fc_read(c[i], 0, LEN), 0);
	}
	CHECK_EQ(serve_metric(&s, "gmem_serve_vms "), 4);
	fc_kill(c[0]);
	WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 3);
	for (int i = 1; i < 4; i++) {
		CHECK_EQ(fc_read(c[i], 0, LEN), 0);
		fc_end(c[i]);
	}
	WAIT_FOR(serve_metric(&s, "gmem_serve_vms ") == 0);
	serve_end(&s);
}
