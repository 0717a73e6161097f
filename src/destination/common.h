/*
 * common.h
 *		What the destinations' own files share: options of a peer, the key of a
 *		table, names that PeerDB gives to its columns.
 *
 * Also the errors that all of them raise.  Pure but for key and password files,
 * which are read by the server's user.
 */
#ifndef RESYNC_DESTINATION_COMMON_H
#define RESYNC_DESTINATION_COMMON_H

#include "resync.h"

#include "compat.h"

/* How PeerDB calls its columns unless told otherwise; case does not matter. */
#define PEERDB_SOFT_DELETE "_peerdb_is_deleted"
#define PEERDB_SYNCED_AT "_peerdb_synced_at"

/* The value of a peer's option (a List of DefElem), not copied; NULL: not given. */
extern const char *resync_destination_option(List *options, const char *name);

/*
 * Same of a peer's server, or of its user mapping; palloc'ed.  Raises HV00D if it
 * is not given.  service: its name in the message.
 */
extern char *resync_destination_require_option(const ResyncPeer *peer, bool mapping,
											   const char *name, const char *service);

/*
 * The text of a key file, palloc'ed, with a NUL at its end; secret.  what: names
 * the file in messages.
 */
extern char *resync_destination_read_file(const char *path, const char *what, Size *len);

/* First line of a password file, palloc'ed; an empty or missing one is an error. */
extern char *resync_destination_password_file(const char *path);

/* The key's columns in keypos order, palloc'ed. */
extern const ResyncColumn **resync_destination_key(const ResyncTable *table);

/*
 * Is this column of the old table the one that stands for ours (NULL: none
 * does)?  PeerDB spells its own in upper case, so that the name alone is not
 * enough: 3 = ours, 2 = but for the case, 1 = PeerDB's default name, 0 = no.
 */
extern int resync_destination_match_column(const char *name, const char *ours, const char *peerdb);

/* Which database of which server a mirror reads, as its mark there says; palloc'ed. */
extern char *resync_destination_source(const ResyncRunId *id);

/* The mirror's mark there is another source's. */
extern void resync_destination_raise_copy(const ResyncRunId *id) pg_attribute_noreturn();

/* The run is not in charge there; why: a sentence. */
extern void
resync_destination_raise_fenced(const ResyncRunId *id, const char *why) pg_attribute_noreturn();

/*
 * Somebody else has applied changes.  sqlerrcode: FENCED, or a serialization failure
 * where to look again helps.
 */
extern void
resync_destination_raise_applied(const ResyncRunId *id, int sqlerrcode, XLogRecPtr applied,
								 XLogRecPtr expected) pg_attribute_noreturn();

/*
 * Of a table there, whose name is as its SQL has it: not the one that this run made
 * (rule 9); in the way of the one under construction; in the place of a live one,
 * and not ours (begun: not in phase validate any more).
 */
extern void resync_destination_raise_not_made(const char *table) pg_attribute_noreturn();
extern void resync_destination_raise_in_way(const char *table) pg_attribute_noreturn();
extern void resync_destination_raise_exists(const char *table, bool begun) pg_attribute_noreturn();

/* Raises if the table would have a name that begins as the mirror's own tables do. */
extern void resync_destination_check_reserved(const ResyncTable *table, const char *prefix);

/* Append a copy, in context. */
extern void resync_destination_warn(List **warnings, MemoryContext context, const char *text);

#endif /* RESYNC_DESTINATION_COMMON_H */
