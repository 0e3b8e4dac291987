/* Connections on which only whole requests come: one crossing takes the next of them.
 *
 * Such a connection needs no memory of its own but its place in a list: between two
 * requests nothing is under way on it, and what has come of a request is looked at only
 * when it is whole. Anything else that happens on one is handed to the caller, with the
 * bytes that have come, and the connection is the caller's from then on.
 *
 * All descriptors are watched by one epoll instance, which the caller has made, and on
 * which it watches others.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lane.h"

/* What os.environ has of every request, whatever the web server sends under the name. */
static const uint8_t ROLE[] = "\x09\x09" "FCGI_ROLE" "RESPONDER";

enum {
	ROLE_SIZE = sizeof ROLE - 1,
	FIRST_BYTES_MS = 2, /* nginx and httpd send their request some 10 us after connect(2) */
	CLOSED = -100, /* beside enum fcgi_turn */
	AGAIN = 8,     /* connections in a row without a look at anything else */
	DISCOURAGED = -16,
};

struct fcgi_lane *fcgi_lane_new(int epoll_fd, uint32_t room, uint32_t most_params,
				uint32_t most_bytes, uint32_t most_body)
{
	struct fcgi_lane *lane = calloc(1, sizeof *lane);

	if (!lane)
		return NULL;
	lane->buffer = calloc(1, (size_t)room + ROLE_SIZE + FCGI_SLACK);
	if (!lane->buffer) {
		free(lane);
		return NULL;
	}
	lane->epoll_fd = epoll_fd;
	lane->room = room;
	lane->most_params = most_params;
	lane->most_bytes = most_bytes;
	lane->most_body = most_body;
	lane->most = UINT32_MAX;
	lane->fd = lane->oldest = lane->newest = NOTHING;
	return lane;
}

void fcgi_lane_free(struct fcgi_lane *lane)
{
	if (!lane)
		return;
	free(lane->places);
	free(lane->buffer);
	free(lane);
}

int fcgi_lane_listen(struct fcgi_lane *lane, int fd, int is_tcp)
{
	if (lane->listener_count == LISTENERS)
		return 0;
	lane->is_tcp[lane->listener_count] = is_tcp != 0;
	lane->ready[lane->listener_count] = 0;
	lane->listeners[lane->listener_count++] = fd;
	return 1;
}

void fcgi_lane_unlisten(struct fcgi_lane *lane)
{
	lane->listener_count = lane->any_ready = 0;
}

uint8_t *fcgi_lane_buffer(struct fcgi_lane *lane)
{
	return lane->buffer;
}

int fcgi_lane_other(const struct fcgi_lane *lane)
{
	return lane->other_fd;
}

uint32_t fcgi_lane_events(const struct fcgi_lane *lane)
{
	return lane->other_events;
}

uint32_t fcgi_lane_received(const struct fcgi_lane *lane)
{
	return lane->received;
}

int fcgi_lane_error(const struct fcgi_lane *lane)
{
	return lane->error;
}

uint32_t fcgi_lane_keep(const struct fcgi_lane *lane)
{
	return lane->whole.keep;
}

int64_t fcgi_lane_body(const struct fcgi_lane *lane)
{
	int64_t begin = lane->whole.body;

	return begin << 32 | (begin + lane->whole.body_length);
}

uint32_t fcgi_lane_count(const struct fcgi_lane *lane)
{
	return lane->count;
}

void fcgi_lane_limit(struct fcgi_lane *lane, uint32_t most)
{
	lane->most = most;
}

/* Close a connection. epoll is told first: where a child has a copy of the descriptor,
 * it would go on to report it. */
static void shut(struct fcgi_lane *lane, int fd, uint8_t watched)
{
	if (watched)
		watch(lane, fd, EPOLL_CTL_DEL);
	close(fd);
}

int fcgi_lane_release(struct fcgi_lane *lane)
{
	int fd = lane->fd;

	lane->fd = NOTHING;
	if (fd != NOTHING && lane->fd_watched)
		watch(lane, fd, EPOLL_CTL_DEL);
	lane->fd_watched = 0;
	return fd;
}

