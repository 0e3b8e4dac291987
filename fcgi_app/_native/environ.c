/* C's variable environ: a vector of ours for the process, another for a request.
 *
 * Vectors and strings lie in memory that is never freed. libc gives away neither its
 * vectors (setenv reallocates the one it made last) nor its strings, so we never point
 * back at them; and C code may look at ours when the interpreter is gone. A pointer that
 * C code has got by getenv() for a variable of the process stays good for ever, one for a
 * param until the next request, and reading it later is harmless.
 */
#include <stdlib.h>
#include <string.h>

#include "fcgi.h"

extern char **environ;

/* What follows from the names of a request's params, in their order. */
struct layout {
	uint8_t *names;          /* one behind the other */
	size_t names_size;
	uint32_t *lengths;       /* of each name */
	uint8_t *keep;           /* whether each is shown */
	char **tail;             /* the strings that are the same for each, and NULL */
	size_t count, kept, tail_count;
	int64_t number;
	size_t hot[FCGI_HOT];    /* which pairs are asked for in each request */
	int hot_count;
};

enum { FIRST_ROOM = 8192, FIRST_SLOTS = 128 };

/* Memory that is never freed, in a list, so that it is never lost either. */
struct block {
	struct block *before;
};

struct fcgi_environ {
	struct block *blocks;
	char *text, *saved_text;     /* the strings of the process, as shown and as they were */
	size_t text_size;
	char **vector, **saved_vector;
	size_t count;
	char *room;                  /* for the strings of a request */
	size_t room_size;
	char **shown;                /* for its vector */
	size_t slots;
	struct fcgi_pair *pairs;     /* of the list that is looked at */
	size_t pair_room;
	uint32_t hot[2 * FCGI_HOT];
	struct layout *layouts[FCGI_LAYOUTS];
	size_t layout_count;
	struct layout *latest;
	const struct layout *visible; /* of what is shown; NULL: the process's own */
};

static void *keep_for_ever(struct fcgi_environ *env, size_t size)
{
	struct block *block;

	if (size > SIZE_MAX - sizeof *block)
		return NULL;
	block = calloc(1, sizeof *block + size);
	if (!block)
		return NULL;
	block->before = env->blocks;
	env->blocks = block;
	return block + 1;
}

struct fcgi_environ *fcgi_environ_new(void)
{
	struct fcgi_environ *env = calloc(1, sizeof *env);
	char *to;
	size_t i;

	if (!env)
		return NULL;
	while (environ && environ[env->count])
		env->text_size += strlen(environ[env->count++]) + 1;
	env->text = keep_for_ever(env, env->text_size + 1);
	env->saved_text = keep_for_ever(env, env->text_size + 1);
	env->vector = keep_for_ever(env, (env->count + 1) * sizeof *env->vector);
	env->saved_vector = keep_for_ever(env, (env->count + 1) * sizeof *env->vector);
	if (!env->text || !env->saved_text || !env->vector || !env->saved_vector)
		return NULL; /* the blocks are lost; so is the process, for want of memory */
	to = env->text;
	for (i = 0; i < env->count; i++) {
		size_t size = strlen(environ[i]) + 1;

		env->vector[i] = memcpy(to, environ[i], size);
		to += size;
	}
	memcpy(env->saved_text, env->text, env->text_size);
	memcpy(env->saved_vector, env->vector, (env->count + 1) * sizeof *env->vector);
	return env;
}

size_t fcgi_environ_count(const struct fcgi_environ *env)
{
	return env->count;
}

const char *fcgi_environ_string(const struct fcgi_environ *env, size_t index)
{
	return index < env->count ? env->saved_text + (env->saved_vector[index] - env->text)
				  : NULL;
}

static void restore_text(struct fcgi_environ *env)
{
	/* A C library may have written into what getenv() gave it. */
	memcpy(env->text, env->saved_text, env->text_size + 1);
}

void fcgi_environ_restore(struct fcgi_environ *env)
{
	restore_text(env);
	memcpy(env->vector, env->saved_vector, (env->count + 1) * sizeof *env->vector);
	environ = env->vector;
	env->visible = NULL;
}

