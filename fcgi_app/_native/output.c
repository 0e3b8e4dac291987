/* A long response: STDOUT records whose content stays where it is. */
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "fcgi.h"

enum {
	RECORDS = FCGI_OUTPUT_SIZE / FCGI_STREAM_CHUNK + 1,
	/* A record has a header, and ends at most one part that does not end a piece. */
	PARTS = 2 * RECORDS + FCGI_OUTPUT_PIECES,
};

struct records {
	uint32_t count, used;
	uint8_t headers[RECORDS][FCGI_HEADER_LEN];
	struct iovec parts[PARTS];
};

static void add_part(struct records *records, const uint8_t *data, size_t size)
{
	struct iovec *part = &records->parts[records->used++];

	part->iov_base = (void *)data; /* which sendmsg(2) only reads */
	part->iov_len = size;
}

static void add_header(struct records *records, uint32_t request_id, uint32_t length)
{
	uint8_t *header = records->headers[records->count++];

	fcgi_put_header(header, FCGI_STDOUT, request_id, length);
	add_part(records, header, FCGI_HEADER_LEN);
}

/* Into one record if all fits in, otherwise into several of FCGI_STREAM_CHUNK bytes, of which
 * the last one may have less. */
static void cut(struct records *records, uint32_t request_id, const uint8_t *const *pieces,
		const uint32_t *sizes, uint32_t count, uint32_t size)
{
	const uint32_t most = size <= FCGI_MAX_LENGTH ? FCGI_MAX_LENGTH : FCGI_STREAM_CHUNK;
	uint32_t i, room = 0;

	records->count = records->used = 0;
	for (i = 0; i < count; i++) {
		const uint8_t *piece = pieces[i];
		uint32_t left = sizes[i], part;

		for (; left; left -= part) {
			if (!room) {
				room = size < most ? size : most;
				size -= room;
				add_header(records, request_id, room);
			}
			part = left < room ? left : room;
			add_part(records, piece, part);
			piece += part;
			room -= part;
		}
	}
}

int64_t fcgi_send_stdout(int fd, uint32_t request_id, const uint8_t *const *pieces,
			 const uint32_t *sizes, uint32_t count)
{
	struct records records;
	struct msghdr message = {.msg_iov = records.parts};
	uint64_t size = 0;
	ssize_t sent;
	uint32_t i;

	if (count > FCGI_OUTPUT_PIECES)
		return -EMSGSIZE;
	for (i = 0; i < count; i++)
		size += sizes[i];
	if (size > FCGI_OUTPUT_SIZE)
		return -EMSGSIZE;
	cut(&records, request_id, pieces, sizes, count, (uint32_t)size);
	message.msg_iovlen = records.used;
	sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0) {
		if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		sent = 0;
	}
	return (int64_t)(size + records.count * FCGI_HEADER_LEN) - sent;
}
