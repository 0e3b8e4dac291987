/* The lane over Unix sockets: web servers that send anything, cut anywhere, and take their
 * answers as they like; a caller that answers, releases, adopts and interrupts.
 *
 * Input: steps, each a byte for what is done and one for whom or how much. What the lane
 * writes is compared byte by byte, its list and its counts after each step, and the
 * descriptors of the process at the end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "check.h"

/* The system calls that decide how much goes and comes are the input's to cut. */
static ssize_t cut_send(int fd, const void *data, size_t size, int flags);
static ssize_t cut_recv(int fd, void *data, size_t size, int flags);
static int short_poll(struct pollfd *fds, nfds_t count, int timeout);

#define send cut_send
#define recv cut_recv
#define poll short_poll
#include "../../fcgi_app/_native/lane.c"
#undef send
#undef recv
#undef poll

enum { CLIENTS = 6, HELD = 16, FDS = 80, MOST_INPUT = 4096, ANSWERS = 4 << 20 };

struct client {
	int fd;
	socklen_t name_size;
	struct sockaddr_un name;
	uint8_t *expected; /* answers that are on their way */
	size_t due;
};

extern char **environ;

static struct fcgi_lane *lane;
static struct fcgi_environ *env;
static char **before_all;
static struct client clients[CLIENTS];
static struct sockaddr_un address;
static socklen_t address_size;
static int listener = -1, epoll_fd = -1, held[HELD], held_count, given, cut, listening;
static int64_t turn;
static size_t send_limit, recv_limit;
static int send_error;
static struct client *asked_by;
static uint8_t raw[65536]; /* what has been received last */
static size_t raw_size;

static ssize_t cut_send(int fd, const void *data, size_t size, int flags)
{
	ssize_t sent;

	CHECK(flags == (MSG_DONTWAIT | MSG_NOSIGNAL));
	if (send_error) {
		errno = send_error;
		return -1;
	}
	sent = send(fd, data, size < send_limit ? size : send_limit, flags);
	if (sent > 0 && asked_by) {
		CHECK(asked_by->due + (size_t)sent <= ANSWERS);
		memcpy(asked_by->expected + asked_by->due, data, (size_t)sent);
		asked_by->due += (size_t)sent;
	}
	return sent;
}

static ssize_t cut_recv(int fd, void *data, size_t size, int flags)
{
	ssize_t got;

	CHECK(flags == MSG_DONTWAIT && size <= sizeof raw);
	got = recv(fd, data, size < recv_limit ? size : recv_limit, flags);
	if (got > 0) {
		raw_size = (size_t)got;
		memcpy(raw, data, raw_size);
	}
	return got;
}

static int short_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	CHECK(timeout >= 0);
	return poll(fds, count, 0);
}

/* --- What must always be so -------------------------------------------------------- */

static void check_list(void)
{
	int fd, before = NOTHING, i;
	uint32_t count = 0, waiting = 0;
	int64_t since = INT64_MIN;

	for (fd = lane->oldest; fd != NOTHING; fd = lane->places[fd].after) {
		CHECK(fd >= 0 && fd < lane->place_count && lane->places[fd].waiting);
		CHECK(lane->places[fd].before == before);
		CHECK(lane->places[fd].since >= since);
		CHECK(fcntl(fd, F_GETFD) >= 0 && fd != lane->fd);
		since = lane->places[fd].since;
		before = fd;
		CHECK(++count <= FDS);
	}
	CHECK(lane->newest == before && fcgi_lane_count(lane) == count);
	for (i = 0; i < lane->place_count; i++)
		waiting += lane->places[i].waiting;
	CHECK(waiting == count);
	CHECK((fcgi_lane_due(lane, 1000) < 0) == (count == 0));
}

static unsigned open_descriptors(uint8_t *which)
{
	unsigned count = 0;
	int fd;

	for (fd = 0; fd < FDS; fd++) {
		which[fd] = fcntl(fd, F_GETFD) >= 0;
		count += which[fd];
	}
	return count;
}