static void free_layout(struct layout *layout)
{
	if (!layout)
		return;
	free(layout->names);
	free(layout->lengths);
	free(layout->keep);
	free(layout->tail);
	free(layout);
}

void fcgi_environ_forget(struct fcgi_environ *env)
{
	while (env->layout_count)
		free_layout(env->layouts[--env->layout_count]);
	env->latest = NULL;
	env->visible = NULL;
}

/* Fill env->pairs: how many there are; -1: malformed; -2: no memory. */
static int64_t read_pairs(struct fcgi_environ *env, const uint8_t *list, size_t size)
{
	size_t position = 0, count = 0;
	int more;

	if (size > UINT32_MAX)
		return -1;
	for (;;) {
		if (count == env->pair_room) {
			size_t room = env->pair_room ? 2 * env->pair_room : FIRST_SLOTS;
			void *pairs = reallocarray(env->pairs, room, sizeof *env->pairs);

			if (!pairs)
				return -2;
			env->pairs = pairs;
			env->pair_room = room;
		}
		more = fcgi_next_pair(list, size, &position, &env->pairs[count]);
		if (more <= 0)
			return more < 0 ? -1 : (int64_t)count;
		count++;
	}
}

static int is_of_layout(const struct layout *layout, const uint8_t *list,
			const struct fcgi_pair *pairs, size_t count)
{
	const uint8_t *name = layout->names;
	size_t i;

	if (layout->count != count)
		return 0;
	for (i = 0; i < count; i++) {
		uint32_t length = layout->lengths[i];

		if (pairs[i].name_length != length ||
		    memcmp(list + pairs[i].name, name, length))
			return 0;
		name += length;
	}
	return 1;
}

static struct layout *find_layout(struct fcgi_environ *env, const uint8_t *list, size_t count)
{
	size_t i;

	if (env->latest && is_of_layout(env->latest, list, env->pairs, count))
		return env->latest;
	for (i = 0; i < env->layout_count; i++) {
		if (is_of_layout(env->layouts[i], list, env->pairs, count))
			return env->latest = env->layouts[i];
	}
	return NULL;
}

/* Fill the layout with what the list and the flags say; 0: there is no memory. */
static int lay_out(struct fcgi_environ *env, struct layout *layout, const uint8_t *list,
		   const uint8_t *keep, const uint8_t *base)
{
	uint8_t *name;
	size_t i;

	for (i = 0; i < layout->count; i++) {
		layout->names_size += env->pairs[i].name_length;
		layout->kept += keep[i] != 0;
	}
	layout->names = malloc(layout->names_size + 1);
	layout->lengths = calloc(layout->count + 1, sizeof *layout->lengths);
	layout->keep = malloc(layout->count + 1);
	layout->tail = calloc(env->count + 1, sizeof *layout->tail);
	if (!layout->names || !layout->lengths || !layout->keep || !layout->tail)
		return 0;
	name = layout->names;
	for (i = 0; i < layout->count; i++) {
		uint32_t length = env->pairs[i].name_length;

		memcpy(name, list + env->pairs[i].name, length);
		name += length;
		layout->lengths[i] = length;
		layout->keep[i] = keep[i];
	}
	for (i = 0; i < env->count; i++) {
		if (base[i])
			layout->tail[layout->tail_count++] = env->saved_vector[i];
	}
	layout->tail_count++; /* NULL */
	return 1;
}

int64_t fcgi_environ_learn(struct fcgi_environ *env, const uint8_t *list, size_t size,
			   const uint8_t *keep, const uint8_t *base)
{
	struct layout *layout;
	int64_t count;

	if (env->layout_count == FCGI_LAYOUTS)
		return FCGI_UNUSUAL;
	count = read_pairs(env, list, size);
	if (count < 0)
		return count == -1 ? FCGI_UNUSUAL : FCGI_NO_MEMORY;
	layout = calloc(1, sizeof *layout);
	if (layout)
		layout->count = (size_t)count;
	if (!layout || !lay_out(env, layout, list, keep, base)) {
		free_layout(layout);
		return FCGI_NO_MEMORY;
	}
	env->latest = env->layouts[env->layout_count++] = layout;
	layout->number = (int64_t)env->layout_count;
	return layout->number;
}

