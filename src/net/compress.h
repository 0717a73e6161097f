/*
 * compress.h
 *		Bytes waiting to be sent, and their compression on the way there.
 *
 * Includes nothing of ours but net/http.h (the encodings).
 */
#ifndef RESYNC_COMPRESS_H
#define RESYNC_COMPRESS_H

#include "postgres.h"

#include "net/http.h"

/* First in, first out: data[start .. start + len) is waiting. */
typedef struct ByteQueue
{
	MemoryContext context;
	char		 *data;
	Size		  start;
	Size		  len;
	Size		  size;
} ByteQueue;

/*
 * Room for at least `space` more bytes behind those waiting; the caller adds to
 * len what it wrote.  May move data.
 */
extern char *resync_queue_reserve(ByteQueue *queue, Size space);

typedef struct Compressor Compressor;

/*
 * In context; its memory outside of PostgreSQL goes when context is reset or
 * deleted.  Reusable for any number of streams, one at a time.
 */
extern Compressor *resync_compress_make(MemoryContext context, HttpEncoding encoding);

/* A new stream; whatever was left of the last one is forgotten. */
extern void resync_compress_begin(Compressor *compressor);

/* Bytes in, compressed bytes (perhaps none yet) to the queue.  May raise. */
extern void
resync_compress_put(Compressor *compressor, const char *data, Size len, ByteQueue *queue);

/* The rest of the stream to the queue.  May raise. */
extern void resync_compress_end(Compressor *compressor, ByteQueue *queue);

/* Name for Content-Encoding, or NULL for HTTP_IDENTITY. */
extern const char *resync_compress_name(HttpEncoding encoding);

#endif /* RESYNC_COMPRESS_H */
