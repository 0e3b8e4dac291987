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

#include "slot.h"

extern char **environ;

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
	uint8_t *copy;               /* of such a list, with room behind it */
	size_t copy_room;
	uint32_t hot[2 * FCGI_HOT];
	struct layout *layouts[FCGI_LAYOUTS];
	size_t layout_count;
	struct layout *forgotten[FCGI_LAYOUTS]; /* a thread may still look into one */
	size_t forgotten_count;
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

void fcgi_environ_forget(struct fcgi_environ *env)
{
	while (env->forgotten_count)
		layout_free(env->forgotten[--env->forgotten_count]);
	env->latest = NULL;
	env->visible = NULL;
	while (env->layout_count)
		env->forgotten[env->forgotten_count++] = env->layouts[--env->layout_count];
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
			struct fcgi_pair *pairs = keep_for_ever(env, room * sizeof *pairs);

			if (!pairs)
				return -2;
			/* A thread may still read the old ones, which are not freed. */
			if (count)
				memcpy(pairs, env->pairs, count * sizeof *pairs);
			env->pairs = pairs;
			env->pair_room = room;
		}
		more = fcgi_next_pair(list, size, &position, &env->pairs[count]);
		if (more <= 0)
			return more < 0 ? -1 : (int64_t)count;
		count++;
	}
}

int64_t fcgi_environ_learn(struct fcgi_environ *env, const uint8_t *list, size_t size,
			   const uint8_t *keep, const uint8_t *base)
{
	struct layout *layout;
	int64_t count;
	size_t i;

	if (env->layout_count == FCGI_LAYOUTS)
		return FCGI_UNUSUAL;
	count = read_pairs(env, list, size);
	if (count < 0)
		return count == -1 ? FCGI_UNUSUAL : FCGI_NO_MEMORY;
	layout = layout_new(list, env->pairs, (size_t)count, keep, env->count);
	if (!layout)
		return FCGI_NO_MEMORY;
	for (i = 0; i < env->count; i++) {
		if (base[i])
			layout->tail[layout->tail_count++] = env->saved_vector[i];
	}
	layout->tail_count++; /* NULL */
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

/* Find the layout of a list, which has FCGI_SLACK bytes behind it, and fill env->pairs:
 * FCGI_UNKNOWN, FCGI_UNUSUAL, or its number, and that is env->latest. */
static int64_t find_layout(struct fcgi_environ *env, const uint8_t *list, size_t size)
{
	struct layout *layout = env->latest;
	size_t i = 0;

	/* Every layout was made of env->pairs, so that there is room for its pairs. The
	 * latest is tried first, and once more with the others where it was not that. */
	while (layout) {
		switch (layout_match(layout, list, size, env->pairs)) {
		case MATCH_YES:
			env->latest = layout;
			return layout->number;
		case MATCH_NUL:
			return FCGI_UNUSUAL;
		case MATCH_NO:
			layout = i < env->layout_count ? env->layouts[i++] : NULL;
		}
	}
	return FCGI_UNKNOWN;
}

/* Point environ at the values that env->pairs has of env->latest; 0: there is no memory. */
static int show_latest(struct fcgi_environ *env, const uint8_t *list, size_t size)
{
	const struct layout *layout = env->latest;
	const uint8_t *name = layout->names;
	size_t i, done = 0;
	char *to;

	/* "=" and NUL for each pair, whose lengths took two bytes at least. */
	if (!reserve(env, size + FCGI_SLACK, layout->kept + layout->tail_count))
		return 0;
	to = env->room;
	for (i = 0; i < layout->count; i++) {
		const struct fcgi_pair *pair = &env->pairs[i];

		if (layout->keep[i]) {
			env->shown[done++] = to;
			to = copy_short(to, name, (size_t)pair->name_length + 1);
			to = copy_short(to, list + pair->value, pair->value_length);
			*to++ = 0;
		}
		name += pair->name_length + 1;
	}
	for (i = 0; i < (size_t)layout->hot_count; i++) {
		const struct fcgi_pair *pair = &env->pairs[layout->hot[i]];

		env->hot[2 * i] = pair->value;
		env->hot[2 * i + 1] = pair->value + pair->value_length;
	}
	memcpy(env->shown + done, layout->tail, layout->tail_count * sizeof *layout->tail);
	env->visible = layout;
	environ = env->shown;
	return 1;
}

/* A copy of a list with room behind it; NULL: there is no memory. */
static const uint8_t *with_slack(struct fcgi_environ *env, const uint8_t *list, size_t size)
{
	if (size + FCGI_SLACK > env->copy_room) {
		size_t room = size + FIRST_ROOM;
		uint8_t *copy = calloc(1, room);

		if (!copy)
			return NULL;
		free(env->copy);
		env->copy = copy;
		env->copy_room = room;
	}
	memcpy(env->copy, list, size);
	return env->copy;
}

int64_t fcgi_environ_show(struct fcgi_environ *env, const uint8_t *list, size_t size)
{
	const uint8_t *copy;
	int64_t number;

	if (size > UINT32_MAX)
		return FCGI_UNUSUAL;
	copy = with_slack(env, list, size);
	if (!copy)
		return FCGI_NO_MEMORY;
	number = find_layout(env, copy, size);
	if (number == FCGI_UNKNOWN) {
		int64_t count = read_pairs(env, list, size);

		if (count < 0)
			return count == -1 ? FCGI_UNUSUAL : FCGI_NO_MEMORY;
	}
	if (number <= 0)
		return number;
	if (!show_latest(env, copy, size))
		return FCGI_NO_MEMORY;
	restore_text(env);
	return number;
}

int64_t fcgi_environ_show_usual(struct fcgi_environ *env, const uint8_t *list, size_t size,
				size_t most, uint32_t body, struct fcgi_slot *slot)
{
	int64_t number = find_layout(env, list, size);

	if (number <= 0 || env->latest->count > most ||
	    !layout_is_usual(env->latest, list, env->pairs, body) ||
	    (slot && !slot_takes(slot, env->latest, list, env->pairs)) ||
	    !show_latest(env, list, size))
		return 0;
	if (slot)
		slot_begins(slot, env->latest, list, env->pairs, body);
	return number;
}

int64_t fcgi_environ_find(const struct fcgi_environ *env, const uint8_t *name,
			  size_t name_length)
{
	const struct layout *layout = env->visible;
	const struct fcgi_pair *pair;
	size_t i;

	if (!layout)
		return -1;
	i = layout_index(layout, name, name_length);
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
	int place;

	if (number < 1 || (uint64_t)number > env->layout_count)
		return -1;
	layout = env->layouts[number - 1];
	if (layout != env->visible)
		return -1;
	i = layout_index(layout, name, name_length);
	place = layout->hot_count;
	if (i == layout->count || place >= FCGI_HOT)
		return -1;
	/* There already for whoever reads the places of this list a little later. */
	env->hot[2 * place] = env->pairs[i].value;
	env->hot[2 * place + 1] = env->pairs[i].value + env->pairs[i].value_length;
	layout->hot[place] = i;
	layout->hot_count = place + 1;
	return place;
}

const uint32_t *fcgi_environ_hot(const struct fcgi_environ *env)
{
	return env->hot;
}
