/*
 * chdbd.c
 *		A ClickHouse HTTP server for tests: the real engine (libchdb, from npm)
 *		behind the part of the HTTP interface that resync uses, with faults on
 *		demand.
 *
 *     chdbd --path DIR [--port N] [--user U --password P] [--log FILE]
 *           [--version V] [--cluster NAME]
 *
 * Binds 127.0.0.1 only; prints "port N" once it serves.  One thread and one
 * engine connection per request; results are held whole in memory.
 *
 * Statements are written to the log, one line each: query_id, deduplication
 * token, exception code (0: none), rows written, settings of the URL, statement.
 *
 * Requests to /admin/... steer it (see admin() and struct Fault); they need no
 * user.
 *
 * What it is not: no users but one, no server-side limits, results are never
 * cut off in the middle by an error.  With --cluster there is a cluster of this one
 * host: Distributed tables are real; ON CLUSTER and the Replicated prefix of
 * engines, which need a Keeper, are taken out of statements.
 */
#include "chdbd.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

int			engine_argc = 2;
char	   *engine_argv[3] = {"clickhouse"};
const char *user = "default";
const char *password = "";
const char *fake_version;
const char *cluster;
FILE	   *log_file;

/* ---- faults */
static const char *const action_names[] = {"delay",		"fail",	  "cut_body",	"cut_answer",
										   "drop",		"hold",	  "hold_after", "die",
										   "die_after", "garbage"};

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t	changed = PTHREAD_COND_INITIALIZER;
static Fault   *faults;
static int		next_fault = 1;
int				held;
long			released; /* generation */

Running *running;

/* The first fault that applies, counted as used; NULL: none. */
Fault *
take_fault(const char *sql)
{
	Fault *found = NULL;

	pthread_mutex_lock(&lock);
	for (Fault *f = faults; f != NULL && found == NULL; f = f->next)
	{
		if (f->removed || f->count == 0 || regexec(&f->match, sql, 0, NULL, 0) != 0)
			continue;
		if (f->skip > 0)
		{
			f->skip--;
			continue;
		}
		if (f->count > 0)
			f->count--;
		f->hits++;
		found = f;
	}
	pthread_mutex_unlock(&lock);
	return found;
}

/* ---- administration */
static void
add_fault(Http *h, Buf *out)
{
	Fault	   *f = calloc(1, sizeof(Fault));
	const char *action = get(h->params, "action");
	const char *match = get(h->params, "match");
	const char *v;
	int			i = 0;
	int			n = sizeof(action_names) / sizeof(*action_names);

	while (i < n && (action == NULL || strcmp(action, action_names[i]) != 0))
		i++;
	if (i == n || regcomp(&f->match, match ? match : "", REG_EXTENDED | REG_ICASE | REG_NOSUB) != 0)
	{
		putf(out, "unknown action or bad regular expression\n");
		free(f);
		return;
	}
	f->action = i;
	f->count = (v = get(h->params, "count")) != NULL ? atol(v) : 1;
	f->skip = (v = get(h->params, "skip")) != NULL ? atol(v) : 0;
	f->after = (v = get(h->params, "after")) != NULL ? atol(v) : 0;
	f->code = (v = get(h->params, "code")) != NULL ? atol(v) : 241;
	f->ms = (v = get(h->params, "ms")) != NULL ? atol(v) : 1000;
	pthread_mutex_lock(&lock);
	f->id = next_fault++;
	f->next = faults;
	faults = f;
	pthread_mutex_unlock(&lock);
	putf(out, "%d\n", f->id);
}

/*
 * /admin/fault?action=A&match=RE[&count=1][&skip=0][&after=0][&code=241][&ms=1000]   prints its id
 * /admin/hits?id=N    how often it applied        /admin/clear      removes all, releases
 * /admin/held         statements being held       /admin/release    lets them go on
 * /admin/running      query_ids                   /admin/version?v=V (empty: the engine's)
 */
static void
admin(Http *h)
{
	Buf			out = {0};
	const char *what = h->path + strlen("/admin/");
	const char *v;

	put(&out, "", 0);
	if (strcmp(what, "fault") == 0)
		add_fault(h, &out);
	else if (strcmp(what, "version") == 0)
		fake_version = (v = get(h->params, "v")) != NULL && *v ? strdup(v) : NULL;
	else
	{
		pthread_mutex_lock(&lock);
		if (strcmp(what, "clear") == 0 || strcmp(what, "release") == 0)
		{
			for (Fault *f = faults; f != NULL && what[0] == 'c'; f = f->next)
				f->removed = true; /* a statement may still look at it */
			released++;
			pthread_cond_broadcast(&changed);
		}
		else if (strcmp(what, "held") == 0)
			putf(&out, "%d\n", held);
		else if (strcmp(what, "running") == 0)
		{
			for (Running *r = running; r != NULL; r = r->next)
				putf(&out, "%s\n", r->query_id);
		}
		else if (strcmp(what, "hits") == 0)
		{
			for (Fault *f = faults; f != NULL; f = f->next)
				if ((v = get(h->params, "id")) != NULL && atoi(v) == f->id)
					putf(&out, "%ld\n", f->hits);
		}
		else
			putf(&out, "unknown request\n");
		pthread_mutex_unlock(&lock);
	}
	answer(h, 200, "", out.data, out.len);
	free(out.data);
}

