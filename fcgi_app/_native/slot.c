/* This process's slot of the scoreboard, as slots.py lays it out. */
#include <time.h>

#include "slot.h"

enum { RUNNING = 3, IDLE = 2 };

/* What slots.py calls CURRENT, at COUNTS_AT; its doubles are not aligned. */
enum {
	STATE_AT = 24, ACTIVE_AT = 28, REQUESTS_AT = 32,
	STARTED_AT = 40, DURATION_AT = 48, SINCE_AT = 56,
	LENGTH_AT = 64, METHOD_AT = 72, URI_AT = 88, SCRIPT_AT = 344, REMOTE_AT = 440,
	END_AT = 488,
};

struct text {
	const uint8_t *start;
	size_t size;
};

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint32_t *word_of(struct fcgi_slot *slot)
{
	return (uint32_t *)(void *)slot->memory;
}

/* The number is odd while a part is being written: see scoreboard.py. */
static uint32_t open_slot(struct fcgi_slot *slot)
{
	uint32_t odd = *word_of(slot) | 1;

	__atomic_store_n(word_of(slot), odd, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	return odd;
}

static void close_slot(struct fcgi_slot *slot, uint32_t odd)
{
	__atomic_store_n(word_of(slot), odd + 1, __ATOMIC_RELEASE);
}

static void put_counts(struct fcgi_slot *slot, uint32_t state, uint32_t active)
{
	memcpy(slot->memory + STATE_AT, &state, sizeof state);
	memcpy(slot->memory + ACTIVE_AT, &active, sizeof active);
	memcpy(slot->memory + REQUESTS_AT, &slot->ended, sizeof slot->ended);
	memcpy(slot->memory + STARTED_AT, &slot->started, sizeof slot->started);
	memcpy(slot->memory + DURATION_AT, &slot->duration, sizeof slot->duration);
	memcpy(slot->memory + SINCE_AT, &slot->since, sizeof slot->since);
}

/* The begin of a text, in its room. */
static void put_text(struct fcgi_slot *slot, size_t at, size_t end, struct text text)
{
	size_t room = end - at, size = text.size < room ? text.size : room;

	if (size)
		memcpy(slot->memory + at, text.start, size);
	memset(slot->memory + at + size, 0, room - size);
}

static struct text value_of(const struct layout *layout, size_t index, const uint8_t *list,
			    const struct fcgi_pair *pairs)
{
	struct text text = {NULL, 0};

	if (index < layout->count) {
		text.start = list + pairs[index].value;
		text.size = pairs[index].value_length;
	}
	return text;
}

int slot_takes(const struct fcgi_slot *slot, const struct layout *layout,
	       const uint8_t *list, const struct fcgi_pair *pairs)
{
	struct text name = value_of(layout, layout->script_name, list, pairs);
	size_t i;

	if (slot->most && slot->begun + 1 >= slot->most)
		return 0;
	for (i = 0; i < FCGI_SLOT_PATHS; i++) {
		if (slot->path_size[i] && name.size == slot->path_size[i] &&
		    !memcmp(name.start, slot->path[i], name.size))
			return 0;
	}
	return 1;
}

void slot_begins(struct fcgi_slot *slot, const struct layout *layout, const uint8_t *list,
		 const struct fcgi_pair *pairs, uint32_t body)
{
	struct text name = value_of(layout, layout->script_name, list, pairs);
	struct text uri = value_of(layout, layout->uri, list, pairs);
	struct text script = value_of(layout, layout->script_filename, list, pairs);
	struct text length = value_of(layout, layout->length, list, pairs);
	int64_t announced = length.size ? (int64_t)body : -1; /* right, in a usual request */
	uint32_t odd;

	if (!uri.size)
		uri = name;
	if (!script.size)
		script = name;
	if (script.size > REMOTE_AT - SCRIPT_AT) { /* its end tells more */
		script.start += script.size - (REMOTE_AT - SCRIPT_AT);
		script.size = REMOTE_AT - SCRIPT_AT;
	}
	slot->begun++;
	slot->started = now();
	odd = open_slot(slot);
	put_counts(slot, RUNNING, 1);
	memcpy(slot->memory + LENGTH_AT, &announced, sizeof announced);
	put_text(slot, METHOD_AT, URI_AT, value_of(layout, layout->method, list, pairs));
	put_text(slot, URI_AT, SCRIPT_AT, uri);
	put_text(slot, SCRIPT_AT, REMOTE_AT, script);
	put_text(slot, REMOTE_AT, END_AT, value_of(layout, layout->remote, list, pairs));
	close_slot(slot, odd);
}

void slot_ends(struct fcgi_slot *slot)
{
	uint32_t odd;

	slot->ended++;
	slot->since = now();
	slot->duration = slot->since - slot->started;
	slot->started = 0;
	odd = open_slot(slot);
	put_counts(slot, IDLE, 0);
	close_slot(slot, odd);
}
