/* What a lane is made of; shared by lane.c, waiting.c and step.c, and by nobody else. */
#ifndef LANE_H
#define LANE_H

#include <sys/epoll.h>

#include "fcgi.h"

enum {
	BATCH = 64,
	LISTENERS = 8,
	NOTHING = -1,
};

/* A connection that epoll watches for its next request, in the order of last use. */
struct place {
	int before, after;
	int64_t since; /* ms */
	uint8_t waiting;
};

struct fcgi_lane {
	int epoll_fd;
	uint32_t room, most_params, most_bytes, most_body;
	struct place *places; /* by descriptor */
	int place_count;
	int oldest, newest;
	uint32_t count;
	struct epoll_event events[BATCH];
	int event_count, event_next;
	int listeners[LISTENERS];
	uint8_t is_tcp[LISTENERS], ready[LISTENERS];
	int listener_count, any_ready;
	int busy, passed_over;
	int eager, again;     /* how often a connection may be tried for without a wait */
	uint32_t most;        /* connections; beyond it, the oldest that waits goes */
	int fd;               /* of what was given last, until it is answered or released */
	uint8_t fd_watched;
	uint8_t cut;          /* its answer went out in part: the rest is the caller's */
	int64_t turn;         /* what was given then */
	int64_t left;         /* of its answer */
	uint32_t received;
	int other_fd;
	uint32_t other_events;
	int error;
	struct fcgi_whole whole;
	uint8_t *buffer;      /* with FCGI_SLACK bytes behind it */
	struct fcgi_environ *environ;
	struct fcgi_slot *slot;
	int is_step;          /* a usual request is to be shown there as soon as it is seen */
	int64_t shown;        /* what fcgi_environ_show said of it; 0: nothing */
	uint32_t head_given, head_size;
	uint8_t head[FCGI_HEAD_ROOM];
	uint8_t answer[3 * FCGI_HEADER_LEN + FCGI_HEADER_LEN + FCGI_MAX_LENGTH];
};

/* lane.c: fcgi_lane_answer with an answer that begins with head. */
int64_t lane_answer(struct fcgi_lane *lane, uint32_t app_status, const uint8_t *head,
		    uint32_t head_size, const uint8_t *content, uint32_t size);

/* waiting.c */

int is_waiting(const struct fcgi_lane *lane, int fd);

/* Put a connection, which epoll watches, to the end of the list; 0: there is no memory. */
int wait_on(struct fcgi_lane *lane, int fd);

void stop_waiting(struct fcgi_lane *lane, int fd);

/* Have epoll watch a connection (EPOLL_CTL_ADD), or not (EPOLL_CTL_DEL); 0, or an errno. */
int watch(struct fcgi_lane *lane, int fd, int operation);

#endif
