/*
 * merge.h
 *		Batches of changes as MERGE statements: what destinations that apply
 *		them from staging tables share.
 *
 * The rows of each table of a part go into a staging table, which has the
 * table's columns and
 *	_resync_op		'U' the row is so, 'X' it is so, and deleted, 'D' it is gone
 *	_resync_mask	NULL, or a letter per column: '1' its value is not known, it is
 *					the one that the destination has
 *	_resync_b0 ...	NULL, or the key of the row that such values are in
 *
 * How they get there, and in which transaction the statements run, is the
 * destination's.  Nothing here asks the network.  Memory: the current context.
 */
#ifndef RESYNC_DESTINATION_MERGE_H
#define RESYNC_DESTINATION_MERGE_H

#include "destination/destination.h"

/* Columns of a staging table beside the table's and its key's. */
#define MERGE_OP "_resync_op"
#define MERGE_MASK "_resync_mask"
#define MERGE_BASE "_resync_b%d"

/* What the names of a mirrored table's columns must not begin with. */
#define MERGE_RESERVED "_resync_"

/* How the destination writes things.  Results are in the current context. */
typedef struct MergeDialect
{
	char *(*ident)(const char *name); /* quoted */

	/*
	 * A key column's value (SQL), to be compared with "=" or grouped by: itself,
	 * or an expression of it.
	 */
	char *(*key_value)(const ResyncColumn *col, const char *value);
	const char *now; /* of the type of synced_at */
} MergeDialect;

/* The table that changes go into. */
typedef struct MergeTarget
{
	const MergeDialect *dialect;
	const ResyncTable  *table;
	const char		   *name;	 /* as SQL has it */
	const char		   *deleted; /* names of the mirror's own columns, or NULL */
	const char		   *synced_at;
} MergeTarget;

/* The rows of one table of a part, on their way to the staging table. */
typedef struct MergeRows
{
	/* the caller's */
	ResyncBatch		  *batch;
	const ResyncTable *table;
	FetchRowsFn		   fetch; /* NULL: the source is not asked */
	void			  *fetch_arg;

	/*
	 * Takes a row: the table's fields; mask: a letter per column, or NULL; base:
	 * the key's fields, or NULL.  They live until it returns.
	 */
	void (*put)(void *arg, char op, const EncodedField *fields, const char *mask,
				const EncodedField *base);
	void *put_arg;

	/* results */
	int64 rows;
	bool  masks; /* some row has unchanged columns */
	bool  bases; /* ... from another row */
} MergeRows;

/*
 * Every row that the batch has of the table, once it has been told to be read.
 * Rows with unchanged columns of a batch that is distrusted are asked for at the
 * source.  May raise.
 */
extern void resync_merge_rows(MergeRows *rows);

/* " AND "-joined: the rows that two aliases stand for have the same key. */
extern char *resync_merge_same_key(const MergeDialect *dialect, const ResyncTable *table,
								   const char *left, const char *right);

/* Statements, each with ";\n" at its end.  stage: the staging table, as SQL has it. */
extern void resync_merge_truncate(const MergeTarget *target, StringInfo script);
extern void resync_merge_append(const MergeTarget *target, const char *stage, StringInfo script);
extern void resync_merge_upsert(const MergeTarget *target, const char *stage, const MergeRows *rows,
								StringInfo script);

/* The one value of a staging table into the table's last column, for all rows. */
extern void resync_merge_default(const MergeTarget *target, const char *stage, StringInfo script);

/*
 * An added column's default as a field, encoded as if it came in a row.  one: the
 * table with that column alone.  Not in a transaction.
 */
extern EncodedField
resync_merge_encode_default(Destination *dest, const ResyncTable *one, const char *text);

/* "a, b, c": all columns of the table, each after a prefix. */
extern char *
resync_merge_columns(const MergeDialect *dialect, const ResyncTable *table, const char *prefix);

#endif /* RESYNC_DESTINATION_MERGE_H */
