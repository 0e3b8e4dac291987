/* What the bare loop does, in as few crossings as can be. */
#include "fcgi.h"

int fcgi_step_begin(struct fcgi_lane *lane, struct fcgi_environ *env)
{
	int64_t turn = fcgi_lane_next(lane, -1, 0), layout;
	int size;

	if (turn <= 0 || turn & FCGI_LANE_HEAD)
		return FCGI_STEP_OTHER;
	size = (int)(turn & (FCGI_LANE_HEAD - 1)) - FCGI_LANE_CONTENT;
	layout = fcgi_environ_show(env, fcgi_lane_buffer(lane) + FCGI_LANE_CONTENT,
				   (size_t)size);
	return layout > 0 ? size | (int)layout << FCGI_STEP_LAYOUT : FCGI_STEP_OTHER;
}

int fcgi_step(struct fcgi_lane *lane, struct fcgi_environ *env, const uint8_t *content,
	      uint32_t size)
{
	fcgi_environ_restore(env);
	if (fcgi_lane_answer(lane, 0, content, size))
		return FCGI_STEP_UNSENT;
	return fcgi_step_begin(lane, env);
}
