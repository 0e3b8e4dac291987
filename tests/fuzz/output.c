/* fcgi_send_stdout against records that are put together by copying.
 *
 * Input: request id (two bytes), what the socket takes (three: of that many bytes; if the
 * first is 255, the second is an errno), then the size of each piece (three).
 */
#include <errno.h>
#include <sys/socket.h>

#include "check.h"

static uint8_t *seen;
static size_t seen_size, taken;
static int failure, calls;

static ssize_t collect(int fd, const struct msghdr *message, int flags)
{
	size_t i;

	CHECK(fd == 7 && flags == (MSG_DONTWAIT | MSG_NOSIGNAL));
	CHECK(!calls++ && !message->msg_name && !message->msg_control);
	seen_size = 0;
	for (i = 0; i < message->msg_iovlen; i++)
		seen_size += message->msg_iov[i].iov_len;
	seen = malloc(seen_size ? seen_size : 1);
	CHECK(seen);
	seen_size = 0;
	for (i = 0; i < message->msg_iovlen; i++) {
		CHECK(message->msg_iov[i].iov_len);
		memcpy(seen + seen_size, message->msg_iov[i].iov_base,
		       message->msg_iov[i].iov_len);
		seen_size += message->msg_iov[i].iov_len;
	}
	errno = failure;
	if (failure)
		return -1;
	if (taken > seen_size)
		taken = seen_size;
	return (ssize_t)taken;
}

#define sendmsg collect
#include "../../fcgi_app/_native/output.c"
#undef sendmsg

static size_t number(const uint8_t *data)
{
	return data[0] * 65536u + data[1] * 256u + data[2];
}

static uint8_t *expected(const uint8_t *content, size_t size, uint32_t id, size_t *length)
{
	const size_t most = size <= 65535 ? 65535 : 65528;
	uint8_t *out = malloc(size + 8 * (size / most + 1)), *at = out;

	CHECK(out);
	while (size) {
		size_t part = size < most ? size : most;
		const uint8_t header[8] = {1, 6, (uint8_t)(id >> 8), (uint8_t)id,
					   (uint8_t)(part >> 8), (uint8_t)part, 0, 0};

		memcpy(at, header, 8);
		memcpy(at + 8, content, part);
		at += 8 + part;
		content += part;
		size -= part;
	}
	*length = (size_t)(at - out);
	return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *pieces[FCGI_OUTPUT_PIECES + 2] = {0};
	uint32_t sizes[FCGI_OUTPUT_PIECES + 2], count = 0, id, i;
	uint8_t *content, *wanted;
	size_t total = 0, length, at;
	int64_t left;

	if (size < 5)
		return 0;
	id = data[0] * 256u + data[1];
	failure = data[2] == 255 ? data[3] : 0;
	taken = number(data + 2);
	for (at = 5; size - at >= 3 && count < FCGI_OUTPUT_PIECES + 2; at += 3) {
		sizes[count] = (uint32_t)number(data + at);
		total += sizes[count++];
	}
	calls = 0;
	seen = NULL;
	if (count > FCGI_OUTPUT_PIECES || total > FCGI_OUTPUT_SIZE) {
		CHECK(fcgi_send_stdout(7, id, pieces, sizes, count) == -EMSGSIZE);
		CHECK(!calls); /* and nothing was looked at */
		return 0;
	}
	content = malloc(total + 1);
	CHECK(content);
	for (at = 0; at < total; at++)
		content[at] = (uint8_t)(at * 7 + at / 251);
	for (i = 0, at = 0; i < count; at += sizes[i++])
		pieces[i] = copy_of(content + at, sizes[i]);
	left = fcgi_send_stdout(7, id, pieces, sizes, count);
	wanted = expected(content, total, id, &length);
	CHECK(calls == 1 && seen_size == length && !memcmp(seen, wanted, length));
	if (failure == EAGAIN || failure == EINTR)
		CHECK(left == (int64_t)length);
	else
		CHECK(left == (failure ? -failure : (int64_t)(length - taken)));
	for (i = 0; i < count; i++)
		free((void *)pieces[i]);
	free(content);
	free(wanted);
	free(seen);
	return 0;
}
