/* A long body: what it is of, without the headers in between. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "fcgi.h"

static uint32_t at_most(size_t number, uint32_t bound)
{
	return number < bound ? (uint32_t)number : bound;
}

void fcgi_gather_body(const uint8_t *data, size_t size, uint32_t request_id, uint8_t *out,
		      struct fcgi_body *body)
{
	const uint8_t *at = data, *end = data + size;

	body->size = 0;
	for (;;) {
		uint32_t part = at_most((size_t)(end - at), body->left);

		if (out + body->size != at) /* in place, the first is there already */
			memmove(out + body->size, at, part);
		body->size += part;
		body->left -= part;
		at += part;
		part = at_most((size_t)(end - at), body->skip);
		body->skip -= part;
		at += part;
		if (body->left || body->skip || end - at < FCGI_HEADER_LEN ||
		    at[0] != FCGI_VERSION_1 || at[1] != FCGI_STDIN ||
		    ((uint32_t)at[2] << 8 | at[3]) != request_id || !(at[4] | at[5]))
			break;
		body->left = (uint32_t)at[4] << 8 | at[5];
		body->skip = at[6];
		at += FCGI_HEADER_LEN;
	}
	body->consumed = (uint32_t)(at - data);
}

int64_t fcgi_receive_body(int fd, uint32_t request_id, uint8_t *room, size_t size, size_t there,
			  uint32_t left, uint32_t skip, struct fcgi_body *body)
{
	ssize_t came = recv(fd, room + there, size - there, MSG_DONTWAIT);

	if (came <= 0)
		return came < 0 ? -errno : 0;
	body->left = left;
	body->skip = skip;
	fcgi_gather_body(room, there + (size_t)came, request_id, room, body);
	return came;
}
