/* The hot work in C: what native and pure Python have in common is the result.
 *
 * Rules of this folder. No function knows Python. Input from a peer is a pointer and a
 * length, and is never trusted. What is not exactly the usual case is answered with
 * "not mine": the caller then takes the way through Python, which also finds every
 * error and says it, so that both backends say the same. The numbers are those of the
 * FastCGI 1.0 specification.
 */
#ifndef FCGI_H
#define FCGI_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
	FCGI_VERSION_1 = 1,
	FCGI_HEADER_LEN = 8,
	FCGI_BEGIN_REQUEST = 1,
	FCGI_END_REQUEST = 3,
	FCGI_PARAMS = 4,
	FCGI_STDIN = 5,
	FCGI_STDOUT = 6,
	FCGI_RESPONDER = 1,
	FCGI_KEEP_CONN = 1,
	FCGI_MAX_LENGTH = 65535,
	FCGI_STREAM_CHUNK = 65528, /* content of a record of a long stream */
};

/* Write a record's header (section 3.3), without padding; where it ends. */
static inline uint8_t *fcgi_put_header(uint8_t *to, uint8_t type, uint32_t request_id,
				       uint32_t length)
{
	to[0] = FCGI_VERSION_1;
	to[1] = type;
	to[2] = (uint8_t)(request_id >> 8);
	to[3] = (uint8_t)request_id;
	to[4] = (uint8_t)(length >> 8);
	to[5] = (uint8_t)length;
	to[6] = to[7] = 0;
	return to + FCGI_HEADER_LEN;
}

/* One pair of a name-value list, as offsets into it. */
struct fcgi_pair {
	uint32_t name, name_length, value, value_length;
};

/* --- params.c: name-value lists (section 3.4) ----------------------------------- */

/* Read a length of one or four bytes; 0 if it is cut short. */
static inline size_t fcgi_read_length(const uint8_t *list, size_t left, uint32_t *length)
{
	if (left && list[0] < 0x80) {
		*length = list[0];
		return 1;
	}
	if (left < 4)
		return 0;
	*length = (uint32_t)(list[0] & 0x7f) << 24 | (uint32_t)list[1] << 16 |
		  (uint32_t)list[2] << 8 | list[3];
	return 4;
}

/* Read the pair at *position and move that behind it: 1, 0 at the end of the list,
 * -1 where a length or a string runs past the end. Here, since it is most of the work. */
static inline int fcgi_next_pair(const uint8_t *list, size_t size, size_t *position,
				 struct fcgi_pair *pair)
{
	size_t at = *position, step;

	if (size - at >= 2 && at < size && !((list[at] | list[at + 1]) & 0x80)) {
		pair->name_length = list[at];
		pair->value_length = list[at + 1];
		at += 2; /* nearly always */
	} else {
		if (at >= size)
			return 0;
		step = fcgi_read_length(list + at, size - at, &pair->name_length);
		if (!step)
			return -1;
		at += step;
		step = fcgi_read_length(list + at, size - at, &pair->value_length);
		if (!step)
			return -1;
		at += step;
	}
	if ((size_t)pair->name_length + pair->value_length > size - at)
		return -1;
	pair->name = (uint32_t)at;
	pair->value = pair->name + pair->name_length;
	*position = (size_t)pair->value + pair->value_length;
	return 1;
}

/* Write "name NUL value NUL ..." to out: the number of bytes, without the last NUL; -1:
 * there is not room enough, a NUL in the list, or the list is malformed or empty. */
int64_t fcgi_join_params(const uint8_t *list, size_t size, uint8_t *out, size_t room);

/* --- whole.c: a request in one piece ------------------------------------------------- */

struct fcgi_whole {
	uint32_t request_id;
	uint32_t keep;           /* FCGI_KEEP_CONN or 0 */
	uint32_t content;        /* where the content of PARAMS begins */
	uint32_t content_length;
	uint32_t body;           /* where the content of STDIN begins */
	uint32_t body_length;    /* 0: there is none */
	uint32_t end;            /* where the request ends */
};

