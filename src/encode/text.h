/*
 * text.h
 *		Texts of values that more than one encoder writes by itself.
 */
#ifndef RESYNC_TEXT_H
#define RESYNC_TEXT_H

#include "resync.h"

#include "utils/datetime.h"
#include "utils/uuid.h"

#define UUID_TEXT_LEN 36

/* As uuid_out() has it, without the NUL. */
static inline void
resync_uuid_text(const pg_uuid_t *uuid, char *text)
{
	static const char hex[] = "0123456789abcdef";

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*text++ = '-';
		*text++ = hex[uuid->data[i] >> 4];
		*text++ = hex[uuid->data[i] & 0x0f];
	}
}

/* A year's first day, as a date at the source is stored. */
static inline int64
resync_year_days(int year)
{
	return date2j(year, 1, 1) - POSTGRES_EPOCH_JDATE;
}

#endif /* RESYNC_TEXT_H */
