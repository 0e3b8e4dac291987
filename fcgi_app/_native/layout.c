/* The names of a request's params, once they have been decided about. */
#include <stdlib.h>

#include "layout.h"

static size_t last_of(const uint8_t *list, const struct fcgi_pair *pairs, size_t count,
		      const char *name)
{
	size_t length = strlen(name), i;

	for (i = count; i-- > 0;) {
		if (pairs[i].name_length == length &&
		    !memcmp(list + pairs[i].name, name, length))
			return i;
	}
	return count;
}

struct layout *layout_new(const uint8_t *list, const struct fcgi_pair *pairs, size_t count,
			  const uint8_t *keep, size_t tail_room)
{
	struct layout *layout = calloc(1, sizeof *layout);
	size_t size = 0, i;
	uint8_t *name;

	if (!layout)
		return NULL;
	for (i = 0; i < count; i++)
		size += (size_t)pairs[i].name_length + 1;
	layout->count = count;
	layout->names = calloc(1, size + FCGI_SLACK);
	layout->lengths = calloc(count + 1, sizeof *layout->lengths);
	layout->keep = calloc(1, count + 1);
	layout->tail = calloc(tail_room + 1, sizeof *layout->tail);
	if (!layout->names || !layout->lengths || !layout->keep || !layout->tail) {
		layout_free(layout);
		return NULL;
	}
	name = layout->names;
	for (i = 0; i < count; i++) {
		uint32_t length = pairs[i].name_length;

		memcpy(name, list + pairs[i].name, length);
		name[length] = '=';
		name += length + 1;
		layout->lengths[i] = length;
		layout->keep[i] = keep[i] != 0;
		layout->kept += keep[i] != 0;
	}
	layout->method = last_of(list, pairs, count, "REQUEST_METHOD");
	layout->length = last_of(list, pairs, count, "CONTENT_LENGTH");
	layout->uri = last_of(list, pairs, count, "REQUEST_URI");
	layout->script_name = last_of(list, pairs, count, "SCRIPT_NAME");
	layout->script_filename = last_of(list, pairs, count, "SCRIPT_FILENAME");
	layout->remote = last_of(list, pairs, count, "REMOTE_ADDR");
	layout->has_lengths = layout->length < count &&
		last_of(list, pairs, layout->length, "CONTENT_LENGTH") < layout->length;
	return layout;
}

void layout_free(struct layout *layout)
{
	if (!layout)
		return;
	free(layout->names);
	free(layout->lengths);
	free(layout->keep);
	free(layout->tail);
	free(layout);
}

enum match layout_match(const struct layout *layout, const uint8_t *list, size_t size,
			struct fcgi_pair *pairs)
{
	const uint8_t *name = layout->names;
	size_t position = 0, i;
	int has_nul = 0;

	for (i = 0; i < layout->count; i++) {
		struct fcgi_pair *pair = &pairs[i];
		uint32_t length = layout->lengths[i];

		if (fcgi_next_pair(list, size, &position, pair) <= 0 ||
		    pair->name_length != length || !is_same(list + pair->name, name, length))
			return MATCH_NO;
		if (layout->keep[i])
			has_nul |= holds_nul(list + pair->value, pair->value_length);
		name += length + 1;
	}
	if (position != size)
		return MATCH_NO;
	return has_nul ? MATCH_NUL : MATCH_YES;
}

int layout_is_usual(const struct layout *layout, const uint8_t *list,
		    const struct fcgi_pair *pairs, uint32_t body)
{
	const struct fcgi_pair *pair = &pairs[layout->method];

	if (layout->has_lengths)
		return 0; /* whatever they are */
	if (layout->method < layout->count &&
	    fcgi_is_head(list + pair->value, pair->value_length))
		return 0;
	pair = &pairs[layout->length];
	return layout->length == layout->count ||
	       fcgi_is_length(list + pair->value, pair->value_length, body);
}

size_t layout_index(const struct layout *layout, const uint8_t *name, size_t name_length)
{
	const uint8_t *other = layout->names;
	size_t i;

	for (i = 0; i < layout->count; i++) {
		uint32_t length = layout->lengths[i];

		if (length == name_length && layout->keep[i] && !memcmp(other, name, length))
			break;
		other += length + 1;
	}
	return i;
}
