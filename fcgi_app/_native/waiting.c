/* The connections that wait for their next request, in the order of their last use. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lane.h"

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int is_waiting(const struct fcgi_lane *lane, int fd)
{
	return fd >= 0 && fd < lane->place_count && lane->places[fd].waiting;
}

int wait_on(struct fcgi_lane *lane, int fd)
{
	struct place *place;

	if (fd >= lane->place_count) {
		int count = lane->place_count ? 2 * lane->place_count : 64;
		void *places;

		if (count <= fd)
			count = fd + 1;
		places = reallocarray(lane->places, (size_t)count, sizeof *place);
		if (!places)
			return 0;
		lane->places = places;
		memset(lane->places + lane->place_count, 0,
		       (size_t)(count - lane->place_count) * sizeof *place);
		lane->place_count = count;
	}
	place = &lane->places[fd];
	place->waiting = 1;
	place->since = now_ms();
	place->before = lane->newest;
	place->after = NOTHING;
	if (lane->newest == NOTHING)
		lane->oldest = fd;
	else
		lane->places[lane->newest].after = fd;
	lane->newest = fd;
	lane->count++;
	return 1;
}

void stop_waiting(struct fcgi_lane *lane, int fd)
{
	struct place *place = &lane->places[fd];

	if (place->before == NOTHING)
		lane->oldest = place->after;
	else
		lane->places[place->before].after = place->after;
	if (place->after == NOTHING)
		lane->newest = place->before;
	else
		lane->places[place->after].before = place->before;
	place->waiting = 0;
	lane->count--;
}

int watch(struct fcgi_lane *lane, int fd, int operation)
{
	struct epoll_event event;

	memset(&event, 0, sizeof event);
	event.events = EPOLLIN;
	event.data.fd = fd;
	return epoll_ctl(lane->epoll_fd, operation, fd, &event) ? errno : 0;
}

int fcgi_lane_adopt(struct fcgi_lane *lane, int fd)
{
	int error = watch(lane, fd, EPOLL_CTL_ADD);

	if (error)
		return error;
	if (wait_on(lane, fd))
		return 0;
	watch(lane, fd, EPOLL_CTL_DEL);
	return ENOMEM;
}

int fcgi_lane_oldest(struct fcgi_lane *lane)
{
	int fd = lane->oldest;

	if (fd != NOTHING) {
		watch(lane, fd, EPOLL_CTL_DEL);
		stop_waiting(lane, fd);
	}
	return fd;
}

int64_t fcgi_lane_due(const struct fcgi_lane *lane, int64_t after)
{
	int64_t left;

	if (lane->oldest == NOTHING)
		return -1;
	left = lane->places[lane->oldest].since + after - now_ms();
	return left < 0 ? 0 : left;
}
