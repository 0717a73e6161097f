/*
 * instance.c
 *		Is this the server, and the database, that a mirror was made in?  (Rule 9.)
 *
 * Called wherever a mirror's row is about to be acted on, in any process.  No
 * locks, no catalog access.
 *
 * System identifier and database OID tell a dump, a template and another
 * cluster from the original.  They do not tell a base backup or a standby that
 * was promoted: those have the same identifier, OID, token, timeline (a backup
 * started without recovery.signal keeps it) and, with a copy made by cp, even
 * the slots.  What no copy made file by file can have is the same file: so the
 * inode and the birth time of PG_VERSION in the data directory, a file that
 * initdb writes once, count too.  Neither changes by a restart, a new mount,
 * host or path.  What it does not tell: a copy of the whole volume (LVM, ZFS, a
 * disk snapshot), and a backup restored in place by a tool that leaves
 * unchanged files alone; in the latter the slot is missing.
 */
#include "postgres.h"

#include "catalog/catalog.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "access/xlog.h"
#include "miscadmin.h"

#define IDENTITY_FILE "PG_VERSION"

/* born: nanoseconds since 1970; 0 where the file system does not know. */
static void
identity_of_data_directory(uint64 *inode, uint64 *born)
{
	char		path[MAXPGPATH];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", DataDir, IDENTITY_FILE);
	*born = 0;
#ifdef STATX_BTIME
	{
		struct statx stx;

		if (statx(AT_FDCWD, path, 0, STATX_INO | STATX_BTIME, &stx) == 0 &&
			(stx.stx_mask & STATX_INO) != 0)
		{
			*inode = stx.stx_ino;
			if ((stx.stx_mask & STATX_BTIME) != 0)
				*born = (uint64) stx.stx_btime.tv_sec * UINT64CONST(1000000000) +
						stx.stx_btime.tv_nsec;
			return;
		}
	}
#endif
	if (stat(path, &st) != 0)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not stat file \"%s\": %m", path)));
	*inode = st.st_ino;
}

/* As peerdb._mirror.instance keeps it; palloc'ed. */
char *
resync_catalog_instance(void)
{
	uint64 inode;
	uint64 born;

	identity_of_data_directory(&inode, &born);
	return psprintf(UINT64_FORMAT "/" UINT64_FORMAT, inode, born);
}

/*
 * True for a row that came here with a dump, a template, a backup or a standby.
 * A birth time that is unknown, then or now, says nothing.
 */
bool
resync_catalog_is_copy(uint64 system_identifier, Oid database, const char *instance)
{
	unsigned long long kept_inode;
	unsigned long long kept_born;
	uint64			   inode;
	uint64			   born;

	if (system_identifier != GetSystemIdentifier() || database != MyDatabaseId)
		return true;
	if (sscanf(instance, "%llu/%llu", &kept_inode, &kept_born) != 2)
		return true;
	identity_of_data_directory(&inode, &born);
	return inode != kept_inode || (born != 0 && kept_born != 0 && born != kept_born);
}
