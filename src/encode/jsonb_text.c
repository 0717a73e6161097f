/*
 * jsonb_text.c
 *		jsonb to text, straight from its stored form (utils/jsonb.h).
 *
 * JsonbToCString() goes by way of an iterator and a copy of every number; a
 * mirror spends much of its time there.  This walks the stored form once.
 * Values are read where they are, so short varlenas need not be copied.  Pure:
 * nothing is allocated but the growth of the output buffer.
 *
 * A container is a header word (count and kind), an entry word per child, then
 * the children's bytes.  An entry has either the length of its child or, every
 * few entries, the offset where it ends.  Numbers and containers begin at the
 * next multiple of 4 from the container's data; strings begin at once.
 */
#include "postgres.h"

#include "encode/jsonb_text.h"

#include "encode/numeric.h"
#include "miscadmin.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

static inline uint32
read_word(const char *p)
{
	uint32 word;

	memcpy(&word, p, sizeof(word));
	return word;
}

/* Where a child ends that begins at offset. */
static inline uint32
child_end(JEntry entry, uint32 offset)
{
	return JBE_HAS_OFF(entry) ? JBE_OFFLENFLD(entry) : offset + JBE_OFFLENFLD(entry);
}

/* Do any of eight bytes need escaping: below 0x20, '"' or '\\'? */
static inline bool
needs_escape(uint64 eight)
{
	const uint64 ones = ~UINT64CONST(0) / 255;
	const uint64 high = ones * 0x80;
	uint64		 quote = eight ^ (ones * '"');
	uint64		 backslash = eight ^ (ones * '\\');

	/* the classic test for a byte below n, which may err to the safe side */
	return (((eight - ones * 0x20) & ~eight) | ((quote - ones) & ~quote) |
			((backslash - ones) & ~backslash)) &
		   high;
}

/*
 * The writer.  Where the next byte goes is handed from function to function, to
 * stay in a register; room() makes sure of n bytes there.
 */
static char *
grow(StringInfo buf, char *out, Size n)
{
	buf->len = out - buf->data;
	if (n > MaxAllocSize)
		n = MaxAllocSize;
	enlargeStringInfo(buf, (int) n);
	return buf->data + buf->len;
}

static inline char *
room(StringInfo buf, char *out, Size n)
{
	if (unlikely(out + n >= buf->data + buf->maxlen))
		return grow(buf, out, n);
	return out;
}

/* A character as escape_json() writes it; up to 6 bytes. */
static char *
write_escaped(char *out, unsigned char c)
{
	static const char hex[] = "0123456789abcdef";
	char			  letter;

	switch (c)
	{
		case '\b':
			letter = 'b';
			break;
		case '\f':
			letter = 'f';
			break;
		case '\n':
			letter = 'n';
			break;
		case '\r':
			letter = 'r';
			break;
		case '\t':
			letter = 't';
			break;
		case '"':
		case '\\':
			letter = (char) c;
			break;
		default:
			if (c >= 0x20)
			{
				*out++ = (char) c;
				return out;
			}
			memcpy(out, "\\u00", 4);
			out[4] = hex[c >> 4];
			out[5] = hex[c & 15];
			return out + 6;
	}
	*out++ = '\\';
	*out++ = letter;
	return out;
}

/* Character by character, from where the first one to be escaped may be. */
static pg_noinline char *
write_escaped_string(StringInfo buf, char *out, const char *data, const char *end)
{
	while (data < end)
	{
		const char *stop = data + Min(end - data, 1024);

		out = room(buf, out, 6 * 1024 + 8);
		while (data < stop)
			out = write_escaped(out, (unsigned char) *data++);
	}
	return out;
}

static inline char *
write_string(StringInfo buf, char *out, const char *data, int len)
{
	const char *end = data + len;
	uint64		eight;

	out = room(buf, out, (Size) len + 16);
	*out++ = '"';
	for (; end - data >= 8; data += 8, out += 8)
	{
		memcpy(&eight, data, 8);
		if (unlikely(needs_escape(eight)))
			break;
		memcpy(out, &eight, 8);
	}
	if (end - data >= 4 && end - data < 8)
	{
		uint32 first;
		uint32 last;

		/* the last eight or less, as two halves that may overlap */
		memcpy(&first, data, 4);
		memcpy(&last, end - 4, 4);
		if (likely(!needs_escape((uint64) first | (uint64) last << 32)))
		{
			memcpy(out, &first, 4);
			memcpy(out + (end - data) - 4, &last, 4);
			out += end - data;
			data = end;
		}
	}
	else if (end - data < 4)
	{
		while (data < end && (unsigned char) *data >= 0x20 && *data != '"' && *data != '\\')
			*out++ = *data++;
	}
	if (unlikely(data < end))
	{
		out = write_escaped_string(buf, out, data, end);
		out = room(buf, out, 16);
	}
	*out++ = '"';
	return out;
}

