/*
 * result.h
 *		Values out of SPI_tuptable, between resync_catalog_exec() and
 *		resync_catalog_finish().  For files of catalog/ only.
 *
 * Columns count from 1, rows from 0.  What is palloc'ed is in the context
 * given, as the current one goes with the result.
 */
#ifndef RESYNC_CATALOG_RESULT_H
#define RESYNC_CATALOG_RESULT_H

#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

/* One argument of resync_catalog_exec(): a triple. */
#define ARG_INT8(v) INT8OID, Int64GetDatum(v), false
#define ARG_INT4(v) INT4OID, Int32GetDatum(v), false
#define ARG_BOOL(v) BOOLOID, BoolGetDatum(v), false
#define ARG_OID(v) OIDOID, ObjectIdGetDatum(v), false
#define ARG_CHAR(v) CHAROID, CharGetDatum(v), false
#define ARG_LSN(v) LSNOID, LSNGetDatum(v), false
#define ARG_INT8_OR_NULL(v, null) INT8OID, Int64GetDatum(v), (null)
#define ARG_LSN_OR_NULL(v) LSNOID, LSNGetDatum(v), XLogRecPtrIsInvalid(v)
#define ARG_TEXT(v) TEXTOID, result_text_arg(v), (v) == NULL

static inline Datum
result_text_arg(const char *s)
{
	return s == NULL ? (Datum) 0 : CStringGetTextDatum(s);
}

static inline Datum
result_datum(uint64 row, int col, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col, isnull);
}

static inline int64
result_int8(uint64 row, int col, int64 if_null)
{
	bool  isnull;
	Datum value = result_datum(row, col, &isnull);

	return isnull ? if_null : DatumGetInt64(value);
}

static inline int32
result_int4(uint64 row, int col)
{
	bool  isnull;
	Datum value = result_datum(row, col, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

static inline Oid
result_oid(uint64 row, int col)
{
	bool  isnull;
	Datum value = result_datum(row, col, &isnull);

	return isnull ? InvalidOid : DatumGetObjectId(value);
}

static inline bool
result_bool(uint64 row, int col)
{
	bool  isnull;
	Datum value = result_datum(row, col, &isnull);

	return isnull ? false : DatumGetBool(value);
}

static inline char
result_char(uint64 row, int col)
{
	bool  isnull;
	Datum value = result_datum(row, col, &isnull);

	return isnull ? '\0' : DatumGetChar(value);
}

static inline XLogRecPtr
result_lsn(uint64 row, int col)
{
	bool  isnull;
	Datum value = result_datum(row, col, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
}

/* Output function's text of any type; NULL for NULL. */
static inline char *
result_text(uint64 row, int col, MemoryContext context)
{
	char *text = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col);

	return text == NULL ? NULL : MemoryContextStrdup(context, text);
}

static inline Jsonb *
result_jsonb(uint64 row, int col, MemoryContext context)
{
	bool		  isnull;
	Datum		  value = result_datum(row, col, &isnull);
	MemoryContext oldcontext;
	Jsonb		 *copy;

	if (isnull)
		return NULL;
	oldcontext = MemoryContextSwitchTo(context);
	copy = DatumGetJsonbPCopy(value);
	MemoryContextSwitchTo(oldcontext);
	return copy;
}

#endif /* RESYNC_CATALOG_RESULT_H */
