/* learn, show and restore: every string that is shown is one of the list or of the process,
 * and the process's are whole again after restore, whatever C code did in between.
 *
 * Input: steps, each a byte for what is done, and where there is a list its length in two
 * bytes, the list, and then for learn a byte for each pair and each string of the process.
 */
#include "check.h"

extern char **environ;

enum { MOST = 4096, LAYOUTS = 32, OWN = 6 };

static const char *const own[OWN] = {
	"PATH=/usr/bin", "HOME=/root", "EMPTY=", "=odd", "no equals sign", "LONG=0123456789"
};

struct learnt {
	int64_t serial;
	uint8_t *list, *keep;
	size_t size;
	uint8_t base[OWN];
};

static struct fcgi_environ *env;
static struct learnt table[LAYOUTS];
static size_t learnt_count;
static struct fcgi_pair pairs[MOST], others[MOST];

/* A list read on its own: the number of pairs, or -1. */
static long read_list(const uint8_t *list, size_t size, struct fcgi_pair *to)
{
	size_t position = 0;
	long count = 0;
	int more;

	/* fcgi_next_pair has a target of its own, params.c. */
	while ((more = fcgi_next_pair(list, size, &position, &to[count])) > 0)
		CHECK(++count < MOST);
	return more < 0 ? -1 : count;
}

static void forget(void)
{
	while (learnt_count) {
		free(table[--learnt_count].list);
		free(table[learnt_count].keep);
	}
}

static int has_names_of(const struct learnt *one, const uint8_t *list, long count)
{
	long n;

	if (read_list(one->list, one->size, others) != count)
		return 0;
	for (n = 0; n < count; n++) {
		if (pairs[n].name_length != others[n].name_length ||
		    memcmp(list + pairs[n].name, one->list + others[n].name,
			   pairs[n].name_length))
			return 0;
	}
	return 1;
}

static int has_nul(const struct learnt *one, const uint8_t *list, long count)
{
	long n;

	for (n = 0; n < count; n++) {
		if (one->keep[n] &&
		    memchr(list + pairs[n].value, 0, pairs[n].value_length))
			return 1;
	}
	return 0;
}

/* What is found for a name is the value of the first pair of that name which is shown. */
static void check_found(const struct learnt *one, const uint8_t *list, long count, long n)
{
	const struct fcgi_pair *pair = &pairs[n];
	int64_t span = fcgi_environ_find(env, list + pair->name, pair->name_length);
	long i;

	for (i = 0; i < count; i++) {
		if (one->keep[i] && pairs[i].name_length == pair->name_length &&
		    !memcmp(list + pairs[i].name, list + pair->name, pair->name_length))
			break;
	}
	if (i == count)
		CHECK(span == -1);
	else
		CHECK(span == ((int64_t)pairs[i].value << 32 |
			       (pairs[i].value + pairs[i].value_length)));
}

static void check_shown(const struct learnt *one, const uint8_t *list, long count)
{
	char **at = environ;
	long n;
	int i;

	for (n = 0; n < count; n++) {
		const struct fcgi_pair *pair = &pairs[n];

		check_found(one, list, count, n);
		if (!one->keep[n])
			continue;
		CHECK(*at);
		CHECK(!memcmp(*at, list + pair->name, pair->name_length));
		CHECK((*at)[pair->name_length] == '=');
		CHECK(!memcmp(*at + pair->name_length + 1, list + pair->value,
			      pair->value_length));
		CHECK(!(*at)[pair->name_length + 1 + pair->value_length]);
		at++;
	}
	for (i = 0; i < OWN; i++) {
		if (one->base[i])
			CHECK(*at && !strcmp(*at++, own[i]));
	}
	CHECK(!*at);
}

static void check_restored(void)
{
	int i;

	for (i = 0; i < OWN; i++)
		CHECK(environ[i] && !strcmp(environ[i], own[i]));
	CHECK(!environ[OWN]);
	CHECK(fcgi_environ_find(env, (const uint8_t *)"A", 1) == -1);
}

static void learn(const uint8_t *list, size_t size, const uint8_t *flags, size_t flag_count)
{
	long count = read_list(list, size, pairs), n;
	struct learnt *one;
	uint8_t *keep, base[OWN];
	int64_t serial;
	int i;

	keep = malloc(count > 0 ? (size_t)count : 1);
	CHECK(keep);
	for (n = 0; n < count; n++)
		keep[n] = (size_t)n < flag_count ? flags[n] & 1 : 1;
	for (i = 0; i < OWN; i++)
		base[i] = flag_count ? (flags[0] >> (i + 1)) & 1 : 1;
	if (learnt_count == LAYOUTS) {
		CHECK(fcgi_environ_learn(env, list, size, keep, base) == FCGI_UNUSUAL);
		fcgi_environ_forget(env);
		forget();
	}
	serial = fcgi_environ_learn(env, list, size, keep, base);
	if (count < 0) {
		CHECK(serial == FCGI_UNUSUAL);
		free(keep);
		return;
	}
	CHECK(serial == (int64_t)learnt_count + 1);
	one = &table[learnt_count++];
	one->serial = serial;
	one->list = copy_of(list, size);
	one->size = size;
	one->keep = keep;
	memcpy(one->base, base, OWN);
}

