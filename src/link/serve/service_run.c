/* SPDX-License-Identifier: MIT */
/* The page server's loop, and what it says of itself. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/pager.h"
#include "link/serve/service_parts.h"
#include "link/serve/text.h"

#define TICK_NS 100000000u
#define IDLE_TICK_NS 1000000000u

int gmem_service_watch(struct gmem_service *sv, int fd, uint32_t events, struct gmem_watch *watch)
{
	struct epoll_event ev = { .events = events, .data.ptr = watch };

	return epoll_ctl(sv->epoll, EPOLL_CTL_ADD, fd, &ev) ? gmem_err_sys(-errno, "gmem_service_run") : 0;
}

void gmem_service_unwatch(struct gmem_service *sv, int fd)
{
	epoll_ctl(sv->epoll, EPOLL_CTL_DEL, fd, NULL);
}

void gmem_service_tell(struct gmem_service *sv, const struct gmem_service_event *event)
{
	if (!sv->opts.event)
		return;
	pthread_mutex_lock(&sv->event_m);
	sv->opts.event(sv->opts.opaque, event);
	pthread_mutex_unlock(&sv->event_m);
}

void gmem_service_trouble(struct gmem_service *sv, int error, const char *what)
{
	struct gmem_text t = { 0 };

	gmem_text_add(&t, "%s: %s", what, gmem_last_error());
	gmem_service_tell(
		sv,
		&(struct gmem_service_event){
			.kind = GMEM_SERVICE_TROUBLE, .error = error, .text = t.s ? t.s : what, .vm = "", .name = "" });
	gmem_text_free(&t);
}

/* ---- metrics */

static void view_unserved(const struct gmem_service_vm *vm, struct gmem_serve_vm *ret)
{
	*ret = (struct gmem_serve_vm){
		.id = vm->id,
		.name = vm->ledger->name,
		.source = "",
		.protocol = vm->ledger->kind,
		.pid = vm->pid,
		.uid = vm->uid,
		.state = GMEM_SERVE_LOST,
		.total_bytes = vm->len,
		.since_s = vm->since_s,
	};
}

/* m is held. */
static int make_text(struct gmem_service *sv, struct gmem_text *t)
{
	struct gmem_serve_vm *vms = calloc(sv->nvms + 1, sizeof(*vms));
	struct gmem_serve_view view = {
		.version = gmem_version(),
		.generation = sv->generation,
		.keeper = gmem_store_minder(sv->store) != GMEM_STORE_NOBODY,
		.start_s = sv->start_s,
		.accepted = sv->accepted,
		.waiting = sv->nwaiting,
		.served = sv->served,
		.ended = sv->ended,
		.vms = vms,
	};

	if (!vms)
		return -ENOMEM;
	memcpy(view.refused, sv->refused, sizeof(view.refused));
	for (size_t i = 0; i < sv->nvms; i++) {
		struct gmem_service_vm *vm = sv->vms[i];

		if (vm->session)
			gmem_session_view(vm->session, &vms[view.nvms++]);
		else if (vm->why)
			view_unserved(vm, &vms[view.nvms++]);
	}
	gmem_serve_metrics(t, &view);
	free(vms);
	return t->failed ? -ENOMEM : 0;
}

int gmem_service_metrics(struct gmem_service *sv, char **ret)
{
	struct gmem_text t = { 0 };
	int err;

	pthread_mutex_lock(&sv->m);
	err = make_text(sv, &t);
	pthread_mutex_unlock(&sv->m);
	if (err) {
		gmem_text_free(&t);
		return gmem_err_sys(err, "gmem_service_metrics");
	}
	*ret = t.s;
	return 0;
}

/* ---- the loop */

static void stop_ready(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events)
{
	atomic_store(&sv->stopping, true);
}

/* A session has ended. */
static void wake_ready(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events)
{
	uint64_t n;

	(void)!read(sv->wake_event, &n, sizeof(n));
	sv->tick_ns = 0;
}

static void accept_ready(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events)
{
	gmem_arrivals_accept(sv);
}

static int watch_all(struct gmem_service *sv)
{
	int err;

	sv->stop_watch.ready = stop_ready;
	sv->wake_watch.ready = wake_ready;
	sv->accept_watch.ready = accept_ready;
	sv->metrics_watch.ready = gmem_scrapes_accept;
	err = gmem_service_watch(sv, sv->stop_event, EPOLLIN, &sv->stop_watch);
	if (!err)
		err = gmem_service_watch(sv, sv->wake_event, EPOLLIN, &sv->wake_watch);
	if (!err)
		err = gmem_service_watch(sv, gmem_store_accept_fd(sv->store), EPOLLIN, &sv->accept_watch);
	if (!err && sv->metrics_fd >= 0)
		err = gmem_service_watch(sv, sv->metrics_fd, EPOLLIN, &sv->metrics_watch);
	return err;
}

static void tick(struct gmem_service *sv, uint64_t now)
{
	uint64_t watchdog = gmem_store_watchdog_usec(sv->store) * 1000;

	if (watchdog && now >= sv->watchdog_ns) {
		gmem_store_watchdog(sv->store);
		sv->watchdog_ns = now + watchdog;
	}
	if (now < sv->tick_ns)
		return;
	gmem_arrivals_tick(sv, now);
	gmem_service_vms_tick(sv, now);
	gmem_scrapes_tick(sv, now);
	sv->tick_ns = now + TICK_NS;
}

/* How long the loop may sleep, in ms. */
static int next_ms(const struct gmem_service *sv, uint64_t now)
{
	uint64_t watchdog = gmem_store_watchdog_usec(sv->store) * 1000, until = now + IDLE_TICK_NS;

	if (!sv->tick_ns)
		return 0;
	if (sv->arrivals)
		until = gmem_min_u64(until, sv->tick_ns);
	if (watchdog)
		until = gmem_min_u64(until, sv->watchdog_ns);
	for (size_t i = 0; i < sv->nvms; i++)
		until = gmem_min_u64(until, gmem_max_u64(sv->vms[i]->next_ns, sv->tick_ns));
	return until > now ? (int)((until - now + 999999) / 1000000) : 0;
}

int gmem_service_run(struct gmem_service *sv)
{
	int err = watch_all(sv);

	if (!err)
		err = gmem_service_resume(sv);
	if (err)
		return err;
	gmem_store_ready(sv->store, NULL);
	while (!atomic_load(&sv->stopping)) {
		struct epoll_event ev;
		/* One at a time: what is waited for may go while another is attended to. */
		int n = epoll_wait(sv->epoll, &ev, 1, next_ms(sv, gmem_now_ns()));

		if (n < 0 && errno != EINTR)
			return gmem_err_sys(-errno, "gmem_service_run");
		if (n == 1) {
			struct gmem_watch *watch = ev.data.ptr;

			watch->ready(sv, watch, ev.events);
		}
		tick(sv, gmem_now_ns());
	}
	gmem_store_stopping(sv->store);
	return 0;
}

void gmem_service_stop(struct gmem_service *sv)
{
	uint64_t one = 1;

	(void)!write(sv->stop_event, &one, sizeof(one));
}
