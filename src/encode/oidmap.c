/*
 * oidmap.c
 *		Translation of the type OIDs that binary values carry inside.
 *
 * A type made by CREATE TYPE, CREATE DOMAIN or an extension has another OID at
 * the destination.  At the top of a column this is of no concern, but the
 * send functions of arrays, composites, ranges and multiranges nest: an array
 * names its element type, a composite the type of each column, and what lies
 * within goes through the inner type's send function.  array_recv and
 * record_recv refuse OIDs that are not their own.
 *
 * resync_oidmap_make() goes down the type at the source's catalog once, when
 * the encoder is made, and keeps a tree of the places where one of the given
 * OIDs occurs; resync_oidmap_apply() walks the bytes of one sent value along
 * that tree.  Which format a type's values have is decided by its send
 * function, not by its kind, so a base type with its own send function is
 * never taken for something it is not.
 *
 * Formats (integers in network order), see the *_send functions in core:
 *	array		int32 ndim, int32 hasnull, Oid element,
 *				ndim * (int32 size, int32 lower bound), fields
 *	record		int32 ncolumns, ncolumns * (Oid type, field)
 *	range		uint8 flags, field lower (unless empty or infinite), field upper
 *	multirange	int32 nranges, fields, each a range
 * A field is an int32 length, -1 for NULL, then the bytes.
 *
 * Process: whoever encodes.  make needs catalog look-ups (typcache, syscache;
 * a historic snapshot will do), apply needs none.
 */
#include "postgres.h"

#include "encode/oidmap.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rangetypes.h"
#include "utils/typcache.h"

typedef enum OidMapKind
{
	OIDMAP_ARRAY,
	OIDMAP_RECORD,
	OIDMAP_RANGE,
	OIDMAP_MULTIRANGE
} OidMapKind;

/* What is known of an array's elements, a record's column, a range's bounds. */
typedef struct OidMapChild
{
	Oid			source; /* as sent; not sent for ranges */
	Oid			dest;	/* what it becomes, often the same */
	OidMapNode *node;	/* NULL: nothing to replace inside */
} OidMapChild;

struct OidMapNode
{
	OidMapKind	kind;
	int			nchildren; /* 1, but for records */
	OidMapChild children[FLEXIBLE_ARRAY_MEMBER];
};

typedef struct OidPair
{
	Oid source;
	Oid dest;
} OidPair;

typedef struct OidPairs
{
	int		 n;
	OidPair *pairs;
} OidPairs;

/* The unread rest of a value. */
typedef struct Cursor
{
	char *p;
	char *end;
} Cursor;

static OidMapNode *make_node(Oid typid, const OidPairs *map);
static void		   apply_node(const OidMapNode *node, Cursor *c);

/*
 * One OID of "srcoid:destoid", which must be followed by the character that
 * comes next (or by the end, where that is allowed).  Advances *s past it.
 */
static Oid
parse_oid(const char **s, char terminator, const char *all)
{
	char		 *end;
	unsigned long val;

	errno = 0;
	val = strtoul(*s, &end, 10);
	if (end == *s || **s < '0' || **s > '9' || errno != 0 || val == 0 || val > PG_UINT32_MAX ||
		(*end != terminator && !(terminator == ',' && *end == '\0')))
		elog(ERROR, "invalid list of type OID pairs \"%s\"", all);
	*s = *end == '\0' ? end : end + 1;
	return (Oid) val;
}

/* "srcoid:destoid,..." to pairs. */
static void
parse_pairs(const char *text, OidPairs *map)
{
	const char *s = text;

	map->n = 0;
	map->pairs = palloc(sizeof(OidPair) * (strlen(text) / 4 + 1)); /* "1:2," */
	while (*s != '\0')
	{
		OidPair *pair = &map->pairs[map->n++];

		pair->source = parse_oid(&s, ':', text);
		pair->dest = parse_oid(&s, ',', text);
	}
}

static Oid
map_oid(Oid source, const OidPairs *map)
{
	for (int i = 0; i < map->n; i++)
	{
		if (map->pairs[i].source == source)
			return map->pairs[i].dest;
	}
	return source;
}

/*
 * A node with one child of type typid; sent tells whether values carry its
 * OID.  NULL when there is nothing to replace.
 */
static OidMapNode *
make_single(OidMapKind kind, Oid typid, bool sent, const OidPairs *map)
{
	OidMapNode *inner = make_node(typid, map);
	Oid			dest = sent ? map_oid(typid, map) : typid;
	OidMapNode *node;

	if (inner == NULL && dest == typid)
		return NULL;
	node = palloc(offsetof(OidMapNode, children) + sizeof(OidMapChild));
	node->kind = kind;
	node->nchildren = 1;
	node->children[0].source = typid;
	node->children[0].dest = dest;
	node->children[0].node = inner;
	return node;
}

/* record_send sends the columns that are not dropped. */
static OidMapNode *
make_record(Oid typid, const OidPairs *map)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(typid, -1);
	OidMapNode *node;
	bool		needed = false;

	node = palloc(offsetof(OidMapNode, children) + sizeof(OidMapChild) * desc->natts);
	node->kind = OIDMAP_RECORD;
	node->nchildren = 0;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		OidMapChild		 *child;

		if (att->attisdropped)
			continue;
		child = &node->children[node->nchildren++];
		child->source = att->atttypid;
		child->dest = map_oid(att->atttypid, map);
		child->node = make_node(att->atttypid, map);
		if (child->dest != child->source || child->node != NULL)
			needed = true;
	}
	ReleaseTupleDesc(desc);
	if (!needed)
	{
		pfree(node);
		return NULL;
	}
	return node;
}

