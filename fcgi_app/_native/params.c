/* Name-value lists: section 3.4 of the FastCGI 1.0 specification. */
#include <string.h>

#include "fcgi.h"

int64_t fcgi_join_params(const uint8_t *list, size_t size, uint8_t *out, size_t room)
{
	struct fcgi_pair pair;
	size_t position = 0, done = 0;
	int more;

	if (!size)
		return -1;
	while ((more = fcgi_next_pair(list, size, &position, &pair)) > 0) {
		size_t length = (size_t)pair.name_length + pair.value_length;

		if (length + 2 > room - done || memchr(list + pair.name, 0, length))
			return -1;
		memcpy(out + done, list + pair.name, pair.name_length);
		done += pair.name_length;
		out[done++] = 0;
		memcpy(out + done, list + pair.value, pair.value_length);
		done += pair.value_length;
		out[done++] = 0;
	}
	return more < 0 ? -1 : (int64_t)done - 1;
}