/* Take what has come, which must be what was sent. */
static void drain(struct client *client)
{
	static uint8_t got[1 << 16];
	size_t done = 0;
	ssize_t size;

	while (client->fd >= 0 && done < client->due) {
		size = recv(client->fd, got, sizeof got, MSG_DONTWAIT);
		CHECK(size > 0 && (size_t)size <= client->due - done);
		CHECK(!memcmp(got, client->expected + done, (size_t)size));
		done += (size_t)size;
	}
	client->due = 0;
	if (client->fd >= 0) {
		size = recv(client->fd, got, sizeof got, MSG_DONTWAIT);
		CHECK(size <= 0); /* nothing that nobody has sent */
	}
}

/* --- The web servers ------------------------------------------------------------------ */

static struct client *client_of(int fd)
{
	struct sockaddr_un name;
	socklen_t size = sizeof name;
	int i;

	if (getpeername(fd, (struct sockaddr *)&name, &size))
		return NULL;
	for (i = 0; i < CLIENTS; i++) {
		if (clients[i].fd >= 0 && clients[i].name_size == size &&
		    !memcmp(&clients[i].name, &name, size))
			return &clients[i];
	}
	return NULL;
}

static void connect_client(struct client *client)
{
	struct sockaddr_un any = {.sun_family = AF_UNIX};

	if (client->fd >= 0)
		return;
	client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	CHECK(client->fd >= 0);
	/* A name by which its other end can be found. */
	CHECK(!bind(client->fd, (struct sockaddr *)&any, sizeof any.sun_family));
	client->name_size = sizeof client->name;
	CHECK(!getsockname(client->fd, (struct sockaddr *)&client->name,
			   &client->name_size));
	client->due = 0;
	if (connect(client->fd, (struct sockaddr *)&address, address_size)) {
		close(client->fd); /* the queue of the listener is full */
		client->fd = -1;
	}
}

static void close_client(struct client *client)
{
	if (client->fd >= 0) {
		drain(client);
		close(client->fd);
	}
	client->fd = -1;
}

static size_t put(uint8_t *to, unsigned type, unsigned id, const void *content, size_t size)
{
	const uint8_t header[8] = {1, (uint8_t)type, (uint8_t)(id >> 8), (uint8_t)id,
				   (uint8_t)(size >> 8), (uint8_t)size};

	memcpy(to, header, 8);
	if (size)
		memcpy(to + 8, content, size);
	return size + 8;
}

/* A whole request; how: its id, keep, method and one byte that is to be wrong; its body:
 * how long, and above that the padding of PARAMS. */
