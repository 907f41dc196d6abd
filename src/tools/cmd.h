/* SPDX-License-Identifier: MIT */
/*
 * The subcommands of gmem.
 * Enters: arguments, argv[0] being the subcommand's name. Leaves: an exit code (GMEM_UI_*). One thread calls one of
 * them once.
 */
#ifndef GMEM_TOOLS_CMD_H
#define GMEM_TOOLS_CMD_H

/* A subcommand whose file is not in this build is NULL here, and main says so. */
#define GMEM_CMD __attribute__((weak))

GMEM_CMD int cmd_info(int argc, char **argv);
GMEM_CMD int cmd_run(int argc, char **argv);
GMEM_CMD int cmd_save(int argc, char **argv);
GMEM_CMD int cmd_restore(int argc, char **argv);
GMEM_CMD int cmd_migrate(int argc, char **argv);
GMEM_CMD int cmd_serve(int argc, char **argv);
GMEM_CMD int cmd_inspect(int argc, char **argv);
GMEM_CMD int cmd_verify(int argc, char **argv);
GMEM_CMD int cmd_measure(int argc, char **argv);
GMEM_CMD int cmd_launch(int argc, char **argv);

#endif
