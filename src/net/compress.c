/*
 * compress.c
 *		Bytes waiting to be sent, and their compression on the way there.
 *
 * zstd, LZ4 frames and gzip, each at its fastest ordinary level: a load waits
 * for the compressor sooner than for the network.
 *
 * Called by http.c, in any process.  No locks, no transaction.
 */
#include "postgres.h"

#include "net/compress.h"

#include <lz4frame.h>
#include <zlib.h>
#include <zstd.h>

#include "utils/memutils.h"

#define ZSTD_LEVEL 1
#define GZIP_LEVEL 1

/* zlib: 15 bits of window, 16 more for a gzip header */
#define GZIP_WINDOW_BITS (15 + 16)
#define GZIP_MEM_LEVEL 8

/* Fed to LZ4 at a time, so that room for the worst case stays small. */
#define LZ4_PIECE (256 * 1024)

static const LZ4F_preferences_t lz4_preferences = {
	.frameInfo = {.blockSizeID = LZ4F_max256KB},
};

/* Room asked for at a time where a library fills what it is given. */
#define OUTPUT_PIECE (128 * 1024)

struct Compressor
{
	HttpEncoding		  encoding;
	ZSTD_CCtx			 *zstd;
	LZ4F_cctx			 *lz4;
	bool				  lz4_begun; /* the frame's header is written */
	z_stream			  gzip;
	bool				  has_gzip;
	MemoryContextCallback callback;
};

char *
resync_queue_reserve(ByteQueue *queue, Size space)
{
	if (queue->len == 0)
		queue->start = 0;
	if (queue->start + queue->len + space > queue->size)
	{
		if (queue->start > 0)
		{
			memmove(queue->data, queue->data + queue->start, queue->len);
			queue->start = 0;
		}
		if (queue->len + space > queue->size)
		{
			Size size = Max(queue->len + space, queue->size * 2);

			if (queue->data == NULL)
				queue->data = MemoryContextAllocHuge(queue->context, size);
			else
				queue->data = repalloc_huge(queue->data, size);
			queue->size = size;
		}
	}
	return queue->data + queue->start + queue->len;
}

const char *
resync_compress_name(HttpEncoding encoding)
{
	switch (encoding)
	{
		case HTTP_IDENTITY:
			return NULL;
		case HTTP_GZIP:
			return "gzip";
		case HTTP_ZSTD:
			return "zstd";
		case HTTP_LZ4:
			return "lz4";
	}
	elog(ERROR, "unknown encoding %d", (int) encoding);
}

static void
free_libraries(void *arg)
{
	Compressor *c = arg;

	if (c->zstd != NULL)
		ZSTD_freeCCtx(c->zstd);
	if (c->lz4 != NULL)
		LZ4F_freeCompressionContext(c->lz4);
	if (c->has_gzip)
		deflateEnd(&c->gzip);
	c->zstd = NULL;
	c->lz4 = NULL;
	c->has_gzip = false;
}

static void
raise_failure(const char *library, const char *reason)
{
	ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
					errmsg("could not compress data with %s: %s", library, reason)));
}

Compressor *
resync_compress_make(MemoryContext context, HttpEncoding encoding)
{
	Compressor *c = MemoryContextAllocZero(context, sizeof(Compressor));
	bool		ok = true;

	c->encoding = encoding;
	c->callback.func = free_libraries;
	c->callback.arg = c;
	MemoryContextRegisterResetCallback(context, &c->callback);
	switch (encoding)
	{
		case HTTP_IDENTITY:
			break;
		case HTTP_ZSTD:
			c->zstd = ZSTD_createCCtx();
			ok = c->zstd != NULL && !ZSTD_isError(ZSTD_CCtx_setParameter(
										c->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL));
			break;
		case HTTP_LZ4:
			ok = !LZ4F_isError(LZ4F_createCompressionContext(&c->lz4, LZ4F_VERSION));
			break;
		case HTTP_GZIP:
			ok = deflateInit2(&c->gzip, GZIP_LEVEL, Z_DEFLATED, GZIP_WINDOW_BITS, GZIP_MEM_LEVEL,
							  Z_DEFAULT_STRATEGY) == Z_OK;
			c->has_gzip = ok;
			break;
	}
	if (!ok)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	return c;
}