/* What is to be known of its params, whose values these are: whether only a head is asked
 * for, and whether the body is as long as announced, so that nothing is to be logged. */
static inline int fcgi_is_head(const uint8_t *method, size_t size)
{
	return size == 4 && !memcmp(method, "HEAD", 4);
}

static inline int fcgi_is_length(const uint8_t *content_length, size_t size, uint32_t body)
{
	uint32_t number = 0;
	size_t i;

	if (size > 5)
		return 0;
	for (i = 0; i < size; i++) {
		if (content_length[i] < '0' || content_length[i] > '9')
			return 0;
		number = 10 * number + (content_length[i] - '0');
	}
	return number == body;
}

/* 1: data begins with a responder's request as nginx, Apache and lighttpd send it:
 * begin-request, one PARAMS record and its end, one STDIN record or none, and its end. */
int fcgi_scan_whole(const uint8_t *data, size_t size, struct fcgi_whole *whole);

/* --- body.c: a long body ------------------------------------------------------------ */

struct fcgi_body {
	uint32_t left;     /* of the record's content, bytes still to come */
	uint32_t skip;     /* of its padding, behind that */
	uint32_t size;     /* bytes gathered */
	uint32_t consumed; /* bytes looked at */
};

/* Gather the content of the STDIN records of a request into out, which has room for size
 * bytes, or is data itself: first what is left of one, then of those that follow. It stops
 * at any other record, at an empty one, which ends the stream, and at a header that is not
 * whole. What is not consumed stays where it is. */
void fcgi_gather_body(const uint8_t *data, size_t size, uint32_t request_id, uint8_t *out,
		      struct fcgi_body *body);

/* Receive once, without waiting, behind what is there already of a room of size bytes, and
 * gather in place, with left and skip as they have been. How many bytes came, and only
 * then is body written; 0: the end; a negative error number. */
int64_t fcgi_receive_body(int fd, uint32_t request_id, uint8_t *room, size_t size, size_t there,
			  uint32_t left, uint32_t skip, struct fcgi_body *body);

/* --- output.c: a long response ------------------------------------------------------ */

enum { FCGI_OUTPUT_PIECES = 32, FCGI_OUTPUT_SIZE = 1 << 20 }; /* the most at a time */

/* Send so many pieces as the content of STDOUT records, as they are and without waiting.
 * How many bytes of the records could not be sent; a negative error number. */
int64_t fcgi_send_stdout(int fd, uint32_t request_id, const uint8_t *const *pieces,
			 const uint32_t *sizes, uint32_t count);

/* --- environ.c: C's variable environ ------------------------------------------------ */

struct fcgi_environ;

struct fcgi_environ *fcgi_environ_new(void);

/* The strings of the process: how many, and the one of that index. */
size_t fcgi_environ_count(const struct fcgi_environ *env);
const char *fcgi_environ_string(const struct fcgi_environ *env, size_t index);

enum fcgi_shown {
	/* From 1 to FCGI_LAYOUTS: the number of the layout; they count up. */
	FCGI_LAYOUTS = 32,
	FCGI_UNKNOWN = 0,    /* the names are not of a layout that was learnt */
	FCGI_UNUSUAL = -1,   /* malformed, or a value holds NUL */
	FCGI_NO_MEMORY = -2,
};

/* Learn what becomes of lists with the names of this one, in their order; FCGI_UNUSUAL
 * if there are FCGI_LAYOUTS of them already.
 *
 * keep: for each pair, whether it is shown. base: for each string of the process,
 * whether that is. The result is that of fcgi_environ_show, which is still to come. */
int64_t fcgi_environ_learn(struct fcgi_environ *env, const uint8_t *list, size_t size,
			   const uint8_t *keep, const uint8_t *base);

/* Forget all that was learnt. */
void fcgi_environ_forget(struct fcgi_environ *env);