static void show(const uint8_t *list, size_t size)
{
	char **before = environ;
	int64_t serial = fcgi_environ_show(env, list, size);
	long count = read_list(list, size, pairs);
	size_t i;

	if (serial > 0) {
		for (i = 0; i < learnt_count && table[i].serial != serial; i++)
			;
		CHECK(count >= 0 && i < learnt_count);
		CHECK(has_names_of(&table[i], list, count));
		check_shown(&table[i], list, count);
		return;
	}
	CHECK(environ == before);
	if (serial == FCGI_UNUSUAL) {
		for (i = 0; count >= 0 && i < learnt_count; i++) {
			if (has_names_of(&table[i], list, count) &&
			    has_nul(&table[i], list, count))
				return;
		}
		CHECK(count < 0);
		return;
	}
	CHECK(serial == FCGI_UNKNOWN && count >= 0);
	for (i = 0; i < learnt_count; i++)
		CHECK(!has_names_of(&table[i], list, count));
}

/* The one walk for requests with a body of so many bytes: the same as show, or nothing. */
static void show_usual(const uint8_t *list, size_t size, size_t most)
{
	uint8_t *copy = malloc(size + FCGI_SLACK), *memory = calloc(1, 488);
	struct fcgi_slot slot = {.memory = memory, .most = 2, .path_size = {1}, .path = {"A"}};
	long count = read_list(list, size, pairs), n;
	char **before;
	int64_t serial;
	size_t i;

	CHECK(copy && memory);
	memcpy(copy, list, size);
	memset(copy + size, 0xee, FCGI_SLACK);
	fcgi_environ_restore(env);
	before = environ;
	serial = fcgi_environ_show_usual(env, copy, size, most, size % 3 ? 0 : 12,
					 size % 2 ? &slot : NULL);
	free(copy);
	CHECK(slot.begun == (serial && size % 2));
	CHECK(memory[0] == 2 * slot.begun && !memory[1]);
	free(memory);
	if (!serial) {
		CHECK(environ == before);
		return;
	}
	for (i = 0; i < learnt_count && table[i].serial != serial; i++)
		;
	CHECK(count >= 0 && (size_t)count <= most && i < learnt_count);
	CHECK(has_names_of(&table[i], list, count));
	check_shown(&table[i], list, count);
	for (n = 0; n < count; n++) {
		const uint8_t *name = list + pairs[n].name, *value = list + pairs[n].value;
		uint32_t length = pairs[n].name_length, size_of = pairs[n].value_length;

		if (length == 14 && !memcmp(name, "CONTENT_LENGTH", 14))
			CHECK(fcgi_is_length(value, size_of, size % 3 ? 0 : 12));
	}
	for (n = count; n-- > 0;) {
		if (pairs[n].name_length == 14 &&
		    !memcmp(list + pairs[n].name, "REQUEST_METHOD", 14)) {
			CHECK(!fcgi_is_head(list + pairs[n].value, pairs[n].value_length));
			break;
		}
	}
}

/* What a C library may do: write into what getenv() gave it, and change the vector. */
static void spoil(void)
{
	if (environ && environ[0])
		memset(environ[0], 'x', strlen(environ[0]));
	if (environ && environ[0] && environ[1])
		environ[1] = NULL;
}

static void start(void)
{
	char *mine[OWN + 1], **before = environ;
	size_t i;

	for (i = 0; i < OWN; i++) {
		mine[i] = strdup(own[i]);
		CHECK(mine[i]);
	}
	mine[OWN] = NULL;
	environ = mine;
	env = fcgi_environ_new();
	CHECK(env && fcgi_environ_count(env) == OWN);
	for (i = 0; i < OWN; i++) {
		CHECK(!strcmp(fcgi_environ_string(env, i), own[i]));
		free(mine[i]);
	}
	CHECK(!fcgi_environ_string(env, OWN));
	environ = before;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *end = data + size;
	char **before = environ;

	if (size > MOST)
		return 0;
	if (!env)
		start();
	fcgi_environ_forget(env);
	fcgi_environ_restore(env);
	check_restored();
	while (data < end) {
		uint8_t *list = NULL;
		size_t length = 0;
		unsigned step = *data++ % 8;

		if (step < 4) {
			if (end - data < 2)
				break;
			length = data[0] * 256u + data[1];
			data += 2;
			if (length > (size_t)(end - data))
				length = (size_t)(end - data);
			list = copy_of(data, length);
			data += length;
		}
		if (step < 2) {
			size_t flags = data < end ? *data++ : 0;

			if (flags > (size_t)(end - data))
				flags = (size_t)(end - data);
			learn(list, length, data, flags);
			data += flags;
		}
		if (step == 3)
			show_usual(list, length, length % 8 ? 40 : 2);
		else if (step < 4)
			show(list, length);
		else if (step == 4) {
			fcgi_environ_restore(env);
			check_restored();
		} else if (step == 5) {
			fcgi_environ_forget(env);
			forget();
		} else if (step == 6)
			spoil();
		free(list);
	}
	fcgi_environ_restore(env);
	check_restored();
	fcgi_environ_forget(env);
	fcgi_environ_forget(env); /* those that were forgotten, too: else it looks for leaks */
	forget();
	environ = before;
	return 0;
}
