/*
 * common.h
 *		What the destinations' own files share: options of a peer, the key of a
 *		table, names that PeerDB gives to its columns.
 *
 * Pure but for the password file, which is read by the server's user.
 */
#ifndef RESYNC_DESTINATION_COMMON_H
#define RESYNC_DESTINATION_COMMON_H

#include "resync.h"

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

#endif /* RESYNC_DESTINATION_COMMON_H */