void fcgi_lane_abandon(struct fcgi_lane *lane)
{
	int fd = lane->oldest;

	while (fd != NOTHING) {
		int next = lane->places[fd].after;

		stop_waiting(lane, fd);
		close(fd);
		fd = next;
	}
	if (lane->fd != NOTHING)
		close(lane->fd);
	lane->fd = NOTHING;
	lane->event_count = lane->event_next = lane->listener_count = lane->any_ready = 0;
}

/* --- What comes ----------------------------------------------------------------------- */

static int is_name(const uint8_t *list, const struct fcgi_pair *pair, const char *name,
		   uint32_t length)
{
	return pair->name_length == length && !memcmp(list + pair->name, name, length);
}

/* Whether nothing but the usual is in a request's PARAMS; *is_head is set. */
static int check_params(const struct fcgi_lane *lane, const uint8_t *list, size_t size,
			int *is_head)
{
	struct fcgi_pair pair;
	size_t position = 0;
	uint32_t count = 0;
	int more;

	*is_head = 0;
	if (size > lane->most_bytes)
		return 0;
	while ((more = fcgi_next_pair(list, size, &position, &pair)) > 0) {
		const uint8_t *value = list + pair.value;

		if (++count > lane->most_params)
			return 0; /* though some may be the same */
		if (is_name(list, &pair, "REQUEST_METHOD", 14))
			*is_head = fcgi_is_head(value, pair.value_length);
		else if (is_name(list, &pair, "CONTENT_LENGTH", 14) &&
			 !fcgi_is_length(value, pair.value_length,
					 lane->whole.body_length))
			return 0;
	}
	return !more;
}

/* Note what is given to the caller, who may ask for it again. */
static int64_t give(struct fcgi_lane *lane, int64_t turn, int fd, uint8_t watched)
{
	lane->fd = fd;
	lane->fd_watched = watched;
	lane->cut = 0;
	return lane->turn = turn;
}

/* Have the body begin behind what has been put behind the params, in place of what was. */
static void move_body(struct fcgi_lane *lane, const uint8_t *behind, const uint8_t *was)
{
	struct fcgi_whole *whole = &lane->whole;
	uint8_t *body = lane->buffer + whole->body;
	size_t from = (size_t)(body - behind), lost;

	if (from >= ROLE_SIZE)
		return;
	/* There is room: the end of STDIN, which nobody needs any more, is longer. */
	lost = ROLE_SIZE - from;
	if (lost > whole->body_length)
		lost = whole->body_length;
	memmove(body + ROLE_SIZE - from + lost, body + lost, whole->body_length - lost);
	memcpy(body + ROLE_SIZE - from, was + from, lost);
	whole->body += (uint32_t)(ROLE_SIZE - from);
}

/* Look at a whole request in the buffer: its turn; 0: there is something unusual in it. */
static int64_t look_at_whole(struct fcgi_lane *lane)
{
	const uint8_t *list = lane->buffer + lane->whole.content;
	size_t size = lane->whole.content_length;
	uint8_t *behind = lane->buffer + lane->whole.content + size, was[ROLE_SIZE];
	int is_head = 0;

	lane->shown = 0;
	if (lane->whole.body_length > lane->most_body)
		return 0;
	memcpy(was, behind, ROLE_SIZE);
	memcpy(behind, ROLE, ROLE_SIZE);
	if (lane->is_step && size <= lane->most_bytes)
		lane->shown = fcgi_environ_show_usual(lane->environ, list, size + ROLE_SIZE,
						      (size_t)lane->most_params + 1,
						      lane->whole.body_length, lane->slot);
	if (!lane->shown && !check_params(lane, list, size, &is_head)) {
		memcpy(behind, was, ROLE_SIZE);
		return 0;
	}
	if (lane->whole.body_length)
		move_body(lane, behind, was);
	return (int64_t)lane->whole.request_id << FCGI_LANE_ID |
	       (is_head ? FCGI_LANE_HEAD : 0) |
	       (lane->whole.body_length ? FCGI_LANE_BODY : 0) |
	       (int64_t)(lane->whole.content + size + ROLE_SIZE);
}