static void send_request(struct client *client, uint8_t how, uint8_t body)
{
	static const char *const lists[4] = {
		"\x0e\x03REQUEST_METHODGET", "\x0e\x04REQUEST_METHODHEAD",
		"\x0e\x01" "CONTENT_LENGTH0", "\x0e\x01" "CONTENT_LENGTH7"};
	static const char text[] = "0123456789abcdef0123456789abcdef";
	uint8_t begin[8] = {0, 1, how & 1}, bytes[256];
	size_t params, padding = body >> 5;
	const char *list = lists[how >> 1 & 3];
	unsigned id = 1 + (how >> 3 & 1);
	size_t size = put(bytes, 1, id, begin, 8);

	params = size;
	size += put(bytes + size, 4, id, list, strlen(list));
	memset(bytes + size, 0xee, padding);
	bytes[params + 6] = (uint8_t)padding;
	size += padding;
	size += put(bytes + size, 4, id, NULL, 0);
	if (body & 0x1f)
		size += put(bytes + size, 5, id, text, body & 0x1f);
	size += put(bytes + size, 5, id, NULL, 0);
	if (how & 0x10)
		size -= how >> 5; /* cut; the rest never comes */
	else if (how & 0x20)
		bytes[how % size] ^= 0x40;
	if (client->fd >= 0)
		send(client->fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* --- The caller ------------------------------------------------------------------------ */

static void hold(int fd)
{
	if (fd < 0)
		return;
	CHECK(fcntl(fd, F_GETFD) >= 0);
	if (held_count == HELD)
		close(fd);
	else
		held[held_count++] = fd;
}

/* What there is in the params that come: nothing unusual, whichever way they took. */
static void check_params_given(const uint8_t *list, size_t size, uint32_t body)
{
	struct fcgi_pair pair;
	size_t position = 0;
	uint32_t count = 0;
	int more, is_head = 0;

	CHECK(size <= lane->most_bytes);
	while ((more = fcgi_next_pair(list, size, &position, &pair)) > 0) {
		const uint8_t *name = list + pair.name, *value = list + pair.value;

		count++;
		if (pair.name_length != 14)
			continue;
		if (!memcmp(name, "CONTENT_LENGTH", 14))
			CHECK(fcgi_is_length(value, pair.value_length, body));
		if (!memcmp(name, "REQUEST_METHOD", 14))
			is_head = pair.value_length == 4 && !memcmp(value, "HEAD", 4);
	}
	CHECK(!more && count <= lane->most_params);
	CHECK(is_head == !!(turn & FCGI_LANE_HEAD));
}

/* A step shows what it knows the names of; the names of others are learnt. */
static void check_shown(const uint8_t *list, size_t size)
{
	static uint8_t all[MOST_INPUT];

	memset(all, 1, sizeof all);
	if (lane->shown > 0) {
		CHECK(!(turn & FCGI_LANE_HEAD));
		CHECK(environ != before_all);
		CHECK(fcgi_environ_show(env, list, size) == lane->shown);
	} else if (fcgi_environ_show(env, list, size) == FCGI_UNKNOWN &&
		   fcgi_environ_learn(env, list, size, all, all) == FCGI_UNUSUAL) {
		fcgi_environ_forget(env);
	}
	fcgi_environ_restore(env);
}

static void check_body_given(const uint8_t *buffer, uint32_t end, const struct fcgi_whole *whole)
{
	uint64_t body = (uint64_t)fcgi_lane_body(lane);
	uint32_t begins = (uint32_t)(body >> 32), ends = (uint32_t)body;

	CHECK(!!(turn & FCGI_LANE_BODY) == !!whole->body_length);
	CHECK(whole->body_length <= lane->most_body);
	if (!whole->body_length)
		return;
	CHECK(begins >= end && ends - begins == whole->body_length);
	CHECK(ends <= lane->received);
	CHECK(!memcmp(buffer + begins, raw + whole->body, whole->body_length));
}

/* What was given, checked against a look at the bytes that have come. */
static void check_given(void)
{
	const uint8_t *buffer = fcgi_lane_buffer(lane);
	struct fcgi_whole whole;
	uint32_t end = (uint32_t)turn & (FCGI_LANE_HEAD - 1);

	if (turn <= 0) {
		CHECK(!fcgi_lane_received(lane) || !memcmp(buffer, raw, raw_size));
		return;
	}
	CHECK(fcgi_scan_whole(raw, raw_size, &whole) && whole.end == raw_size);
	CHECK(end >= FCGI_LANE_CONTENT + ROLE_SIZE);
	CHECK(end <= lane->room + ROLE_SIZE);
	CHECK(!memcmp(buffer + end - ROLE_SIZE, ROLE, ROLE_SIZE));
	CHECK((uint64_t)turn >> FCGI_LANE_ID == buffer[2] * 256u + buffer[3]);
	CHECK(fcgi_lane_keep(lane) == (buffer[10] & 1u));
	CHECK(end - ROLE_SIZE - FCGI_LANE_CONTENT == whole.content_length);
	CHECK(!memcmp(buffer + FCGI_LANE_CONTENT, raw + whole.content, whole.content_length));
	check_params_given(buffer + FCGI_LANE_CONTENT, whole.content_length,
			   whole.body_length);
	check_body_given(buffer, end, &whole);
}

static void next(uint8_t how)
{
	int again = given && !cut;
	struct client *lost = cut ? client_of(lane->fd) : NULL;
	int64_t result;

	lane->is_step = (how & 2) != 0; /* what step.c does, which waits for ever */
	if (lane->is_step)
		lane->shown = 0;
	result = fcgi_lane_next(lane, 0, how & 1);
	if (again)
		CHECK(result == turn); /* given again */
	if (lost && lane->fd != NOTHING)
		CHECK(client_of(lane->fd) != lost); /* nothing mends an answer cut off */
	given = cut = 0;
	turn = result;
	CHECK(result >= FCGI_TURN_BROKEN && result != FCGI_TURN_BROKEN);
	if (result > 0 || result == FCGI_TURN_PART) {
		given = 1;
		CHECK(lane->fd != NOTHING);
		check_given();
		if (lane->is_step && turn > 0)
			check_shown(fcgi_lane_buffer(lane) + FCGI_LANE_CONTENT,
				    ((size_t)turn & (FCGI_LANE_HEAD - 1)) -
					    FCGI_LANE_CONTENT);
	} else {
		CHECK(lane->fd == NOTHING);
	}
	if (result == FCGI_TURN_OTHER)
		CHECK(fcgi_lane_events(lane) != 0);
	lane->is_step = 0;
}

static void answer(uint8_t how)
{
	static uint8_t content[FCGI_MAX_LENGTH + 1];
	static const uint32_t sizes[8] = {0, 1, 30, 1000, 8192, 32768, 65535, 65536};
	uint32_t size = sizes[how & 7];
	uint32_t all = size ? size + 8 : 0;
	int was_kept = (int)fcgi_lane_keep(lane);
	uint32_t count = fcgi_lane_count(lane);
	int fd = lane->fd;
	size_t due;
	int64_t left;

	if (!given || turn <= 0) {
		if (!given)
			CHECK(fcgi_lane_answer(lane, 0, content, 3) == -EINVAL);
		return;
	}
	content[0] = how;
	asked_by = client_of(fd);
	due = asked_by ? asked_by->due : 0;
	left = fcgi_lane_answer(lane, how, content, size);
	if (size > FCGI_MAX_LENGTH) {
		CHECK(left == -EINVAL && lane->fd == fd);
	} else if (left < 0) {
		CHECK(lane->fd == fd && !lane->cut);
	} else if (left > 0) {
		CHECK(lane->fd == fd && left <= all + 24);
		cut = 1;
		if (how & 8) { /* nobody cares for the rest: the lane closes it */
			next(how);
		} else {
			hold(fcgi_lane_release(lane));
			given = cut = 0;
		}
	} else {
		given = 0;
		CHECK(lane->fd == NOTHING);
		CHECK(fcgi_lane_count(lane) == count + (uint32_t)was_kept);
		CHECK((fcntl(fd, F_GETFD) >= 0) == was_kept);
		if (asked_by) {
			const uint8_t *got = asked_by->expected + due;

			CHECK(asked_by->due - due == all + 24);
			CHECK(!size || (got[1] == 6 && got[8] == how &&
					(uint32_t)(got[4] * 256 + got[5]) == size));
			CHECK(got[all + 1] == 6 && got[all + 8 + 1] == 3);
			CHECK(got[all + 8 + 8 + 3] == how);
		}
	}
	asked_by = NULL;
}

static void listen_again(void)
{
	fcgi_lane_unlisten(lane);
	if (listening)
		CHECK(!epoll_ctl(epoll_fd, EPOLL_CTL_DEL, listener, NULL));
	else {
		struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};

		CHECK(!epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event));
		CHECK(fcgi_lane_listen(lane, listener, 1));
	}
	listening = !listening;
}

