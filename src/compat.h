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