/* Look at a connection that is in no list: FCGI_TURN_NONE if nothing has come. */
static int64_t look(struct fcgi_lane *lane, int fd, uint8_t watched)
{
	ssize_t got = recv(fd, lane->buffer, lane->room, MSG_DONTWAIT);
	int64_t turn = 0;

	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return FCGI_TURN_NONE;
	if (got <= 0) {
		shut(lane, fd, watched);
		return CLOSED;
	}
	lane->received = (uint32_t)got;
	if (fcgi_scan_whole(lane->buffer, lane->received, &lane->whole) &&
	    lane->whole.end == lane->received)
		turn = look_at_whole(lane);
	return give(lane, turn ? turn : FCGI_TURN_PART, fd, watched);
}

/* Take a new connection; FCGI_TURN_NONE if another process was faster. */
static int64_t take(struct fcgi_lane *lane, int listener)
{
	int fd = accept4(lane->listeners[listener], NULL, NULL, SOCK_CLOEXEC);
	struct pollfd first;
	int64_t turn;

	if (fd < 0) {
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			return FCGI_TURN_NONE;
		lane->error = errno;
		return FCGI_TURN_ERROR;
	}
	if (lane->is_tcp[listener]) {
		int on = 1;

		/* What is not TCP has no such option. */
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	}
	if (lane->count >= lane->most) {
		int oldest = fcgi_lane_oldest(lane);

		if (oldest != NOTHING)
			close(oldest);
	}
	/* The request is nearly always there already: one look saves a registration. */
	turn = look(lane, fd, 0);
	if (turn == FCGI_TURN_NONE) {
		/* Else it is on its way. Who takes the next connection meanwhile takes it
		 * from another process, which may have nothing to do. */
		first.fd = fd;
		first.events = POLLIN;
		if (poll(&first, 1, FIRST_BYTES_MS) > 0)
			turn = look(lane, fd, 0);
	}
	if (turn == CLOSED)
		return FCGI_TURN_NONE;
	if (turn == FCGI_TURN_NONE) {
		lane->received = 0;
		return give(lane, FCGI_TURN_PART, fd, 0);
	}
	return turn;
}

/* Go on with the events of the last wait. */
static int64_t next_event(struct fcgi_lane *lane)
{
	while (lane->event_next < lane->event_count) {
		const struct epoll_event *event = &lane->events[lane->event_next++];
		int fd = event->data.fd, i;
		int64_t turn;

		if (is_waiting(lane, fd)) {
			stop_waiting(lane, fd);
			turn = look(lane, fd, 1);
			if (turn == FCGI_TURN_NONE)
				wait_on(lane, fd); /* where it was before */
			else if (turn != CLOSED) {
				lane->busy = 1;
				return turn;
			}
			continue;
		}
		for (i = 0; i < lane->listener_count; i++) {
			if (lane->listeners[i] == fd)
				break;
		}
		if (i < lane->listener_count) {
			lane->ready[i] = 1;
			lane->any_ready = 1;
			continue;
		}
		lane->other_fd = fd;
		lane->other_events = event->events;
		return FCGI_TURN_OTHER;
	}
	return FCGI_TURN_NONE;
}

/* Take a new connection if nothing else waits, or if it had to wait before: without the
 * second rule one busy kept connection would shut all others out. */
static int64_t next_connection(struct fcgi_lane *lane)
{
	int64_t turn;
	int i;

	if (!lane->any_ready)
		return FCGI_TURN_NONE;
	if (lane->busy && !lane->passed_over) {
		lane->passed_over = 1;
		lane->any_ready = 0;
		memset(lane->ready, 0, sizeof lane->ready);
		return FCGI_TURN_NONE;
	}
	lane->passed_over = 0;
	for (i = 0; i < lane->listener_count; i++) {
		if (!lane->ready[i])
			continue;
		lane->ready[i] = 0;
		turn = take(lane, i);
		if (turn == FCGI_TURN_ERROR) {
			lane->eager = 0;
			return turn;
		}
		if (turn != FCGI_TURN_NONE) {
			/* Where one comes, there are more, and to try costs less than to
			 * wait: unless others wait, or there was none the last time. */
			lane->eager = lane->again > 0 && !lane->count;
			lane->ready[i] = (uint8_t)lane->eager;
			lane->again += lane->again < 0 ? 1 : -lane->eager;
			return turn;
		}
		if (lane->eager)
			lane->again = DISCOURAGED;
		lane->eager = 0;
	}
	lane->any_ready = 0;
	return FCGI_TURN_NONE;
}

