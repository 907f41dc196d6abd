/* SPDX-License-Identifier: MIT */
/*
 * A machine's beginning and its end. It exists from the moment on that its ledger is written, until that is removed;
 * what is stored or lies on the socket before and after means nothing (store.h).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/pager.h"
#include "link/serve/service_parts.h"
#include "link/serve/text.h"

/* How often a machine is asked whether it still exists, by itself and when its process seems to have ended. */
#define LOOK_NS 5000000000u
#define LOOK_AGAIN_NS 100000000u
#define RETRY_NS 2000000000u
#define BARRIER_MS 2000u

/* ---- events of sessions, in their threads */

static void session_event(void *opaque, const struct gmem_session *session, enum gmem_service_event_kind kind,
			  int error, const char *text)
{
	struct gmem_service_vm *vm = opaque;

	if (kind == GMEM_SERVICE_REFUSED)
		gmem_service_count_refusal(vm->service, error == -ERANGE ? GMEM_REFUSED_SOURCE : GMEM_REFUSED_PROTOCOL);
	gmem_service_tell(vm->service, &(struct gmem_service_event){
					       .kind = kind,
					       .error = error,
					       .text = text,
					       .vm = vm->id,
					       .name = gmem_session_message(session)->name,
					       .pid = vm->pid,
					       .uid = vm->uid,
				       });
}

/* Which bytes it has begun with: nothing else may serve it from now on. */
static int session_opened(void *opaque, const struct gmem_session *session, const char *identity)
{
	struct gmem_service_vm *vm = opaque;
	struct gmem_text text = { 0 };
	const char *spec;
	int err = -ENOMEM;

	if (!vm->ledger)
		return 0;
	spec = strchr(vm->ledger->source, '\n');
	if (spec && strchr(spec + 1, '\n'))
		return 0; /* it is known */
	gmem_text_add(&text, "%s\n%s", vm->ledger->source, identity);
	if (!text.failed)
		err = gmem_ledger_set(&vm->ledger->source, text.s);
	gmem_text_free(&text);
	return err ? err : gmem_ledger_write(vm->service->dir, vm->ledger);
}

/* ---- the list */

/* A guest and the reader that serves it, at work at once, have two processors. */
static void count_processors(struct gmem_service *sv)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	atomic_store(&sv->crowded, 2 * (long)sv->nvms > n);
}

struct gmem_service_vm *gmem_service_new_vm(struct gmem_service *sv, const char *id)
{
	struct gmem_service_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	vm->service = sv;
	vm->pidfd = vm->watched = -1;
	snprintf(vm->id, sizeof(vm->id), "%s", id);
	pthread_mutex_lock(&sv->m);
	if (sv->nvms == sv->room) {
		size_t room = sv->room ? 2 * sv->room : 16;
		struct gmem_service_vm **vms = realloc(sv->vms, room * sizeof(*vms));

		if (!vms) {
			pthread_mutex_unlock(&sv->m);
			free(vm);
			return NULL;
		}
		sv->vms = vms;
		sv->room = room;
	}
	sv->vms[sv->nvms++] = vm;
	count_processors(sv);
	pthread_mutex_unlock(&sv->m);
	return vm;
}

static void unlist(struct gmem_service_vm *vm)
{
	struct gmem_service *sv = vm->service;

	pthread_mutex_lock(&sv->m);
	for (size_t i = 0; i < sv->nvms; i++)
		if (sv->vms[i] == vm)
			sv->vms[i--] = sv->vms[--sv->nvms];
	count_processors(sv);
	pthread_mutex_unlock(&sv->m);
}

/* Ledger and store, and nothing else. */
static void erase(struct gmem_service_vm *vm)
{
	char name[GMEM_STORE_MAX_NAME + 1];
	int err;

	if (vm->service->dir) {
		err = gmem_ledger_remove(vm->service->dir, vm->id);
		if (err)
			gmem_service_trouble(vm->service, err, "a machine that has ended stays written down");
	}
	for (uint32_t i = 0; vm->ledger && i < vm->ledger->nfds; i++)
		gmem_store_drop(vm->service->store, vm->ledger->fds[i].name);
	snprintf(name, sizeof(name), "%s" GMEM_STORE_CONNECTION, vm->id);
	gmem_store_drop(vm->service->store, name);
}

void gmem_service_forget(struct gmem_service_vm *vm)
{
	unlist(vm);
	if (vm->watched >= 0)
		gmem_service_unwatch(vm->service, vm->watched);
	erase(vm);
	gmem_session_free(vm->session);
	gmem_ledger_free(vm->ledger);
	if (vm->pidfd >= 0)
		close(vm->pidfd);
	free(vm->why);
	free(vm);
}

/* ---- its process has ended, it seems */

static void vm_ready(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events)
{
	struct gmem_service_vm *vm = (struct gmem_service_vm *)watch;

	gmem_service_unwatch(sv, vm->watched);
	vm->watched = -1;
	vm->next_ns = 0;
	sv->tick_ns = 0;
}