static void start(uint8_t how)
{
	int i;

	for (i = 0; i < CLIENTS; i++) {
		clients[i].fd = -1;
		if (!clients[i].expected)
			clients[i].expected = malloc(ANSWERS);
		CHECK(clients[i].expected);
		clients[i].due = 0;
	}
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	address.sun_family = AF_UNIX;
	CHECK(!bind(listener, (struct sockaddr *)&address, sizeof address.sun_family));
	address_size = sizeof address;
	CHECK(!getsockname(listener, (struct sockaddr *)&address, &address_size));
	CHECK(!listen(listener, CLIENTS));
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	lane = fcgi_lane_new(epoll_fd, how & 1 ? 59 : 65536 /* 59: one whole request */, how & 2 ? 1 : 1000,
			     how & 4 ? 20 : 65536, how & 8 ? 3 : 65536);
	CHECK(lane);
	if (!env)
		env = fcgi_environ_new();
	CHECK(env);
	fcgi_environ_forget(env);
	fcgi_environ_restore(env);
	before_all = environ;
	lane->environ = env;
	held_count = given = cut = listening = 0;
	send_limit = recv_limit = SIZE_MAX;
	send_error = 0;
	asked_by = NULL;
	listen_again();
}

static void finish(void)
{
	int i;

	fcgi_lane_abandon(lane);
	CHECK(fcgi_lane_count(lane) == 0 && fcgi_lane_oldest(lane) < 0);
	CHECK(fcgi_lane_release(lane) < 0);
	fcgi_lane_free(lane);
	while (held_count)
		close(held[--held_count]);
	for (i = 0; i < CLIENTS; i++)
		close_client(&clients[i]);
	close(listener);
	close(epoll_fd);
}

