/* What follows from the names of a request's params: shared by layout.c and environ.c. */
#ifndef LAYOUT_H
#define LAYOUT_H

#include "eights.h"
#include "fcgi.h"

/* Those names, in their order, and what is to become of them. */
struct layout {
	uint8_t *names;          /* "name=" one behind the other, and FCGI_SLACK bytes */
	uint32_t *lengths;       /* of each name */
	uint8_t *keep;           /* whether each is shown */
	char **tail;             /* the strings that are the same for each, and NULL */
	size_t count, kept, tail_count;
	int64_t number;
	size_t hot[FCGI_HOT];    /* which pairs are asked for in each request */
	int hot_count;
	size_t method, length;   /* the last REQUEST_METHOD, CONTENT_LENGTH; count: none */
	size_t uri, script_name, script_filename, remote; /* likewise, for the scoreboard */
	int has_lengths;         /* there are several of the latter */
};

/* Lay out the pairs of a list; keep: whether each is shown. The tail has room for the
 * strings of the process, but is empty. NULL: there is no memory. */
struct layout *layout_new(const uint8_t *list, const struct fcgi_pair *pairs, size_t count,
			  const uint8_t *keep, size_t tail_room);
void layout_free(struct layout *layout);

enum match {
	MATCH_NO,      /* it has other names, or is malformed */
	MATCH_NUL,     /* but a value that is shown holds NUL */
	MATCH_YES,
};

/* Whether a list, with FCGI_SLACK bytes behind it, has the layout's names. pairs, which
 * has room for its count, is filled if so. */
enum match layout_match(const struct layout *layout, const uint8_t *list, size_t size,
			struct fcgi_pair *pairs);

/* Whether it is the list of a request whose body has so many bytes, and whose answer is to
 * have a body. */
int layout_is_usual(const struct layout *layout, const uint8_t *list,
		    const struct fcgi_pair *pairs, uint32_t body);

/* Which pair of a layout is shown under a name; its count: none. */
size_t layout_index(const struct layout *layout, const uint8_t *name, size_t name_length);

#endif
