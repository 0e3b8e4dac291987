/* join and next_pair against a reading of section 3.4 that knows no pointers.
 *
 * Input: a list.
 */
#include "check.h"

enum { MOST = 4096 };

static size_t name_at[MOST], name_size[MOST], value_at[MOST], value_size[MOST];

/* Bytes from..from+1 or from..from+4 as a length; *from moves on; 0: cut short. */
static int a_length(const uint8_t *list, size_t size, size_t *from, size_t *length)
{
	size_t at = *from, i;

	if (at >= size)
		return 0;
	if (!(list[at] & 0x80)) {
		*length = list[at];
		*from = at + 1;
		return 1;
	}
	if (size - at < 4)
		return 0;
	*length = list[at] & 0x7f;
	for (i = 1; i < 4; i++)
		*length = *length * 256 + list[at + i];
	*from = at + 4;
	return 1;
}

/* How many pairs there are, or -1 after the *good ones before what is malformed. */
static long read_all(const uint8_t *list, size_t size, size_t *good)
{
	size_t at = 0, n;

	for (n = 0; at < size; n++) {
		*good = n;
		CHECK(n < MOST);
		if (!a_length(list, size, &at, &name_size[n]) ||
		    !a_length(list, size, &at, &value_size[n]))
			return -1;
		name_at[n] = at;
		value_at[n] = at + name_size[n];
		at = value_at[n] + value_size[n];
		if (at > size)
			return -1;
	}
	*good = n;
	return (long)n;
}

static void check_pairs(const uint8_t *list, size_t size, long count, size_t good)
{
	struct fcgi_pair pair;
	size_t position = 0, n;
	int more;

	for (n = 0; n < good; n++) {
		CHECK(fcgi_next_pair(list, size, &position, &pair) == 1);
		CHECK(pair.name == name_at[n] && pair.name_length == name_size[n]);
		CHECK(pair.value == value_at[n] && pair.value_length == value_size[n]);
	}
	more = fcgi_next_pair(list, size, &position, &pair);
	CHECK(more == (count < 0 ? -1 : 0));
}

static void check_join(const uint8_t *list, size_t size, long count)
{
	size_t need = 0, room;
	int nul = 0;
	long n;

	for (n = 0; n < count; n++) {
		need += name_size[n] + value_size[n] + 2;
		nul |= memchr(list + name_at[n], 0, name_size[n] + value_size[n]) != NULL;
	}
	for (room = need ? need - 1 : 0; room <= need + 1; room++) {
		uint8_t *out = malloc(room ? room : 1), *at;
		int64_t got;

		CHECK(out);
		got = fcgi_join_params(list, size, out, room);
		if (count < 1 || nul || room < need) {
			CHECK(got == -1);
		} else {
			CHECK(got == (int64_t)need - 1);
			at = out;
			for (n = 0; n < count; n++) {
				CHECK(!memcmp(at, list + name_at[n], name_size[n]));
				at += name_size[n];
				CHECK(!*at++);
				CHECK(!memcmp(at, list + value_at[n], value_size[n]));
				at += value_size[n];
				CHECK(!*at++);
			}
		}
		free(out);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *list;
	size_t good = 0;
	long count;

	if (size > MOST)
		return 0;
	list = copy_of(data, size);
	count = read_all(list, size, &good);
	check_pairs(list, size, count, good);
	check_join(list, size, count);
	free(list);
	return 0;
}
