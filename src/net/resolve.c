/*
 * resolve.c
 *		Host names to addresses without stopping the process that asks.
 *
 * getaddrinfo() cannot be interrupted: with a name server that never answers
 * it would keep a worker from ending for many seconds, and with it
 * "pg_ctl stop".  So it is called in a detached thread, while the process waits
 * with its latch.  The thread touches nothing of PostgreSQL: all its memory is
 * malloc'ed, every signal is blocked in it, and it tells that it is done by an
 * eventfd.  A request that nobody waits for any longer is freed by the thread.
 *
 * Called by pq.c and http.c, in any process.  No locks, no transaction.
 */
#include "postgres.h"

#include "compat.h"

#include "net/resolve.h"

#include "net/wait.h"

#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/wait_event.h"

/* Name service modules are built for ordinary threads: not too small. */
#define RESOLVE_STACK_SIZE (1024 * 1024)

typedef struct ResolveRequest
{
	int				  refs; /* process and thread; atomic */
	int				  done; /* atomic: results may be read */
	int				  fd;	/* eventfd, readable when done */
	int				  nhosts;
	char			**hosts;
	struct addrinfo **results;
	int				 *errors; /* of getaddrinfo */
} ResolveRequest;

/* Both sides call this; the last one frees. */
static void
release_request(ResolveRequest *req)
{
	if (__atomic_sub_fetch(&req->refs, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	for (int i = 0; i < req->nhosts; i++)
	{
		free(req->hosts[i]);
		if (req->results[i] != NULL)
			freeaddrinfo(req->results[i]);
	}
	if (req->fd >= 0)
		close(req->fd);
	free(req->hosts);
	free(req->results);
	free(req->errors);
	free(req);
}

/* Thread.  Must not call anything of PostgreSQL. */
static void *
resolve_thread(void *arg)
{
	ResolveRequest *req = arg;
	uint64			one = 1;
	struct addrinfo hints;

	memset(&hints, 0, sizeof(hints));
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	for (int i = 0; i < req->nhosts; i++)
	{
		req->errors[i] = getaddrinfo(req->hosts[i], NULL, &hints, &req->results[i]);
		if (req->errors[i] != 0)
			req->results[i] = NULL;
	}
	__atomic_store_n(&req->done, 1, __ATOMIC_RELEASE);
	if (write(req->fd, &one, sizeof(one)) < 0)
	{
		/* cannot happen with an eventfd; the waiter also looks at done */
	}
	release_request(req);
	return NULL;
}

/* NULL: out of memory or of file descriptors. */
static ResolveRequest *
make_request(char **hosts, int nhosts)
{
	ResolveRequest *req = calloc(1, sizeof(ResolveRequest));

	if (req == NULL)
		return NULL;
	req->refs = 1;
	req->fd = -1;
	req->hosts = calloc(nhosts, sizeof(char *));
	req->results = calloc(nhosts, sizeof(struct addrinfo *));
	req->errors = calloc(nhosts, sizeof(int));
	if (req->hosts == NULL || req->results == NULL || req->errors == NULL)
	{
		release_request(req);
		return NULL;
	}
	for (; req->nhosts < nhosts; req->nhosts++)
	{
		req->hosts[req->nhosts] = strdup(hosts[req->nhosts]);
		if (req->hosts[req->nhosts] == NULL)
		{
			release_request(req);
			return NULL;
		}
	}
	req->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (req->fd < 0)
	{
		release_request(req);
		return NULL;
	}
	return req;
}

/* Returns 0, or an errno. */
static int
start_thread(ResolveRequest *req)
{
	pthread_attr_t attr;
	pthread_t	   thread;
	sigset_t	   all;
	sigset_t	   old;
	int			   rc;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, RESOLVE_STACK_SIZE);

	/*
	 * The thread inherits the mask.  A signal handler of ours must never run
	 * there: it would set this process's latch from a stack that PostgreSQL
	 * does not know.
	 */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	__atomic_add_fetch(&req->refs, 1, __ATOMIC_ACQ_REL);
	rc = pthread_create(&thread, &attr, resolve_thread, req);
	if (rc != 0)
		__atomic_sub_fetch(&req->refs, 1, __ATOMIC_ACQ_REL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return rc;
}

/* Returns false at the deadline. */
static bool
wait_for_request(ResolveRequest *req, TimestampTz deadline)
{
	while (!__atomic_load_n(&req->done, __ATOMIC_ACQUIRE))
	{
		int	 rc;
		long ms = 1000;

		if (deadline != 0)
		{
			ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
			if (ms <= 0)
				return false;
			ms = Min(ms, 1000);
		}
		rc = WaitLatchOrSocket(MyLatch,
							   WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT | WL_SOCKET_READABLE,
							   req->fd, ms, RESYNC_WAIT_EVENT("ResolveName"));
		if (rc & WL_LATCH_SET)
			resync_wait_latch_set();
	}
	return true;
}

static List *
addresses_of(struct addrinfo *first)
{
	List *result = NIL;

	for (struct addrinfo *ai = first; ai != NULL; ai = ai->ai_next)
	{
		char buf[NI_MAXHOST];

		if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6)
			continue;
		if (getnameinfo(ai->ai_addr, ai->ai_addrlen, buf, sizeof(buf), NULL, 0, NI_NUMERICHOST) ==
			0)
			result = lappend(result, pstrdup(buf));
	}
	return result;
}

List **
resync_resolve_hosts(char **hosts, int nhosts, TimestampTz deadline, const char **failure)
{
	ResolveRequest *req;
	List		  **result = palloc0(sizeof(List *) * Max(nhosts, 1));
	bool			in_time = false;
	int				rc;

	if (!AcquireExternalFD())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
						errmsg("could not resolve a host name: there are too many open files")));
	req = make_request(hosts, nhosts);
	if (req == NULL)
	{
		ReleaseExternalFD();
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
						errmsg("could not resolve a host name: out of resources")));
	}
	PG_TRY();
	{
		rc = start_thread(req);
		if (rc != 0)
		{
			errno = rc;
			ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
							errmsg("could not start a thread to resolve a host name: %m")));
		}
		in_time = wait_for_request(req, deadline);
		for (int i = 0; in_time && i < nhosts; i++)
		{
			if (req->errors[i] == 0)
				result[i] = addresses_of(req->results[i]);
			if (result[i] == NIL && *failure == NULL)
				*failure = psprintf("could not translate host name \"%s\" to address: %s", hosts[i],
									req->errors[i] != 0 ? gai_strerror(req->errors[i])
														: "no address");
		}
	}
	PG_FINALLY();
	{
		release_request(req);
		ReleaseExternalFD();
	}
	PG_END_TRY();
	return in_time ? result : NULL;
}
