/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that makes files durable and knows nothing of Python, so that it never waits for the interpreter's lock and
 * never makes the interpreter wait for it: a program stands still until the fsync of the spool was heard of.
 *
 * Asked through one pipe, it answers through another. An ask is some descriptors, each an int: one not below zero is
 * given to fdatasync, the complement of one below zero to fsync. The answer is an int: 0, or the errno of the first that
 * failed. It ends, and closes its two ends, when the asking end is closed. Twin: ExecutorSyncer in syncers.py.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

/* ASKED_MAX in syncers.py; with PIPE_BUF of 4096 bytes an ask is written and read whole. */
#define ASKED_MAX 1000
/* What libraries keep for each thread comes out of it. */
#define STACK_BYTES (256 * 1024)

struct ends {
	int asks;
	int answers;
};

static int32_t sync_all(const int32_t *asked, size_t count)
{
	int32_t failure = 0;

	for (size_t at = 0; at < count; at++) {
		int done = asked[at] >= 0 ? fdatasync(asked[at]) : fsync(~asked[at]);

		if (done < 0 && !failure)
			failure = errno;
	}
	return failure;
}

static void *serve(void *given)
{
	struct ends ends = *(struct ends *)given;
	int32_t asked[ASKED_MAX];
	ssize_t size;

	free(given);
	prctl(PR_SET_NAME, "dk-sync");
	while ((size = read(ends.asks, asked, sizeof(asked))) > 0) {
		int32_t answer = sync_all(asked, (size_t)size / sizeof(*asked));

		if (write(ends.answers, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	close(ends.asks);
	close(ends.answers);
	return NULL;
}

/* Begin; 0, or an errno, and then the two ends are still the caller's. */
int32_t dk_serve_syncs(int32_t asks, int32_t answers)
{
	struct ends *given = malloc(sizeof(*given));
	sigset_t all, before;
	pthread_attr_t attributes;
	pthread_t thread;
	int failure;

	if (!given)
		return ENOMEM;
	*given = (struct ends){asks, answers};
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	/* Signals are for threads of Python, and interrupt nothing here. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	failure = pthread_create(&thread, &attributes, serve, given);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (failure)
		free(given);
	return failure;
}