/* The tree for values of a type; domains are sent as their base type. */
static OidMapNode *
make_node(Oid typid, const OidPairs *map)
{
	TypeCacheEntry *typentry;
	Oid				send;
	bool			isvarlena;

	check_stack_depth();
	typid = getBaseType(typid);
	getTypeBinaryOutputInfo(typid, &send, &isvarlena);
	switch (send)
	{
		case F_ARRAY_SEND:
		{
			Oid element = get_element_type(typid);

			if (!OidIsValid(element))
				elog(ERROR, "type %u is sent as an array and has no element type", typid);
			return make_single(OIDMAP_ARRAY, element, true, map);
		}
		case F_RECORD_SEND:
			return make_record(typid, map);
		case F_RANGE_SEND:
			typentry = lookup_type_cache(typid, TYPECACHE_RANGE_INFO);
			if (typentry->rngelemtype == NULL)
				elog(ERROR, "type %u is not a range type", typid);
			return make_single(OIDMAP_RANGE, typentry->rngelemtype->type_id, false, map);
		case F_MULTIRANGE_SEND:
			typentry = lookup_type_cache(typid, TYPECACHE_MULTIRANGE_INFO);
			if (typentry->rngtype == NULL)
				elog(ERROR, "type %u is not a multirange type", typid);
			return make_single(OIDMAP_MULTIRANGE, typentry->rngtype->type_id, false, map);
		default:
			return NULL;
	}
}

OidMapNode *
resync_oidmap_make(Oid typid, const char *pairs)
{
	OidPairs	map;
	OidMapNode *node;

	parse_pairs(pairs, &map);
	node = make_node(typid, &map);
	pfree(map.pairs);
	return node;
}

/* ---- walking a value ---- */

static void
bad_value(void)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
					errmsg("a value's binary form does not match its type"),
					errdetail("The type may have been changed while the mirror was at work.")));
}

static char *
take(Cursor *c, int n)
{
	char *p = c->p;

	if (n < 0 || n > c->end - c->p)
		bad_value();
	c->p += n;
	return p;
}

static uint32
take_uint32(Cursor *c)
{
	uint32 n;

	memcpy(&n, take(c, 4), 4);
	return pg_ntoh32(n);
}

/* An OID that must be the one we know of; it is replaced. */
static void
take_oid(Cursor *c, const OidMapChild *child)
{
	char  *p = c->p;
	uint32 n;

	if (take_uint32(c) != child->source)
		bad_value();
	n = pg_hton32(child->dest);
	memcpy(p, &n, 4);
}

/* A length word and the value after it. */
static void
take_field(Cursor *c, const OidMapNode *node)
{
	int32  len = (int32) take_uint32(c);
	Cursor inner;

	if (len == -1)
		return;
	inner.p = take(c, len);
	inner.end = c->p;
	if (node != NULL)
		apply_node(node, &inner);
}

static void
apply_array(const OidMapChild *element, Cursor *c)
{
	int ndim = (int) take_uint32(c);
	int dims[MAXDIM];
	int nitems;

	if (ndim < 0 || ndim > MAXDIM)
		bad_value();
	(void) take_uint32(c); /* has NULLs */
	take_oid(c, element);
	for (int i = 0; i < ndim; i++)
	{
		dims[i] = (int) take_uint32(c);
		(void) take_uint32(c); /* lower bound */
	}
	if (element->node == NULL)
	{
		c->p = c->end; /* only the header is of interest */
		return;
	}
	nitems = ArrayGetNItems(ndim, dims);
	for (int i = 0; i < nitems; i++)
		take_field(c, element->node);
}

static void
apply_node(const OidMapNode *node, Cursor *c)
{
	check_stack_depth();
	switch (node->kind)
	{
		case OIDMAP_ARRAY:
			apply_array(&node->children[0], c);
			break;
		case OIDMAP_RECORD:
			if ((int) take_uint32(c) != node->nchildren)
				bad_value();
			for (int i = 0; i < node->nchildren; i++)
			{
				take_oid(c, &node->children[i]);
				take_field(c, node->children[i].node);
			}
			break;
		case OIDMAP_RANGE:
		{
			uint8 flags = (uint8) *take(c, 1);

			if (RANGE_HAS_LBOUND(flags))
				take_field(c, node->children[0].node);
			if (RANGE_HAS_UBOUND(flags))
				take_field(c, node->children[0].node);
			break;
		}
		case OIDMAP_MULTIRANGE:
		{
			uint32 nranges = take_uint32(c);

			while (nranges-- > 0)
				take_field(c, node->children[0].node);
			break;
		}
	}
	if (c->p != c->end)
		bad_value();
}

void
resync_oidmap_apply(const OidMapNode *node, char *data, int len)
{
	Cursor c;

	c.p = data;
	c.end = data + len;
	apply_node(node, &c);
}
