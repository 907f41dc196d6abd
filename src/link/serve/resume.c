/* SPDX-License-Identifier: MIT */
/*
 * What servers before this one have left: machines by their ledgers, with descriptors from the store or out of the
 * clients themselves; and clients that had not been heard to the end. A machine that cannot be taken up is kept in the
 * list, told of, and tried again: its guest waits, and is not forgotten as long as its process lives.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/err.h"
#include "link/serve/recover.h"
#include "link/serve/service_parts.h"
#include "sys/process.h"

static void vm_event(struct gmem_service_vm *vm, enum gmem_service_event_kind kind, int error, const char *text)
{
	gmem_service_tell(vm->service, &(struct gmem_service_event){
					       .kind = kind,
					       .error = error,
					       .text = text,
					       .vm = vm->id,
					       .name = vm->ledger ? vm->ledger->name : "",
					       .pid = vm->pid,
					       .uid = vm->uid,
				       });
}

static void close_all(const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/*
 * From the store, and what is not there from the client. A descriptor that was taken and then could not be used is
 * closed, and found in the client the next time.
 */
static int get_fds(struct gmem_service_vm *vm, int fds[GMEM_LEDGER_MAX_FDS])
{
	const struct gmem_ledger *l = vm->ledger;
	bool stored[GMEM_LEDGER_MAX_FDS];
	int err;

	for (uint32_t i = 0; i < l->nfds; i++) {
		fds[i] = gmem_store_take(vm->service->store, l->fds[i].name);
		stored[i] = fds[i] >= 0;
		if (fds[i] < 0)
			fds[i] = -1;
	}
	err = gmem_recover_fds(l, vm->pidfd, fds);
	if (err) {
		close_all(fds, l->nfds);
		return err;
	}
	for (uint32_t i = 0; i < l->nfds; i++)
		if (!stored[i] && gmem_store_put(vm->service->store, l->fds[i].name, fds[i]))
			gmem_service_trouble(vm->service, -EIO, "a descriptor is not stored");
	return 0;
}

/* Who was killed between writing it down and taking it off the socket left it there. */
static void consume_again(const struct gmem_ledger *l, int sock)
{
	struct gmem_hello *hello;
	const struct gmem_hello_message *m;

	if (gmem_hello_new(sock, &hello))
		return;
	if (gmem_hello_feed(hello) == 1) {
		m = gmem_hello_message(hello);
		if (m->text_len == strlen(l->hello) && !memcmp(m->text, l->hello, m->text_len))
			gmem_hello_consume(hello);
	}
	gmem_hello_free(hello);
}

/* "NAME\nSPEC[\nIDENTITY]", cut into its parts in place. */
static int cut_source(char *text, struct gmem_session_source *ret)
{
	char *spec = strchr(text, '\n'), *identity;

	if (!spec)
		return gmem_err(-EPROTO, "the ledger names no source");
	*spec++ = 0;
	identity = strchr(spec, '\n');
	if (identity)
		*identity++ = 0;
	*ret = (struct gmem_session_source){ .name = text, .spec = spec, .identity = identity ? identity : "" };
	return 0;
}

/* The working set is today's, if the source still is what it was. */
static void find_workset(const struct gmem_service *sv, struct gmem_session_source *from)
{
	for (int i = 0; i < sv->nsources; i++) {
		if (strcmp(sv->sources[i]->name, from->name) || strcmp(sv->sources[i]->spec, from->spec))
			continue;
		from->workset = sv->sources[i]->workset;
		from->recording = &sv->sources[i]->recording;
	}
}

static int begin_session(struct gmem_service_vm *vm, struct gmem_hello_message *m, int state_fd, int sock)
{
	char *source = strdup(vm->ledger->source ? vm->ledger->source : "");
	struct gmem_session_source from;
	int err = source ? cut_source(source, &from) : gmem_err_sys(-ENOMEM, "a machine");

	if (!err) {
		find_workset(vm->service, &from);
		err = gmem_service_begin(vm, m, state_fd, sock, true, &from);
	}
	free(source);
	return err;
}

/* -ESRCH: it is no more. */
static int take_up(struct gmem_service_vm *vm)
{
	struct gmem_ledger *l = vm->ledger;
	struct gmem_hello_message *m;
	int fds[GMEM_LEDGER_MAX_FDS], state_fd, sock, err;

	err = get_fds(vm, fds);
	if (err)
		return err;
	err = gmem_hello_parse(l->hello ? l->hello : "", l->hello ? strlen(l->hello) : 0, fds, l->nfds, &m);
	if (err) {
		close_all(fds, l->nfds);
		return err;
	}
	m->pid = l->pid;
	m->uid = l->uid;
	m->gid = l->gid;
	m->pidfd = vm->pidfd >= 0 ? fcntl(vm->pidfd, F_DUPFD_CLOEXEC, 0) : -1;
	/* Without it nobody knows which pages are the guest's own, and which were given back. */
	state_fd = gmem_ledger_dir_state(vm->service->dir, vm->id, false);
	if (state_fd < 0) {
		gmem_hello_message_free(m);
		return state_fd;
	}
	sock = *l->connection ? gmem_store_take(vm->service->store, l->connection) : -1;
	if (sock >= 0)
		consume_again(l, sock);
	err = begin_session(vm, m, state_fd, sock < 0 ? -1 : sock);
	if (err) {
		gmem_hello_message_free(m);
		close(state_fd);
		if (sock >= 0)
			close(sock);
	}
	return err;
}

