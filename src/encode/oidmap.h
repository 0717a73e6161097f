/*
 * oidmap.h
 *		Translation of the type OIDs that binary values carry inside.
 *
 * array_send writes the element type's OID, record_send one per column; the
 * receiving side insists on its own OIDs.  Only encode/pgbinary.c uses this.
 */
#ifndef RESYNC_OIDMAP_H
#define RESYNC_OIDMAP_H

#include "resync.h"

/* Where, in sent values of one type, OIDs to be replaced are. */
typedef struct OidMapNode OidMapNode;

/*
 * What to replace in values of type typid (of the source).  pairs:
 * "srcoid:destoid,...".  NULL when values of the type hold none of them.
 * Allocated in the current context.
 */
extern OidMapNode *resync_oidmap_make(Oid typid, const char *pairs);

/* Replace the OIDs in a value of that type, sent to data[0 .. len), in place. */
extern void resync_oidmap_apply(const OidMapNode *node, char *data, int len);

#endif /* RESYNC_OIDMAP_H */
