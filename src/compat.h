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

#endif /* RESYNC_COMPAT_H */