static const uint8_t *step(const uint8_t *data, const uint8_t *end)
{
	uint8_t what = *data++, how = data < end ? *data++ : 0;
	struct client *client = &clients[how % CLIENTS];
	static const int errors[4] = {0, EAGAIN, EPIPE, ECONNRESET};
	size_t size;

	switch (what % 19) {
	case 0:
		connect_client(client);
		break;
	case 1: /* any bytes, as many as the next says */
		size = data < end ? *data++ : 0;
		if (size > (size_t)(end - data))
			size = (size_t)(end - data);
		if (client->fd >= 0)
			send(client->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
		data += size;
		break;
	case 2:
	case 3:
		connect_client(client);
		send_request(client, data < end ? *data++ : 0, 0);
		break;
	case 18:
		connect_client(client);
		size = data < end ? *data++ : 0;
		send_request(client, (uint8_t)size, data < end ? *data++ : 0);
		break;
	case 4:
		close_client(client);
		break;
	case 5:
		if (client->fd >= 0)
			shutdown(client->fd, SHUT_WR);
		break;
	case 6:
	case 7:
		next(how);
		break;
	case 8:
	case 9:
		answer(how);
		break;
	case 10:
		hold(fcgi_lane_release(lane));
		given = 0;
		break;
	case 11:
		if (held_count && fcgi_lane_adopt(lane, held[held_count - 1]) == 0)
			held_count--;
		break;
	case 12:
		hold(fcgi_lane_oldest(lane));
		break;
	case 13:
		fcgi_lane_limit(lane, how);
		break;
	case 14:
		drain(client);
		break;
	case 15:
		send_limit = how ? how : SIZE_MAX;
		send_error = errors[how > 250 ? how & 3 : 0];
		break;
	case 16:
		recv_limit = how ? how : SIZE_MAX;
		break;
	default:
		if (how & 1)
			listen_again();
		else if (lane->fd != NOTHING) {
			int least = 1;

			setsockopt(lane->fd, SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
		}
	}
	return data;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t before[FDS], after[FDS];
	const uint8_t *end = data + size;
	unsigned count = open_descriptors(before);

	if (size < 2 || size > MOST_INPUT)
		return 0;
	start(*data++);
	while (data < end) {
		data = step(data, end);
		check_list();
	}
	finish();
	fcgi_environ_forget(env);
	fcgi_environ_forget(env); /* those that were forgotten, too: else it looks for leaks */
	CHECK(open_descriptors(after) == count && !memcmp(before, after, FDS));
	return 0;
}