/* Make room for a request; sizes double, so all old ones together are smaller. */
static int reserve(struct fcgi_environ *env, size_t size, size_t slots)
{
	if (size > env->room_size) {
		size_t room = env->room_size ? 2 * env->room_size : FIRST_ROOM;
		char *memory;

		if (room < size)
			room = size;
		/* One NUL that is never overwritten: a reader that is late finds an end. */
		memory = keep_for_ever(env, room + 1);
		if (!memory)
			return 0;
		env->room = memory;
		env->room_size = room;
	}
	if (slots > env->slots) {
		size_t room = env->slots ? 2 * env->slots : FIRST_SLOTS;
		char **memory;

		if (room < slots)
			room = slots;
		memory = keep_for_ever(env, room * sizeof *memory);
		if (!memory)
			return 0;
		env->shown = memory;
		env->slots = room;
	}
	return 1;
}

int64_t fcgi_environ_show(struct fcgi_environ *env, const uint8_t *list, size_t size)
{
	const struct layout *layout;
	int64_t count = read_pairs(env, list, size);
	size_t i, done = 0;
	char *to;

	if (count < 0)
		return count == -1 ? FCGI_UNUSUAL : FCGI_NO_MEMORY;
	layout = find_layout(env, list, (size_t)count);
	if (!layout)
		return FCGI_UNKNOWN;
	for (i = 0; i < layout->count; i++) {
		if (layout->keep[i] && memchr(list + env->pairs[i].value, 0,
					      env->pairs[i].value_length))
			return FCGI_UNUSUAL;
	}
	/* "=" and NUL for each pair, whose lengths took two bytes at least. */
	if (!reserve(env, size + 1, layout->kept + layout->tail_count))
		return FCGI_NO_MEMORY;
	to = env->room;
	for (i = 0; i < layout->count; i++) {
		const struct fcgi_pair *pair = &env->pairs[i];

		if (!layout->keep[i])
			continue;
		env->shown[done++] = to;
		memcpy(to, list + pair->name, pair->name_length);
		to += pair->name_length;
		*to++ = '=';
		memcpy(to, list + pair->value, pair->value_length);
		to += pair->value_length;
		*to++ = 0;
	}
	for (i = 0; i < (size_t)layout->hot_count; i++) {
		const struct fcgi_pair *pair = &env->pairs[layout->hot[i]];

		env->hot[2 * i] = pair->value;
		env->hot[2 * i + 1] = pair->value + pair->value_length;
	}
	memcpy(env->shown + done, layout->tail, layout->tail_count * sizeof *layout->tail);
	restore_text(env);
	env->visible = layout;
	environ = env->shown;
	return layout->number;
}

/* Which pair of a layout is shown under a name; its count: none. */
static size_t index_of(const struct layout *layout, const uint8_t *name, size_t name_length)
{
	const uint8_t *other = layout->names;
	size_t i;

	for (i = 0; i < layout->count; i++) {
		uint32_t length = layout->lengths[i];

		if (length == name_length && layout->keep[i] && !memcmp(other, name, length))
			break;
		other += length;
	}
	return i;
}

int64_t fcgi_environ_find(const struct fcgi_environ *env, const uint8_t *name,
			  size_t name_length)
{
	const struct layout *layout = env->visible;
	const struct fcgi_pair *pair;
	size_t i;

	if (!layout)
		return -1;
	i = index_of(layout, name, name_length);
	if (i == layout->count)
		return -1;
	pair = &env->pairs[i];
	return (int64_t)pair->value << 32 | (pair->value + pair->value_length);
}

int fcgi_environ_heat(struct fcgi_environ *env, int64_t number, const uint8_t *name,
		      size_t name_length)
{
	struct layout *layout;
	size_t i;

	if (number < 1 || (uint64_t)number > env->layout_count)
		return -1;
	layout = env->layouts[number - 1];
	i = index_of(layout, name, name_length);
	if (i == layout->count || layout->hot_count == FCGI_HOT)
		return -1;
	layout->hot[layout->hot_count] = i;
	return layout->hot_count++;
}

const uint32_t *fcgi_environ_hot(const struct fcgi_environ *env)
{
	return env->hot;
}