void
resync_compress_begin(Compressor *c)
{
	c->lz4_begun = false;
	if (c->zstd != NULL)
		ZSTD_CCtx_reset(c->zstd, ZSTD_reset_session_only);
	if (c->has_gzip)
		deflateReset(&c->gzip);
}

static void
put_zstd(Compressor *c, const char *data, Size len, ZSTD_EndDirective how, ByteQueue *queue)
{
	ZSTD_inBuffer in = {data, len, 0};
	size_t		  rest;

	do
	{
		ZSTD_outBuffer out = {resync_queue_reserve(queue, OUTPUT_PIECE), OUTPUT_PIECE, 0};

		rest = ZSTD_compressStream2(c->zstd, &out, &in, how);
		if (ZSTD_isError(rest))
			raise_failure("zstd", ZSTD_getErrorName(rest));
		queue->len += out.pos;
	} while (in.pos < in.size || (how == ZSTD_e_end && rest > 0));
}

static void
put_gzip(Compressor *c, const char *data, Size len, int flush, ByteQueue *queue)
{
	int rc;

	do
	{
		Size piece = Min(len, (Size) (1 << 30));

		c->gzip.next_in = (Bytef *) data;
		c->gzip.avail_in = piece;
		do
		{
			c->gzip.next_out = (Bytef *) resync_queue_reserve(queue, OUTPUT_PIECE);
			c->gzip.avail_out = OUTPUT_PIECE;
			rc = deflate(&c->gzip, flush);
			if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
				raise_failure("gzip", zError(rc));
			queue->len += OUTPUT_PIECE - c->gzip.avail_out;
		} while (c->gzip.avail_out == 0 || (flush == Z_FINISH && rc != Z_STREAM_END));
		data += piece;
		len -= piece;
	} while (len > 0);
}

static void
add_lz4(ByteQueue *queue, size_t produced)
{
	if (LZ4F_isError(produced))
		raise_failure("lz4", LZ4F_getErrorName(produced));
	queue->len += produced;
}

static void
begin_lz4(Compressor *c, ByteQueue *queue)
{
	if (c->lz4_begun)
		return;
	add_lz4(queue, LZ4F_compressBegin(c->lz4, resync_queue_reserve(queue, LZ4F_HEADER_SIZE_MAX),
									  LZ4F_HEADER_SIZE_MAX, &lz4_preferences));
	c->lz4_begun = true;
}

void
resync_compress_put(Compressor *c, const char *data, Size len, ByteQueue *queue)
{
	if (len == 0)
		return;
	switch (c->encoding)
	{
		case HTTP_IDENTITY:
			memcpy(resync_queue_reserve(queue, len), data, len);
			queue->len += len;
			break;
		case HTTP_ZSTD:
			put_zstd(c, data, len, ZSTD_e_continue, queue);
			break;
		case HTTP_GZIP:
			put_gzip(c, data, len, Z_NO_FLUSH, queue);
			break;
		case HTTP_LZ4:
			begin_lz4(c, queue);
			while (len > 0)
			{
				Size   piece = Min(len, (Size) LZ4_PIECE);
				size_t room = LZ4F_compressBound(piece, &lz4_preferences);

				add_lz4(queue, LZ4F_compressUpdate(c->lz4, resync_queue_reserve(queue, room), room,
												   data, piece, NULL));
				data += piece;
				len -= piece;
			}
			break;
	}
}

void
resync_compress_end(Compressor *c, ByteQueue *queue)
{
	switch (c->encoding)
	{
		case HTTP_IDENTITY:
			break;
		case HTTP_ZSTD:
			put_zstd(c, NULL, 0, ZSTD_e_end, queue);
			break;
		case HTTP_GZIP:
			put_gzip(c, NULL, 0, Z_FINISH, queue);
			break;
		case HTTP_LZ4:
		{
			size_t room = LZ4F_compressBound(0, &lz4_preferences);

			begin_lz4(c, queue);
			add_lz4(queue, LZ4F_compressEnd(c->lz4, resync_queue_reserve(queue, room), room, NULL));
			break;
		}
	}
}
