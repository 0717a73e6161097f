/*
 * put.h
 *		Reading varlenas and appending to a StringInfo where every nanosecond
 *		counts: the room is checked in line, the terminating NUL is left out.
 */
#ifndef RESYNC_PUT_H
#define RESYNC_PUT_H

#include "postgres.h"

#include "compat.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "port/pg_bswap.h"

/* Little endian, whatever this machine is. */
#ifdef WORDS_BIGENDIAN
#define resync_le16(x) pg_bswap16(x)
#define resync_le32(x) pg_bswap32(x)
#define resync_le64(x) pg_bswap64(x)
#else
#define resync_le16(x) (x)
#define resync_le32(x) (x)
#define resync_le64(x) (x)
#endif

/*
 * A varlena as it can be read: in line, not compressed, maybe with a short
 * header.  release_varlena() takes back what it had to allocate.
 */
static inline struct varlena *
readable_varlena(Datum value)
{
	struct varlena *v = (struct varlena *) DatumGetPointer(value);

	if (likely(VARATT_IS_4B_U(v) || (VARATT_IS_SHORT(v) && !VARATT_IS_EXTERNAL(v))))
		return v;
	return pg_detoast_datum_packed(v);
}

static inline void
release_varlena(struct varlena *v, Datum value)
{
	if (unlikely((Pointer) v != DatumGetPointer(value)))
		pfree(v);
}

/* Room for n more bytes; returns where they go.  buf->len is the caller's. */
static inline char *
put_reserve(StringInfo buf, int n)
{
	if (unlikely(n >= buf->maxlen - buf->len))
		enlargeStringInfo(buf, n);
	return buf->data + buf->len;
}

static inline void
put_bytes(StringInfo buf, const void *data, int n)
{
	memcpy(put_reserve(buf, n), data, n);
	buf->len += n;
}

static inline void
put_byte(StringInfo buf, char c)
{
	*put_reserve(buf, 1) = c;
	buf->len++;
}

static inline void
put_le16(StringInfo buf, uint16 n)
{
	n = resync_le16(n);
	put_bytes(buf, &n, sizeof(n));
}

static inline void
put_le32(StringInfo buf, uint32 n)
{
	n = resync_le32(n);
	put_bytes(buf, &n, sizeof(n));
}

static inline void
put_le64(StringInfo buf, uint64 n)
{
	n = resync_le64(n);
	put_bytes(buf, &n, sizeof(n));
}

#define VARUINT_MAX 10 /* bytes of the longest one */

/* LEB128, unsigned; returns the number of bytes written to out. */
static inline int
varuint_write(char *out, uint64 n)
{
	int len = 0;

	while (n >= 0x80)
	{
		out[len++] = (char) (n | 0x80);
		n >>= 7;
	}
	out[len++] = (char) n;
	return len;
}

static inline int
varuint_size(uint64 n)
{
	int len = 1;

	while (n >= 0x80)
	{
		n >>= 7;
		len++;
	}
	return len;
}

/*
 * Read one from *p, which moves on; false when it does not end before end, or
 * is longer than 64 bits.
 */
static inline bool
varuint_read(const char **p, const char *end, uint64 *n)
{
	uint64 value = 0;

	for (int shift = 0; shift < 64 && *p < end; shift += 7)
	{
		unsigned char c = (unsigned char) *(*p)++;

		value |= (uint64) (c & 0x7F) << shift;
		if (c < 0x80)
		{
			*n = value;
			return true;
		}
	}
	return false;
}

static inline void
put_varuint(StringInfo buf, uint64 n)
{
	buf->len += varuint_write(put_reserve(buf, VARUINT_MAX), n);
}

/* ClickHouse's String: its length as varuint, then the bytes. */
static inline void
put_string(StringInfo buf, const char *data, int len)
{
	char *out = put_reserve(buf, VARUINT_MAX + len);
	int	  n;

	if (len < 0x80)
	{
		*out = (char) len;
		n = 1;
	}
	else
		n = varuint_write(out, len);
	memcpy(out + n, data, len);
	buf->len += n + len;
}

#endif /* RESYNC_PUT_H */