static void look_after(struct gmem_service_vm *vm, uint64_t now)
{
	struct gmem_service *sv = vm->service;

	if (!vm->session) {
		vm->next_ns = now + RETRY_NS;
		gmem_service_retry(vm);
		return;
	}
	vm->next_ns = now + (vm->watched < 0 ? LOOK_AGAIN_NS : LOOK_NS);
	if (vm->ending || gmem_session_alive(vm->session))
		return;
	vm->ending = true;
	gmem_session_end(vm->session);
	pthread_mutex_lock(&sv->m);
	sv->ended++;
	pthread_mutex_unlock(&sv->m);
	gmem_service_tell(sv, &(struct gmem_service_event){
				      .kind = GMEM_SERVICE_ENDED,
				      .text = "its process has ended",
				      .vm = vm->id,
				      .name = gmem_session_message(vm->session)->name,
				      .pid = vm->pid,
				      .uid = vm->uid,
			      });
}

void gmem_service_vms_tick(struct gmem_service *sv, uint64_t now)
{
	for (size_t i = sv->nvms; i-- > 0;) {
		struct gmem_service_vm *vm = sv->vms[i];

		if (vm->session && gmem_session_over(vm->session))
			gmem_service_forget(vm);
		else if (now >= vm->next_ns)
			look_after(vm, now);
	}
}

/* ---- admitting */

static int choose_source(struct gmem_service *sv, const struct gmem_arrival *a, const struct gmem_hello_message *m)
{
	if (!*m->source)
		return a->source >= 0 ? a->source : gmem_err(-ENOENT, "there is no source");
	for (int i = 0; i < sv->nsources; i++)
		if (!strcmp(sv->sources[i]->name, m->source))
			return i;
	return gmem_err(-ENOENT, "there is no source '%s'", m->source);
}

/* `len`: what the machine has, and what its table of page states covers. */
static int check_limits(struct gmem_service *sv, const struct gmem_hello_message *m)
{
	uint64_t len = gmem_max_u64(m->total_len, m->source_end), all = 0, users = 0;
	size_t nusers = 0;

	for (size_t i = 0; i < sv->nvms; i++) {
		all += sv->vms[i]->len;
		users += sv->vms[i]->uid == m->uid ? sv->vms[i]->len : 0;
		nusers += sv->vms[i]->uid == m->uid;
	}
	if (sv->nvms >= sv->opts.max_vms)
		return gmem_err(-EUSERS, "%zu machines are served, which is the limit", sv->nvms);
	if (nusers >= sv->opts.max_vms_per_user)
		return gmem_err(-EUSERS, "%zu machines of user %u are served, which is the limit", nusers,
				(unsigned int)m->uid);
	if (all > sv->opts.max_memory || len > sv->opts.max_memory - all)
		return gmem_err(-EDQUOT, "%llu bytes of memory besides %llu that are served: more than the limit",
				(unsigned long long)len, (unsigned long long)all);
	if (users > sv->opts.max_memory_per_user || len > sv->opts.max_memory_per_user - users)
		return gmem_err(-EDQUOT, "%llu bytes of memory besides %llu of user %u: more than the limit",
				(unsigned long long)len, (unsigned long long)users, (unsigned int)m->uid);
	/* A table has four bytes a page; more than any machine has is a lie. */
	if (len > UINT64_C(1) << 46)
		return gmem_err(-EINVAL, "memory up to 0x%llx", (unsigned long long)len);
	return 0;
}

/* A range that is registered with the n-th userfault descriptor of the message. */
static const struct gmem_hello_region *region_of(const struct gmem_hello_message *m, int fd)
{
	for (uint32_t i = 0; i < m->nregions; i++)
		if (m->uffds[m->regions[i].uffd] == fd)
			return &m->regions[i];
	return NULL;
}

static int store_fds(struct gmem_service_vm *vm, const struct gmem_hello_message *m)
{
	int fds[GMEM_HELLO_MAX_FDS], err = 0;
	size_t n = gmem_hello_fds(m, fds);

	for (size_t i = 0; i < n && !err; i++) {
		const struct gmem_hello_region *r = region_of(m, fds[i]);

		err = gmem_ledger_add_fd(vm->ledger, fds[i], r ? r->hva : 0, r ? r->len : 0);
		/* Not stored, it may still be found in its process: that is trouble, and no reason to refuse. */
		if (!err && gmem_store_put(vm->service->store, vm->ledger->fds[i].name, fds[i]))
			gmem_service_trouble(vm->service, -EIO, "a descriptor is not stored");
	}
	return err;
}

