/*
 * slot.c
 *		The slot: made, exported, acquired.  And how WAL is read.
 *
 * Called by the streamer.  No function here may run while the process has an
 * XID; creation must not hold a relation lock either, since it waits for every
 * running transaction.
 */
#include "postgres.h"

#include "compat.h"

#include "decode/decode.h"
#include "decode/wal.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "replication/snapbuild.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/*
 * page_read callbacks.  Up to the flush pointer; beyond it, the waiting one
 * waits and the other returns -1, which makes XLogReadRecord return NULL
 * without a message.
 */
static int
read_page(XLogReaderState *state, XLogRecPtr page, int req_len, char *buf, bool wait)
{
	TimeLineID	 tli;
	XLogRecPtr	 flush = GetFlushRecPtr(&tli);
	WALReadError errinfo;
	int			 count;

	while (page + req_len > flush)
	{
		if (!wait)
			return -1;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 RESYNC_WAIT_EVENT("WalFlush"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		flush = GetFlushRecPtr(&tli);
	}
	XLogReadDetermineTimeline(state, page, req_len, tli);
	count = (page + XLOG_BLCKSZ <= flush) ? XLOG_BLCKSZ : (int) (flush - page);
	if (!WALRead(state, buf, page, XLOG_BLCKSZ, state->currTLI != 0 ? state->currTLI : tli,
				 &errinfo))
		WALReadRaiseError(&errinfo);
	return count;
}

int
resync_wal_read_page(XLogReaderState *state, XLogRecPtr page, int req_len, XLogRecPtr rec,
					 char *buf)
{
	return read_page(state, page, req_len, buf, false);
}

static int
read_page_wait(XLogReaderState *state, XLogRecPtr page, int req_len, XLogRecPtr rec, char *buf)
{
	return read_page(state, page, req_len, buf, true);
}

XLogRecPtr
resync_slot_create(const char *slot_name, char *snapshot_name)
{
	MemoryContext			context = CurrentMemoryContext;
	LogicalDecodingContext *ctx;
	XLogRecPtr				lsn;

	CheckLogicalDecodingRequirements();
	RESYNC_SLOT_CREATE(slot_name, RS_EPHEMERAL);
	ctx = CreateInitDecodingContext("pgoutput", NIL, true, InvalidXLogRecPtr,
									XL_ROUTINE(.page_read = read_page_wait,
											   .segment_open = wal_segment_open,
											   .segment_close = wal_segment_close),
									NULL, NULL, NULL);
	DecodingContextFindStartpoint(ctx);
	MemoryContextSwitchTo(context);
	strlcpy(snapshot_name, SnapBuildExportSnapshot(ctx->snapshot_builder), MAXPGPATH);
	MemoryContextSwitchTo(context);
	lsn = MyReplicationSlot->data.confirmed_flush;
	FreeDecodingContext(ctx);
	ReplicationSlotPersist();

	/*
	 * Releasing it clears PROC_IN_LOGICAL_DECODING: only from then on does our
	 * xmin count.  Acquired again, it is shown as active and nobody can drop
	 * it.
	 */
	ReplicationSlotRelease();
	RESYNC_SLOT_ACQUIRE(slot_name);
	return lsn;
}

XLogRecPtr
resync_wal_flush(void)
{
	XLogRecPtr lsn = GetXLogInsertRecPtr();

	/* behind a page header: nothing is there yet, and XLogFlush cannot get to it */
	if (XLogSegmentOffset(lsn, wal_segment_size) == SizeOfXLogLongPHD)
		lsn -= SizeOfXLogLongPHD;
	else if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		lsn -= SizeOfXLogShortPHD;
	XLogFlush(lsn);
	return lsn;
}

XLogRecPtr
resync_slot_export(const char *slot_name, char *snapshot_name)
{
	MemoryContext context = CurrentMemoryContext;
	XLogRecPtr	  lsn;

	(void) resync_slot_acquire(slot_name);
	StartTransactionCommand();
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	strlcpy(snapshot_name, ExportSnapshot(GetActiveSnapshot()), MAXPGPATH);
	PopActiveSnapshot();
	MemoryContextSwitchTo(context);

	/*
	 * The snapshot may show asynchronous commits that are not flushed yet.  A
	 * crash would undo them here, but not at the destination: flush them.
	 */
	lsn = resync_wal_flush();
	return lsn;
}

void
resync_slot_release_snapshot(void)
{
	/*
	 * Also right for SnapBuildExportSnapshot's transaction: its saved resource
	 * owner is restored by this.
	 */
	if (IsTransactionState())
	{
		SnapBuildClearExportedSnapshot();
		if (IsTransactionState())
			AbortCurrentTransaction();
	}
}

/*
 * Wait while another process has the slot: a streamer of an earlier coordinator
 * that takes its time to end.
 */
static void
wait_until_free(ReplicationSlot *slot)
{
	for (;;)
	{
		pid_t user;

		SpinLockAcquire(&slot->mutex);
		user = slot->active_pid;
		SpinLockRelease(&slot->mutex);
		if (user == 0 || user == MyProcPid)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
						 RESYNC_WAIT_EVENT("SlotFree"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

XLogRecPtr
resync_slot_acquire(const char *slot_name)
{
	if (MyReplicationSlot == NULL)
	{
		ReplicationSlot *slot;

		LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
		slot = SearchNamedReplicationSlot(slot_name, false);
		LWLockRelease(ReplicationSlotControlLock);
		if (slot == NULL)
			ereport(ERROR, (errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
							errmsg("replication slot \"%s\" does not exist any more", slot_name),
							errhint("Run peerdb_resync() to rebuild the mirror.")));
		wait_until_free(slot);
		RESYNC_SLOT_ACQUIRE(slot_name);
	}
	if (RESYNC_SLOT_WAS_IDLE(MyReplicationSlot))
		ereport(
			ERROR,
			(errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
			 errmsg(
				 "replication slot \"%s\" was invalidated because it was idle for longer than idle_replication_slot_timeout",
				 slot_name),
			 errhint(
				 "Run peerdb_resync() to rebuild the mirror, and consider a larger idle_replication_slot_timeout.")));
	if (RESYNC_SLOT_IS_LOST(MyReplicationSlot))
		ereport(
			ERROR,
			(errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
			 errmsg(
				 "replication slot \"%s\" was invalidated because it held more WAL than max_slot_wal_keep_size allows",
				 slot_name),
			 errhint(
				 "Run peerdb_resync() to rebuild the mirror, and consider a larger max_slot_wal_keep_size.")));
	return MyReplicationSlot->data.confirmed_flush;
}
