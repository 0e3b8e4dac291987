/* What the bare loop does, in as few crossings as can be. */
#include <errno.h>

#include "lane.h"
#include "slot.h"

void fcgi_step_use(struct fcgi_lane *lane, struct fcgi_environ *env, struct fcgi_slot *slot)
{
	lane->environ = env;
	lane->slot = slot;
}

int fcgi_step_head(struct fcgi_lane *lane, const uint8_t *head, uint32_t size, uint32_t given)
{
	if (size > FCGI_HEAD_ROOM)
		return 0;
	memcpy(lane->head, head, size);
	lane->head_size = size;
	lane->head_given = given;
	return 1;
}

static int next_request(struct fcgi_lane *lane)
{
	int64_t turn;
	int size;

	lane->shown = 0;
	lane->is_step = 1;
	turn = fcgi_lane_next(lane, -1, 0);
	lane->is_step = 0;
	if (turn <= 0 || turn & FCGI_LANE_HEAD)
		return FCGI_STEP_OTHER;
	size = (int)(turn & (FCGI_LANE_HEAD - 1)) - FCGI_LANE_CONTENT;
	if (!lane->shown && lane->slot && !lane->slot->started)
		return FCGI_STEP_OTHER; /* it has not been noted */
	if (!lane->shown) /* its names are new, or it is given once more */
		lane->shown = fcgi_environ_show(lane->environ,
						lane->buffer + FCGI_LANE_CONTENT,
						(size_t)size);
	return lane->shown > 0 ? size | (int)lane->shown << FCGI_STEP_LAYOUT
			       : FCGI_STEP_OTHER;
}

int fcgi_step_begin(struct fcgi_lane *lane)
{
	fcgi_environ_restore(lane->environ);
	return next_request(lane);
}

int fcgi_step(struct fcgi_lane *lane, const uint8_t *content, uint32_t size)
{
	uint32_t given = lane->head_given;

	fcgi_environ_restore(lane->environ);
	if (size < given) {
		lane->left = -EINVAL; /* it does not begin with that head */
		return FCGI_STEP_UNSENT;
	}
	if (lane_answer(lane, 0, lane->head, lane->head_size, content + given, size - given))
		return FCGI_STEP_UNSENT;
	if (lane->slot)
		slot_ends(lane->slot);
	return next_request(lane);
}