/* Point environ at the params of a list; unless the result is greater than 0 nothing
 * has changed. */
int64_t fcgi_environ_show(struct fcgi_environ *env, const uint8_t *list, size_t size);

/* The same in one walk for the params of a request whose body has so many bytes, in a
 * buffer that has FCGI_SLACK bytes behind them, while environ is the process's: 0 if they
 * are not usual, where that may be true of lists that are only rare. most: pairs. slot:
 * where it is noted that the request begins, unless NULL. */
enum { FCGI_SLACK = 8 };
struct fcgi_slot;
int64_t fcgi_environ_show_usual(struct fcgi_environ *env, const uint8_t *list, size_t size,
				size_t most, uint32_t body, struct fcgi_slot *slot);

/* From now on, note where the value of this name is whenever a list of the layout is
 * shown: in which place of fcgi_environ_hot; -1: the name or the layout is not shown, or
 * all are taken. The place has it at once. By one thread at a time. */
enum { FCGI_HOT = 4 };
int fcgi_environ_heat(struct fcgi_environ *env, int64_t number, const uint8_t *name,
		      size_t name_length);

/* The places: where each value begins in the list that was shown last, and where it ends.
 * The address never changes. */
const uint32_t *fcgi_environ_hot(const struct fcgi_environ *env);

/* Where the value is that is shown for a name of the list which was shown last: where it
 * begins in that << 32 | where it ends; -1: none is. */
int64_t fcgi_environ_find(const struct fcgi_environ *env, const uint8_t *name,
			  size_t name_length);

/* Point environ at the process's own strings, whatever was done to them. */
void fcgi_environ_restore(struct fcgi_environ *env);

/* --- lane.c: connections on which only whole requests come -------------------------- */

struct fcgi_lane;

enum fcgi_turn {
	/* Greater than 0: a whole request is there. The lowest bits are the end of its
	 * PARAMS, which begin at FCGI_LANE_CONTENT of the buffer, with a pair FCGI_ROLE
	 * behind them; FCGI_LANE_HEAD is set if its method is HEAD, FCGI_LANE_BODY if it
	 * has a body; from bit FCGI_LANE_ID on its id follows. */
	FCGI_LANE_CONTENT = 24,
	FCGI_LANE_HEAD = 1 << 24,
	FCGI_LANE_BODY = 1 << 25,
	FCGI_LANE_ID = 32,
	FCGI_TURN_NONE = 0,    /* nothing came in time, or a signal did */
	FCGI_TURN_OTHER = -1,  /* an event on a descriptor that is not the lane's */
	FCGI_TURN_PART = -2,   /* a connection on which not just a whole request has come */
	FCGI_TURN_ERROR = -3,  /* accept(2) failed */
	FCGI_TURN_BROKEN = -4, /* epoll_wait(2) failed */
};

/* A lane on the caller's epoll instance, whose reads are of room bytes. Requests with
 * more than most_body bytes of a body are not given whole. */
struct fcgi_lane *fcgi_lane_new(int epoll_fd, uint32_t room, uint32_t most_params,
				uint32_t most_bytes, uint32_t most_body);
void fcgi_lane_free(struct fcgi_lane *lane);

/* Accept on a socket, which the caller watches; 0: there are too many. */
int fcgi_lane_listen(struct fcgi_lane *lane, int fd, int is_tcp);
void fcgi_lane_unlisten(struct fcgi_lane *lane);

/* Wait timeout milliseconds (-1: for ever) for the next thing to do. What is to be
 * answered or released is given again until that is done. busy: requests from elsewhere
 * are waiting. */
int64_t fcgi_lane_next(struct fcgi_lane *lane, int timeout, int busy);

/* What goes with the result: the bytes received, and how many; whether the connection
 * of a whole request is to be kept; where its body lies in the buffer, << 32 | where that
 * ends; descriptor and epoll's events; the errno. */
