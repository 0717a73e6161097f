/*
 * debug.c
 *		Debug points: places where tests stop, fail or crash a process.  Not in
 *		normal builds (RESYNC_DEBUG).
 *
 * A point does what the file <data directory>/resync_debug/<name> says:
 *		error <text>	raise an error
 *		fatal			end this process as pg_terminate_backend would
 *		crash			end it without any cleanup (the server restarts)
 *		wait			stay until the file is gone or says something else
 * With a number in front ("once error x" has none) nothing is special: a test
 * removes the file when it has seen the effect.  "once <action>" removes the
 * file before it acts.
 */
#include "postgres.h"

#include "compat.h"

#ifdef RESYNC_DEBUG

#include "worker/worker.h"

#include <signal.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"

bool
resync_debug_asked(const char *name)
{
	char path[MAXPGPATH];

	snprintf(path, sizeof(path), "%s/resync_debug/%s", DataDir, name);
	return access(path, F_OK) == 0;
}

void
resync_debug_point(const char *name)
{
	char  path[MAXPGPATH];
	char  line[256];
	char *action = line;
	FILE *f;

	snprintf(path, sizeof(path), "%s/resync_debug/%s", DataDir, name);
	for (;;)
	{
		f = fopen(path, "r");
		if (f == NULL)
			return;
		line[0] = '\0';
		if (fgets(line, sizeof(line), f) == NULL)
			line[0] = '\0';
		fclose(f);
		line[strcspn(line, "\n")] = '\0';
		if (strncmp(line, "once ", 5) == 0)
		{
			action = line + 5;
			if (unlink(path) != 0)
				return; /* another process was faster */
		}
		if (strncmp(action, "error", 5) == 0)
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
							errmsg("debug point \"%s\"%s", name, action + 5)));
		if (strncmp(action, "lost", 4) == 0)
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
							errmsg("debug point \"%s\": connection lost", name)));
		if (strcmp(action, "fatal") == 0)
			ereport(FATAL, (errcode(ERRCODE_ADMIN_SHUTDOWN), errmsg("debug point \"%s\"", name)));
		if (strcmp(action, "crash") == 0)
			kill(MyProcPid, SIGKILL);
		if (strcmp(action, "wait") != 0)
			return;
		resync_worker_activity("debug point %s", name);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10,
						 RESYNC_WAIT_EVENT("DebugPoint"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

#endif /* RESYNC_DEBUG */
