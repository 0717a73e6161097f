/*
 * clickhouse_flags.h
 *		Letters before the colon in a column's wire_info: how its encoder, of
 *		which there is one in every process of a run, treats values.
 *
 * They are kept in the plan of a run (peerdb._run_table.plan).
 */
#ifndef RESYNC_CLICKHOUSE_FLAGS_H
#define RESYNC_CLICKHOUSE_FLAGS_H

#define CH_FLAG_CLAMP \
	'c' /* what does not fit becomes the nearest value
									 * that does */
#define CH_FLAG_ROUND \
	'r'								/* digits that the type has no room for are
									 * rounded away: the user chose the type */
#define CH_FLAG_WIDE_DATETIME64 'w' /* years 1 to 9999 */
#define CH_FLAG_CAST 'x'			/* by way of ChSource.cast */

#endif /* RESYNC_CLICKHOUSE_FLAGS_H */
