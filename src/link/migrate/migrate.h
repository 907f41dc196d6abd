/* SPDX-License-Identifier: MIT */
/*
 * A migration, for the command that moves a machine: all of this folder that tools may use.
 *
 * Enters: a running QEMU's memory and monitor, or a socket to listen on. Leaves: a guest on the other side; see each
 * header, and channel.h for who may run it when.
 */
#ifndef GMEM_LINK_MIGRATE_MIGRATE_H
#define GMEM_LINK_MIGRATE_MIGRATE_H

#include "link/migrate/dirty_log.h"
#include "link/migrate/exchange.h"
#include "link/migrate/incoming.h"
#include "link/migrate/page_server.h"

#endif
