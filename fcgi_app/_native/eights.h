/* Short strings, eight bytes at a time: a call of memcpy(3) costs more than most params.
 *
 * Whatever is read or written has FCGI_SLACK bytes behind its end, which nobody needs.
 */
#ifndef EIGHTS_H
#define EIGHTS_H

#include "fcgi.h"

enum { MOST_IN_EIGHTS = 64 };

static const uint8_t eights_fill[16] = {
	0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
};

static inline uint64_t load_eight(const uint8_t *from)
{
	uint64_t word;

	memcpy(&word, from, sizeof word);
	return word;
}

/* All bits are set in the bytes of a word behind the first count, of 0 to 8. */
static inline uint64_t fill_behind(size_t count)
{
	return load_eight(eights_fill + 8 - count);
}

static inline int is_same(const uint8_t *a, const uint8_t *b, size_t size)
{
	if (size > MOST_IN_EIGHTS)
		return !memcmp(a, b, size);
	for (; size > 8; size -= 8, a += 8, b += 8) {
		if (load_eight(a) != load_eight(b))
			return 0;
	}
	return !((load_eight(a) ^ load_eight(b)) & ~fill_behind(size));
}

static inline int has_zero(uint64_t word)
{
	return ((word - 0x0101010101010101u) & ~word & 0x8080808080808080u) != 0;
}

static inline int holds_nul(const uint8_t *text, size_t size)
{
	if (size > MOST_IN_EIGHTS)
		return memchr(text, 0, size) != NULL;
	for (; size > 8; size -= 8, text += 8) {
		if (has_zero(load_eight(text)))
			return 1;
	}
	return has_zero(load_eight(text) | fill_behind(size));
}

/* Copy size bytes, and some more; returns the end of what was asked for. */
static inline char *copy_short(char *to, const uint8_t *from, size_t size)
{
	size_t at;

	if (size > MOST_IN_EIGHTS)
		memcpy(to, from, size);
	else {
		for (at = 0; at < size; at += 8)
			memcpy(to + at, from + at, 8);
	}
	return to + size;
}

#endif
