/*
 * compat.h
 *		Every difference between PostgreSQL majors (15-18) that our code meets.
 *
 * Anybody may include it; it includes nothing of ours.  A difference is given
 * a name here, so that no other file asks for PG_VERSION_NUM.
 */
#ifndef RESYNC_COMPAT_H
#define RESYNC_COMPAT_H

#include "postgres.h"

#include "catalog/pg_attribute.h"
#include "utils/wait_event.h"

/* 16: the macros for varlena headers left postgres.h */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 16: one function for the ownership of every class of objects. */
#if PG_VERSION_NUM >= 160000
#define RESYNC_OWNS_DATABASE(database, role) \
	object_ownercheck(DatabaseRelationId, (database), (role))
#else
#define RESYNC_OWNS_DATABASE(database, role) pg_database_ownercheck((database), (role))
#endif

/*
 * 17: a process's index in ProcGlobal->allProcs; a change's tuple without a
 * buffer around it; failover slots, which ours are not (a standby that has
 * been promoted is another server, rule 9); logical messages that can be
 * flushed at once.
 */
#if PG_VERSION_NUM >= 170000
#define RESYNC_MY_PROC_NUMBER MyProcNumber
#define RESYNC_CHANGE_TUPLE(buf) (buf)
#define RESYNC_SLOT_CREATE(name, persistency) \
	ReplicationSlotCreate((name), true, (persistency), false, false, false)
#define RESYNC_LOG_MESSAGE(prefix, text, size) \
	LogLogicalMessage((prefix), (text), (size), true, false)
#else
#define RESYNC_MY_PROC_NUMBER (MyProc->pgprocno)
#define RESYNC_CHANGE_TUPLE(buf) ((buf) != NULL ? &(buf)->tuple : NULL)
#define RESYNC_SLOT_CREATE(name, persistency) \
	ReplicationSlotCreate((name), true, (persistency), false)
#define RESYNC_LOG_MESSAGE(prefix, text, size) LogLogicalMessage((prefix), (text), (size), true)
#endif

/* 18: whether an invalidated slot is an error there; we look at it ourselves. */
#if PG_VERSION_NUM >= 180000
#define RESYNC_SLOT_ACQUIRE(name) ReplicationSlotAcquire((name), true, false)
#else
#define RESYNC_SLOT_ACQUIRE(name) ReplicationSlotAcquire((name), true)
#endif

/* 18: core's is pg_noreturn, which goes in front of the whole declaration. */
#if PG_VERSION_NUM >= 180000
#define pg_attribute_noreturn() __attribute__((noreturn))
#endif

/*
 * 16: a slot says why it was invalidated, and keeps restart_lsn unless WAL was
 * removed; before, a slot that has none is what is lost.  18: a slot that nobody
 * has used for idle_replication_slot_timeout.  Users include replication/slot.h.
 */
#if PG_VERSION_NUM >= 160000
#define RESYNC_SLOT_IS_LOST(slot) \
	((slot)->data.invalidated != RS_INVAL_NONE || XLogRecPtrIsInvalid((slot)->data.restart_lsn))
#else
#define RESYNC_SLOT_IS_LOST(slot) XLogRecPtrIsInvalid((slot)->data.restart_lsn)
#endif
#if PG_VERSION_NUM >= 180000
#define RESYNC_SLOT_WAS_IDLE(slot) ((slot)->data.invalidated == RS_INVAL_IDLE_TIMEOUT)
#else
#define RESYNC_SLOT_WAS_IDLE(slot) false
#endif

/* 17: one more timeout that a role or database may have set. */
#if PG_VERSION_NUM >= 170000
#define RESYNC_PINNED_SINCE_17 {"transaction_timeout", "0"},
#else
#define RESYNC_PINNED_SINCE_17
#endif

/*
 * 18: a virtual generated column (the default kind there) is not stored: a
 * tuple says NULL for it, which is not its value.
 */
#if PG_VERSION_NUM >= 180000
#define RESYNC_ATT_IS_VIRTUAL(att) ((att)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#else
#define RESYNC_ATT_IS_VIRTUAL(att) false
#endif

/*
 * 17: an extension's waits have names in pg_stat_activity; before, they are all
 * shown as "Extension".
 */
#if PG_VERSION_NUM >= 170000
#define RESYNC_WAIT_EVENT(name) WaitEventExtensionNew("Resync" name)
#else
#define RESYNC_WAIT_EVENT(name) PG_WAIT_EXTENSION
#endif

#endif /* RESYNC_COMPAT_H */
