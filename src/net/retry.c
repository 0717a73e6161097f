/*
 * retry.c
 *		Which errors go away by themselves, and how long to wait.
 *
 * Called by workers after they caught an error, in any process; pure.
 */
#include "postgres.h"

#include "net/retry.h"

#include "common/pg_prng.h"
#include "utils/elog.h"
#include "utils/errcodes.h"

#define RETRY_FIRST_MS 500
#define RETRY_MAX_MS 30000
#define QUOTA_FIRST_MS 5000
#define QUOTA_MAX_MS 600000

bool
resync_retry_is_transient(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case MAKE_SQLSTATE('0', '8', '0', '0', '0'): /* connection */
		case MAKE_SQLSTATE('4', '0', '0', '0', '0'): /* serialization, deadlock */
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'): /* resources */
			return true;
		default:
			break;
	}
	switch (sqlerrcode)
	{
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_QUERY_CANCELED: /* somebody there cancelled us */
		case ERRCODE_ADMIN_SHUTDOWN:
		case ERRCODE_CRASH_SHUTDOWN:
		case ERRCODE_CANNOT_CONNECT_NOW:
		case MAKE_SQLSTATE('5', '7', 'P', '0', '5'): /* idle_session_timeout */
		case ERRCODE_IDLE_IN_TRANSACTION_SESSION_TIMEOUT:
		case MAKE_SQLSTATE('2', '5', 'P', '0', '4'): /* transaction_timeout */
		case ERRCODE_IO_ERROR:
		case ERRCODE_SYSTEM_ERROR:
			return true;
		default:
			return false;
	}
}

long
resync_retry_delay(int sqlerrcode, int attempt)
{
	bool   quota = (sqlerrcode == RESYNC_ERRCODE_QUOTA_EXCEEDED);
	int	   doublings = Min(Max(attempt, 1) - 1, 10);
	double ms = Min((double) (quota ? QUOTA_FIRST_MS : RETRY_FIRST_MS) * (1 << doublings),
					(double) (quota ? QUOTA_MAX_MS : RETRY_MAX_MS));

	/* between 3/4 and all of it, so that workers do not come back together */
	return (long) (ms * (0.75 + 0.25 * pg_prng_double(&pg_global_prng_state)));
}