int64_t fcgi_lane_next(struct fcgi_lane *lane, int timeout, int busy)
{
	int waited = 0;
	int64_t turn;

	if (lane->fd != NOTHING && !lane->cut)
		return lane->turn; /* whoever got it was interrupted */
	if (lane->fd != NOTHING)
		shut(lane, fcgi_lane_release(lane), 0); /* likewise, and nothing mends that */
	lane->busy |= busy;
	for (;;) {
		turn = next_event(lane);
		if (turn == FCGI_TURN_NONE)
			turn = next_connection(lane);
		if (turn != FCGI_TURN_NONE)
			return turn;
		lane->busy = 0;
		if (waited)
			return FCGI_TURN_NONE;
		if (lane->again >= 0)
			lane->again = AGAIN;
		lane->event_next = 0;
		lane->event_count = epoll_wait(lane->epoll_fd, lane->events, BATCH, timeout);
		if (lane->event_count < 0) {
			lane->event_count = 0;
			if (errno == EINTR)
				return FCGI_TURN_NONE; /* for the signal handlers */
			lane->error = errno;
			return FCGI_TURN_BROKEN;
		}
		waited = lane->event_count == 0 || timeout >= 0;
	}
}

/* --- What goes ------------------------------------------------------------------------ */

static int64_t send_answer(struct fcgi_lane *lane, uint32_t app_status, const uint8_t *head,
			   uint32_t head_size, const uint8_t *content, uint32_t rest)
{
	uint32_t id = lane->whole.request_id, size = head_size + rest;
	uint8_t *to = lane->answer;
	size_t whole;
	ssize_t sent;

	if (lane->fd == NOTHING || rest > FCGI_MAX_LENGTH - head_size)
		return -EINVAL;
	if (size) {
		to = fcgi_put_header(to, FCGI_STDOUT, id, size);
		memcpy(to, head, head_size);
		memcpy(to + head_size, content, rest);
		to += size;
	}
	to = fcgi_put_header(to, FCGI_STDOUT, id, 0);
	to = fcgi_put_header(to, FCGI_END_REQUEST, id, FCGI_HEADER_LEN);
	to[0] = (uint8_t)(app_status >> 24);
	to[1] = (uint8_t)(app_status >> 16);
	to[2] = (uint8_t)(app_status >> 8);
	to[3] = (uint8_t)app_status;
	memset(to + 4, 0, 4); /* FCGI_REQUEST_COMPLETE */
	whole = (size_t)(to + FCGI_HEADER_LEN - lane->answer);
	sent = send(lane->fd, lane->answer, whole, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0)
		return -errno;
	if ((size_t)sent < whole) {
		lane->cut = 1;
		return (int64_t)(whole - (size_t)sent);
	}
	if (lane->whole.keep && !lane->fd_watched)
		lane->fd_watched = !watch(lane, lane->fd, EPOLL_CTL_ADD);
	/* Without room to keep it, its web server opens another one. */
	if (!lane->whole.keep || !lane->fd_watched || !wait_on(lane, lane->fd))
		shut(lane, lane->fd, lane->fd_watched);
	lane->fd = NOTHING;
	return 0;
}

int64_t lane_answer(struct fcgi_lane *lane, uint32_t app_status, const uint8_t *head,
		    uint32_t head_size, const uint8_t *content, uint32_t size)
{
	return lane->left = send_answer(lane, app_status, head, head_size, content, size);
}

int64_t fcgi_lane_answer(struct fcgi_lane *lane, uint32_t app_status,
			 const uint8_t *content, uint32_t size)
{
	return lane_answer(lane, app_status, content, 0, content, size);
}

int64_t fcgi_lane_left(const struct fcgi_lane *lane)
{
	return lane->left;
}

int64_t fcgi_lane_turn(const struct fcgi_lane *lane)
{
	return lane->turn;
}
