/* What the bare loop does, in as few crossings as can be. */
#include "fcgi.h"

int64_t fcgi_step_begin(struct fcgi_lane *lane, struct fcgi_environ *env)
{
	int64_t turn = fcgi_lane_next(lane, -1, 0), layout;
	size_t end = (size_t)(turn & (FCGI_LANE_HEAD - 1));

	if (turn <= 0)
		return turn;
	layout = fcgi_environ_show(env, fcgi_lane_buffer(lane) + FCGI_LANE_CONTENT,
				   end - FCGI_LANE_CONTENT);
	return layout > 0 ? turn | layout << FCGI_LANE_LAYOUT : turn;
}

int64_t fcgi_step(struct fcgi_lane *lane, struct fcgi_environ *env,
		  const uint8_t *content, uint32_t size)
{
	fcgi_environ_restore(env);
	if (fcgi_lane_answer(lane, 0, content, size))
		return FCGI_STEP_UNSENT;
	return fcgi_step_begin(lane, env);
}