void gmem_service_retry(struct gmem_service_vm *vm)
{
	struct gmem_service *sv = vm->service;
	char why[512];
	int err;

	if (vm->pidfd < 0) {
		vm->pidfd = gmem_recover_process(vm->ledger);
		if (vm->pidfd == -ENODATA || vm->pidfd == -ESRCH) {
			err = vm->pidfd;
			vm->pidfd = -1;
			if (err == -ESRCH)
				goto out_gone;
		} else if (vm->pidfd < 0) {
			vm->pidfd = -1;
		}
	}
	err = take_up(vm);
	if (!err || err == -ESRCH) {
		if (err)
			goto out_gone;
		if (vm->pidfd >= 0)
			close(vm->pidfd);
		vm->pidfd = -1;
		pthread_mutex_lock(&sv->m);
		free(vm->why);
		vm->why = NULL;
		pthread_mutex_unlock(&sv->m);
		return;
	}
	snprintf(why, sizeof(why), "%s", gmem_last_error());
	if (!vm->why || strcmp(vm->why, why)) {
		char *text = strdup(why);

		vm_event(vm, GMEM_SERVICE_LOST, err, why);
		pthread_mutex_lock(&sv->m);
		free(vm->why);
		vm->why = text;
		pthread_mutex_unlock(&sv->m);
	}
	return;

out_gone:
	vm_event(vm, GMEM_SERVICE_ENDED, 0, "its process has ended while nobody served it");
	pthread_mutex_lock(&sv->m);
	sv->ended++;
	pthread_mutex_unlock(&sv->m);
	gmem_service_forget(vm);
}

static int resume_one(void *opaque, const char *id, struct gmem_ledger *ledger, int err)
{
	struct gmem_service *sv = opaque;
	struct gmem_service_vm *vm;

	if (!ledger) {
		gmem_service_trouble(sv, err, id);
		return 0;
	}
	vm = gmem_service_new_vm(sv, id);
	if (!vm) {
		gmem_ledger_free(ledger);
		return gmem_err_sys(-ENOMEM, "gmem_service_run");
	}
	vm->ledger = ledger;
	vm->pid = ledger->pid;
	vm->uid = ledger->uid;
	vm->len = ledger->len;
	vm->since_s = ledger->created_ns / UINT64_C(1000000000);
	gmem_service_retry(vm);
	return 0;
}

static bool has_suffix(const char *name, const char *suffix)
{
	size_t n = strlen(name), m = strlen(suffix);

	return n > m && !strcmp(name + n - m, suffix);
}

/* Does the ledger of a machine that could not be taken up name it? It will be tried again. */
static bool wanted(const struct gmem_service *sv, const char *name)
{
	for (size_t i = 0; i < sv->nvms; i++) {
		size_t n = strlen(sv->vms[i]->id);

		if (!strncmp(name, sv->vms[i]->id, n) && name[n] == '.')
			return true;
	}
	return false;
}

/* What no ledger names: connections are clients that nobody has heard, the rest is rubbish. */
static void sort_out_the_rest(struct gmem_service *sv)
{
	char name[GMEM_STORE_MAX_NAME + 1];
	const char *held;
	size_t i = 0;

	while (gmem_store_held(sv->store, i, &held) >= 0) {
		snprintf(name, sizeof(name), "%s", held);
		if (wanted(sv, name)) {
			i++;
		} else if (has_suffix(name, GMEM_STORE_CONNECTION)) {
			int fd = gmem_store_take(sv->store, name);

			name[strlen(name) - strlen(GMEM_STORE_CONNECTION)] = 0;
			if (fd >= 0)
				gmem_arrival_resume(sv, name, fd);
		} else {
			int fd = gmem_store_take(sv->store, name);

			if (fd >= 0)
				close(fd);
			gmem_store_drop(sv->store, name);
		}
	}
}

int gmem_service_resume(struct gmem_service *sv)
{
	int err;

	if (sv->dir) {
		err = gmem_ledger_each(sv->dir, resume_one, sv);
		if (err)
			return err;
		err = gmem_ledger_dir_sweep(sv->dir);
		if (err < 0)
			gmem_service_trouble(sv, err, "what a dead server left cannot be removed");
	}
	sort_out_the_rest(sv);
	return 0;
}