uint8_t *fcgi_lane_buffer(struct fcgi_lane *lane);
uint32_t fcgi_lane_received(const struct fcgi_lane *lane);
uint32_t fcgi_lane_keep(const struct fcgi_lane *lane);
int64_t fcgi_lane_body(const struct fcgi_lane *lane);
int fcgi_lane_other(const struct fcgi_lane *lane);
uint32_t fcgi_lane_events(const struct fcgi_lane *lane);
int fcgi_lane_error(const struct fcgi_lane *lane);

/* Answer the request that was given, with all its STDOUT and its end. 0: done, the
 * connection is kept or closed. Greater: so many bytes could not be sent; less: none, and
 * this is -errno: the connection is left as it is. */
int64_t fcgi_lane_answer(struct fcgi_lane *lane, uint32_t app_status,
			 const uint8_t *content, uint32_t size);

int64_t fcgi_lane_left(const struct fcgi_lane *lane); /* what it has returned last */
int64_t fcgi_lane_turn(const struct fcgi_lane *lane); /* what was given before it */

/* Give up the connection of what was given, and return it; -1: there is none. */
int fcgi_lane_release(struct fcgi_lane *lane);

/* Take a connection on which nothing is under way; 0, or an errno. */
int fcgi_lane_adopt(struct fcgi_lane *lane, int fd);

/* How many connections wait, and may wait. */
uint32_t fcgi_lane_count(const struct fcgi_lane *lane);
void fcgi_lane_limit(struct fcgi_lane *lane, uint32_t most);

/* Give up the one that is unused longest, and return it; -1: there is none. */
int fcgi_lane_oldest(struct fcgi_lane *lane);

/* Milliseconds until that has been unused for so many; -1: there is none. */
int64_t fcgi_lane_due(const struct fcgi_lane *lane, int64_t after);

/* Close all of them, and leave epoll alone, which in a forked child is the parent's. */
void fcgi_lane_abandon(struct fcgi_lane *lane);

/* --- step.c: what the bare loop does, in as few crossings as can be -------------------- */

/* slot.c: this process's slot of the scoreboard. The counts are lent by whoever else
 * writes it; started is 0 while no request runs. */
enum { FCGI_SLOT_PATHS = 2, FCGI_SLOT_PATH = 256 };
struct fcgi_slot {
	uint8_t *memory;
	uint64_t begun, ended, most; /* most: to begin; 0: any number */
	double started, duration, since;
	uint32_t path_size[FCGI_SLOT_PATHS];
	uint8_t path[FCGI_SLOT_PATHS][FCGI_SLOT_PATH]; /* names that are not the application's */
};

/* Where requests are to be shown; slot: where they are to be noted, NULL for nowhere. */
void fcgi_step_use(struct fcgi_lane *lane, struct fcgi_environ *env, struct fcgi_slot *slot);

/* From now on answers begin with this head instead of what their first `given` bytes are; 0:
 * it is too long. */
enum { FCGI_HEAD_ROOM = 1024 };
int fcgi_step_head(struct fcgi_lane *lane, const uint8_t *head, uint32_t size,
		   uint32_t given);

enum fcgi_step {
	/* Greater than 0: a request is there, which is usual in all respects, and environ
	 * points at its params, whose bytes are the lowest bits of this; the number of
	 * their layout follows from bit FCGI_STEP_LAYOUT on. */
	FCGI_STEP_LAYOUT = 17,
	FCGI_STEP_OTHER = 0,   /* something else is to be done, and given by fcgi_lane_next */
	FCGI_STEP_UNSENT = -1, /* fcgi_lane_left tells what is left of the answer */
};

/* Let the process be its own, and wait for the next request: fcgi_environ_restore,
 * fcgi_lane_next, fcgi_environ_show. */
int fcgi_step_begin(struct fcgi_lane *lane);

/* Before the wait, answer the request that was given, as fcgi_lane_answer does. */
int fcgi_step(struct fcgi_lane *lane, const uint8_t *content, uint32_t size);

#endif
