/* The short way of a request in one piece, with a short body or none: most of what comes. */
#include "fcgi.h"

static uint32_t two(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 8 | bytes[1];
}

/* Whether a record of this type and request, without content and padding, is there. */
static int is_end(const uint8_t *header, uint8_t type, uint32_t request_id)
{
	return header[0] == FCGI_VERSION_1 && header[1] == type &&
	       two(header + 2) == request_id && !two(header + 4) && !two(header + 6);
}

int fcgi_scan_whole(const uint8_t *data, size_t size, struct fcgi_whole *whole)
{
	const uint8_t *begin = data, *params = data + 2 * FCGI_HEADER_LEN, *body;
	uint32_t request_id, length, body_length;
	size_t ends, last;

	if (size < 5 * FCGI_HEADER_LEN)
		return 0;
	request_id = two(begin + 2);
	if (begin[0] != FCGI_VERSION_1 || begin[1] != FCGI_BEGIN_REQUEST || !request_id ||
	    two(begin + 4) != FCGI_HEADER_LEN || begin[6] ||
	    two(begin + FCGI_HEADER_LEN) != FCGI_RESPONDER)
		return 0;
	length = two(params + 4);
	if (params[0] != FCGI_VERSION_1 || params[1] != FCGI_PARAMS ||
	    two(params + 2) != request_id || !length)
		return 0;
	ends = (size_t)3 * FCGI_HEADER_LEN + length + params[6];
	if (ends + 2 * FCGI_HEADER_LEN > size || !is_end(data + ends, FCGI_PARAMS, request_id))
		return 0;
	last = ends + FCGI_HEADER_LEN;
	body = data + last;
	body_length = two(body + 4);
	if (body_length) {
		if (body[0] != FCGI_VERSION_1 || body[1] != FCGI_STDIN ||
		    two(body + 2) != request_id)
			return 0;
		last += (size_t)FCGI_HEADER_LEN + body_length + body[6];
		if (last + FCGI_HEADER_LEN > size)
			return 0;
	}
	if (!is_end(data + last, FCGI_STDIN, request_id))
		return 0;
	whole->request_id = request_id;
	whole->keep = begin[FCGI_HEADER_LEN + 2] & FCGI_KEEP_CONN;
	whole->content = 3 * FCGI_HEADER_LEN;
	whole->content_length = length;
	whole->body = (uint32_t)ends + 2 * FCGI_HEADER_LEN;
	whole->body_length = body_length;
	whole->end = (uint32_t)last + FCGI_HEADER_LEN;
	return 1;
}
