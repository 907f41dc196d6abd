/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/err.h"
#include "link/serve/hello.h"

/* One line, as the other side puts it into a text of its own. JSON wants UTF-8, and a text may quote anything. */
static char *printable(const char *text)
{
	char *copy = strdup(text);

	for (char *p = copy; p && *p; p++)
		if (*p < ' ' || *p > '~')
			*p = '?';
	return copy;
}

static char *answer_text(int error, const char *text)
{
	char *words, *line = NULL;
	json_t *root;

	if (!error)
		return strdup("{\"gmem\":1,\"ok\":true}\n");
	words = printable(text ? text : "");
	root = words ? json_pack("{s:i,s:b,s:i,s:s}", "gmem", 1, "ok", 0, "error", -error, "text", words) : NULL;
	free(words);
	if (root)
		line = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	if (line) {
		char *more = realloc(line, strlen(line) + 2);

		if (!more)
			free(line);
		else
			strcat(more, "\n");
		line = more;
	}
	return line;
}

int gmem_hello_answer_to(int sock, int error, const char *text)
{
	char *line = answer_text(error, text);
	int err = 0;
	ssize_t n;

	if (!line)
		return gmem_err_sys(-ENOMEM, "answering");
	do {
		n = send(sock, line, strlen(line), MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		err = gmem_err_sys(-errno, "answering");
	else if ((size_t)n != strlen(line))
		err = gmem_err(-EAGAIN, "answering: the client does not read");
	free(line);
	return err;
}