static int write_down(struct gmem_service_vm *vm, const struct gmem_hello_message *m,
		      const struct gmem_service_source *source, int *ret_state_fd)
{
	struct gmem_service *sv = vm->service;
	struct gmem_text text = { 0 };
	struct gmem_ledger *l;
	int err, fd;

	err = gmem_ledger_new(vm->id, m->pid, &vm->ledger);
	if (err)
		return err;
	l = vm->ledger;
	snprintf(l->name, sizeof(l->name), "%s", m->name);
	snprintf(l->kind, sizeof(l->kind), "%s", gmem_session_protocol(m));
	snprintf(l->connection, sizeof(l->connection), "%s" GMEM_STORE_CONNECTION, vm->id);
	l->uid = m->uid;
	l->gid = m->gid;
	l->len = m->source_end;
	l->page_size = m->page_size;
	l->created_ns = vm->since_s * UINT64_C(1000000000);
	gmem_text_add(&text, "%.*s", (int)m->text_len, m->text);
	err = text.failed ? -ENOMEM : gmem_ledger_set(&l->hello, text.s);
	gmem_text_free(&text);
	gmem_text_add(&text, "%s\n%s", source->name, source->spec);
	if (!err)
		err = text.failed ? -ENOMEM : gmem_ledger_set(&l->source, text.s);
	gmem_text_free(&text);
	if (!err)
		err = store_fds(vm, m);
	if (err)
		return err;
	gmem_store_barrier(sv->store, BARRIER_MS);
	fd = gmem_ledger_dir_state(sv->dir, vm->id, true);
	if (fd < 0)
		return fd;
	err = gmem_ledger_write(sv->dir, l);
	if (err) {
		close(fd);
		return err;
	}
	*ret_state_fd = fd;
	return 0;
}

static void tell_beginning(struct gmem_service_vm *vm, const struct gmem_hello_message *m, bool resumed)
{
	char text[160];

	snprintf(text, sizeof(text), "%s, %llu bytes in %u regions, pages of %llu", gmem_session_protocol(m),
		 (unsigned long long)m->total_len, m->nregions, (unsigned long long)m->page_size);
	gmem_service_tell(vm->service, &(struct gmem_service_event){
					       .kind = resumed ? GMEM_SERVICE_RESUMED : GMEM_SERVICE_CONNECTED,
					       .text = text,
					       .vm = vm->id,
					       .name = m->name,
					       .pid = vm->pid,
					       .uid = vm->uid,
				       });
}

int gmem_service_begin(struct gmem_service_vm *vm, struct gmem_hello_message *message, int state_fd, int sock,
		       bool resumed, const struct gmem_session_source *source)
{
	struct gmem_service *sv = vm->service;
	struct gmem_session_how how = {
		.id = vm->id,
		.message = message,
		.source = *source,
		.state_fd = state_fd,
		.sock = sock,
		.resumed = resumed,
		.since_s = vm->since_s,
		.opts = &sv->opts,
		.event = session_event,
		.opened = session_opened,
		.opaque = vm,
		.crowded = &sv->crowded,
		.wake_fd = sv->wake_event,
	};
	struct gmem_session *session;
	int err;

	vm->watch.ready = vm_ready;
	vm->len = gmem_max_u64(message->total_len, message->source_end);
	vm->next_ns = gmem_now_ns() + LOOK_NS;
	/* Not watched, it is asked. */
	if (message->pidfd >= 0 && !gmem_service_watch(sv, message->pidfd, EPOLLIN, &vm->watch))
		vm->watched = message->pidfd;
	tell_beginning(vm, message, resumed);
	err = gmem_session_begin(&how, &session);
	if (err) {
		if (vm->watched >= 0)
			gmem_service_unwatch(sv, vm->watched);
		vm->watched = -1;
		return err;
	}
	pthread_mutex_lock(&sv->m);
	vm->session = session;
	sv->served++;
	pthread_mutex_unlock(&sv->m);
	return 0;
}

int gmem_service_admit(struct gmem_service *sv, struct gmem_arrival *a, enum gmem_serve_refusal *ret_why)
{
	const struct gmem_hello_message *m = gmem_hello_message(a->hello);
	int source = choose_source(sv, a, m), state_fd = -1, err;
	struct gmem_session_source from;
	struct gmem_service_vm *vm;

	*ret_why = GMEM_REFUSED_SOURCE;
	if (source < 0)
		return source;
	*ret_why = GMEM_REFUSED_LIMIT;
	err = check_limits(sv, m);
	if (err)
		return err;
	*ret_why = GMEM_REFUSED_OTHER;
	vm = gmem_service_new_vm(sv, a->id);
	if (!vm)
		return gmem_err_sys(-ENOMEM, "a machine");
	vm->pid = m->pid;
	vm->uid = m->uid;
	vm->since_s = (uint64_t)time(NULL);
	from = (struct gmem_session_source){
		.name = sv->sources[source]->name,
		.spec = sv->sources[source]->spec,
		.identity = "",
		.workset = sv->sources[source]->workset,
		.recording = &sv->sources[source]->recording,
	};
	err = sv->dir ? write_down(vm, m, sv->sources[source], &state_fd) : 0;
	if (!err)
		err = gmem_hello_consume(a->hello);
	if (!err) {
		struct gmem_hello_message *message = gmem_hello_take(a->hello);

		gmem_service_unwatch(sv, a->fd);
		err = gmem_service_begin(vm, message, state_fd, a->fd, false, &from);
		if (!err) {
			a->fd = -1;
			return 0;
		}
		gmem_hello_message_free(message);
	}
	if (state_fd >= 0)
		close(state_fd);
	gmem_service_forget(vm);
	return err;
}