static char *
write_number(StringInfo buf, char *out, const char *number)
{
	NumericParts parts;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	buf->len = out - buf->data;
	resync_numeric_text(&parts, buf);
	return buf->data + buf->len;
}

static char *write_container(StringInfo buf, char *out, const char *container);

/*
 * One child: base is the container's data, offset and end are its own.
 */
static inline char *
write_child(StringInfo buf, char *out, JEntry entry, const char *base, uint32 offset, uint32 end)
{
	switch (entry & JENTRY_TYPEMASK)
	{
		case JENTRY_ISSTRING:
			return write_string(buf, out, base + offset, end - offset);
		case JENTRY_ISNUMERIC:
			return write_number(buf, out, base + INTALIGN(offset));
		case JENTRY_ISBOOL_TRUE:
			out = room(buf, out, 8);
			memcpy(out, "true", 4);
			return out + 4;
		case JENTRY_ISBOOL_FALSE:
			out = room(buf, out, 8);
			memcpy(out, "false", 5);
			return out + 5;
		case JENTRY_ISNULL:
			out = room(buf, out, 8);
			memcpy(out, "null", 4);
			return out + 4;
		case JENTRY_ISCONTAINER:
			return write_container(buf, out, base + INTALIGN(offset));
		default:
			elog(ERROR, "unknown type of jsonb value");
	}
	return out; /* not reached */
}

static char *
write_array(StringInfo buf, char *out, const char *entries, int count)
{
	const char *base = entries + count * sizeof(JEntry);
	uint32		offset = 0;

	out = room(buf, out, 8);
	*out++ = '[';
	for (int i = 0; i < count; i++)
	{
		JEntry entry = read_word(entries + i * sizeof(JEntry));
		uint32 end = child_end(entry, offset);

		if (i > 0)
		{
			out = room(buf, out, 8);
			memcpy(out, ", ", 2);
			out += 2;
		}
		out = write_child(buf, out, entry, base, offset, end);
		offset = end;
	}
	out = room(buf, out, 8);
	*out++ = ']';
	return out;
}

/* All keys come first, then all values. */
static char *
write_object(StringInfo buf, char *out, const char *entries, int count)
{
	const char *base = entries + 2 * count * sizeof(JEntry);
	const char *value_entries = entries + count * sizeof(JEntry);
	uint32		key_offset = 0;
	uint32		offset = 0;

	for (int i = 0; i < count; i++)
		offset = child_end(read_word(entries + i * sizeof(JEntry)), offset);
	out = room(buf, out, 8);
	*out++ = '{';
	for (int i = 0; i < count; i++)
	{
		JEntry key = read_word(entries + i * sizeof(JEntry));
		JEntry value = read_word(value_entries + i * sizeof(JEntry));
		uint32 key_end = child_end(key, key_offset);
		uint32 end = child_end(value, offset);

		if (i > 0)
		{
			out = room(buf, out, 8);
			memcpy(out, ", ", 2);
			out += 2;
		}
		out = write_string(buf, out, base + key_offset, key_end - key_offset);
		out = room(buf, out, 8);
		memcpy(out, ": ", 2);
		out = write_child(buf, out + 2, value, base, offset, end);
		key_offset = key_end;
		offset = end;
	}
	out = room(buf, out, 8);
	*out++ = '}';
	return out;
}

static char *
write_container(StringInfo buf, char *out, const char *container)
{
	uint32		header = read_word(container);
	int			count = header & JB_CMASK;
	const char *entries = container + sizeof(uint32);

	check_stack_depth();
	if ((header & JB_FOBJECT) != 0)
		return write_object(buf, out, entries, count);
	if ((header & JB_FSCALAR) != 0)
	{
		/* a scalar at the top is an array of one */
		JEntry entry = read_word(entries);

		return write_child(buf, out, entry, entries + sizeof(JEntry), 0, child_end(entry, 0));
	}
	return write_array(buf, out, entries, count);
}

void
resync_jsonb_text(const char *container, StringInfo buf)
{
	char *out = write_container(buf, buf->data + buf->len, container);

	buf->len = out - buf->data;
}