static void *
serve(void *arg)
{
	Http h = {.fd = (int) (intptr_t) arg};
	int	 on = 1;

	setsockopt(h.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	h.in = malloc(IO_SIZE + 1);
	while (!h.close_after && read_head(&h))
	{
		char   *raw;
		ssize_t n = 0;

		if (strncmp(h.path, "/admin/", 7) == 0)
			admin(&h);
		else if (strcmp(h.path, "/ping") == 0)
			answer(&h, 200, "", "Ok.\n", 4);
		else
			statement(&h);
		/* what was not read of the body */
		while (!h.close_after && (n = read_body(&h, &raw)) > 0)
			;
		if (n < 0)
			h.close_after = true;
		free(h.path);
		h.path = NULL;
		free_params(&h.params);
		free_params(&h.headers);
	}
	if (h.answered && !h.body_done)
	{
		/* let the client read the answer before it sees the connection's end */
		double		   until = now() + 1;
		struct timeval tv = {0, 100000};

		shutdown(h.fd, SHUT_WR);
		setsockopt(h.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
		while (now() < until && recv(h.fd, h.in, IO_SIZE, 0) > 0)
			;
	}
	close(h.fd);
	free(h.path);
	free_params(&h.params);
	free_params(&h.headers);
	free(h.in);
	return NULL;
}

/*
 * A configuration with a cluster of one host.  It takes the host for itself,
 * and does not connect, since the port is its own: nobody listens there.
 */
static void
define_cluster(const char *path)
{
	char *file;
	FILE *f;

	if (asprintf(&file, "%s.xml", path) < 0 || (f = fopen(file, "w")) == NULL ||
		asprintf(&engine_argv[engine_argc++], "--config-file=%s", file) < 0)
	{
		perror("chdbd");
		exit(1);
	}
	fprintf(f,
			"<clickhouse><tcp_port>9000</tcp_port><remote_servers><%s><shard><replica>"
			"<host>127.0.0.1</host><port>9000</port></replica></shard></%s></remote_servers>"
			"<macros><shard>1</shard><replica>r1</replica></macros></clickhouse>\n",
			cluster, cluster);
	fclose(f);
	free(file);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	socklen_t		   len = sizeof(addr);
	pthread_attr_t	   attr;
	int				   fd;
	int				   on = 1;
	chdb_conn		 **keep;
	const char		  *path = NULL;

	for (int i = 1; i < argc; i++)
	{
		const char *next = i + 1 < argc ? argv[i + 1] : NULL;

		if (strcmp(argv[i], "--die-with-parent") == 0)
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		else if (next == NULL)
			return 2;
		else if (strcmp(argv[i], "--path") == 0 && ++i)
			path = next;
		else if (strcmp(argv[i], "--port") == 0 && ++i)
			addr.sin_port = htons(atoi(next));
		else if (strcmp(argv[i], "--user") == 0 && ++i)
			user = next;
		else if (strcmp(argv[i], "--password") == 0 && ++i)
			password = next;
		else if (strcmp(argv[i], "--version") == 0 && ++i)
			fake_version = next;
		else if (strcmp(argv[i], "--cluster") == 0 && ++i)
			cluster = next;
		else if (strcmp(argv[i], "--log") == 0 && ++i)
			log_file = fopen(next, "a");
		else
			return 2;
	}
	if (path == NULL || asprintf(&engine_argv[1], "--path=%s", path) < 0)
		return 2;
	if (cluster != NULL)
		define_cluster(path);
	signal(SIGPIPE, SIG_IGN);
	chdb_set_signal_handlers_enabled(0);
	/* the engine stays up as long as one connection is open */
	keep = chdb_connect(engine_argc, engine_argv);
	if (keep == NULL || *keep == NULL)
	{
		fprintf(stderr, "chdbd: the engine does not start\n");
		return 1;
	}
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *) &addr, len) != 0 || listen(fd, 64) != 0 ||
		getsockname(fd, (struct sockaddr *) &addr, &len) != 0)
	{
		perror("chdbd");
		return 1;
	}
	printf("port %d\n", ntohs(addr.sin_port));
	fflush(stdout);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	for (;;)
	{
		int		  client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		pthread_t thread;

		if (client >= 0 && pthread_create(&thread, &attr, serve, (void *) (intptr_t) client) != 0)
			close(client);
	}
}
