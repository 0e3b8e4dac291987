/* load: sends one prepared FastCGI request again and again and checks each answer.
 *
 *     load SOCKET REQUEST BODY TOTAL CONNECTIONS kept|renewed|new spin|sleep
 *
 * SOCKET is the path of a Unix socket. REQUEST is a file with every byte that the
 * web server would send for one request, request id 1. The body of each answer must
 * be the content of the file BODY, repeated until it is TOTAL bytes long. "kept"
 * reuses a connection after END_REQUEST; "new" closes it there, as nginx does, and
 * opens the next. "renewed" keeps connections as web servers do that live with servers
 * which come and go: one that has served before and ends without a byte of an answer
 * is opened anew and the request is sent again, once; "repeated" counts that. One thread, epoll, non-blocking sockets. "spin" looks for answers
 * without sleeping: to wake a sleeping process costs whoever sends to it, most of all
 * on a virtual machine, and the server is to pay for its own work.
 *
 * Commands come one a line on standard input; each is answered by one line of JSON:
 *
 *     run SECONDS REQUESTS   load until either bound is met or TOLERANCE errors are
 *                            passed, then wait PATIENCE seconds for what is under way
 *     open N                 open N more connections, one request on each, leave them
 *     again                  one more request on each connection of `open`
 *
 * End of input ends the program; until then all kept connections stay open, so the
 * caller can look at the server between two commands. If REQUEST holds a run of
 * MARK (24 bytes of '@'), each request has other hexadecimal digits there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 8, STDOUT = 6, END_REQUEST = 3, RECEIVE = 1 << 18, BATCH = 64 };
enum { PATIENCE = 5, TOLERANCE = 100 };
static const char MARK[] = "@@@@@@@@@@@@@@@@@@@@@@@@";

struct connection {
	int fd;             /* -1: closed */
	int busy;           /* a request is under way */
	int blocked;        /* the poller watches for EPOLLOUT too */
	int reused;         /* it has served since it was opened */
	int answered;       /* something of the present answer has come */
	size_t sent;        /* bytes of the request that are written */
	uint64_t started;   /* ns */
	uint64_t served;    /* answers since the last command */
	uint8_t header[HEADER], end[HEADER];
	size_t header_length, end_length;
	size_t content, padding; /* what is still to come of the record */
	int head;           /* 0 in a line, 1 at the start of a line, 2 in the body */
	size_t body;        /* bytes of the body so far */
};

static struct sockaddr_un address = { .sun_family = AF_UNIX };
static uint8_t *request, *expected, *mark;
static size_t request_length, expected_length, total;
static int keep, renew, spin, poller;
static uint64_t counter;
static uint8_t buffer[RECEIVE];

static uint32_t *latencies; /* ns / 100 */
static size_t latency_count, latency_room;
static size_t requests, errors, connections_opened, repeated;
static char problem[160];

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void *room_for(void *old, size_t count, size_t size)
{
	void *memory = reallocarray(old, count, size);
	if (!memory)
		die("memory");
	return memory;
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint8_t *read_whole(const char *path, size_t *length)
{
	FILE *file = fopen(path, "rb");
	uint8_t *data = NULL;
	size_t size = 0, got;

	if (!file)
		die(path);
	*length = 0;
	do {
		size = size ? 2 * size : 65536;
		data = room_for(data, size, 1);
		got = fread(data + *length, 1, size - *length, file);
		*length += got;
	} while (*length == size);
	fclose(file);
	return data;
}

/* Remembers the first problem only: the ones after it follow from it. */
static void fail(struct connection *c, const char *what)
{
	if (!errors++)
		snprintf(problem, sizeof problem, "%s after %zu body bytes, answer %llu",
			 what, c->body, (unsigned long long)c->served);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	c->busy = 0;
}

static void watch(struct connection *c, int operation)
{
	struct epoll_event event = { .data.ptr = c };
	event.events = EPOLLIN | (c->blocked ? EPOLLOUT : 0);
	if (epoll_ctl(poller, operation, c->fd, &event))
		die("epoll_ctl");
}

/* Connects blocking, so that a full listen queue is waited for. */
static void open_connection(struct connection *c)
{
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		die("socket");
	while (connect(c->fd, (void *)&address, sizeof address))
		if (errno != EINTR)
			die("connect");
	if (fcntl(c->fd, F_SETFL, O_NONBLOCK))
		die("fcntl");
	c->blocked = c->reused = 0;
	watch(c, EPOLL_CTL_ADD);
	connections_opened++;
}

static void send_more(struct connection *c);

/* The server has ended the connection. */
static void ended(struct connection *c, const char *what)
{
	if (!renew || (c->busy && (!c->reused || c->answered))) {
		fail(c, what);
		return;
	}
	close(c->fd);
	c->fd = -1;
	if (c->busy) {
		repeated++;
		c->sent = 0;
		open_connection(c);
		send_more(c);
	}
}

static void send_more(struct connection *c)
{
	int blocked = 0;
	while (c->sent < request_length) {
		ssize_t n = send(c->fd, request + c->sent, request_length - c->sent,
				 MSG_NOSIGNAL);
		if (n >= 0) {
			c->sent += (size_t)n;
		} else if (errno == EAGAIN) {
			blocked = 1;
			break;
		} else if (errno == EPIPE || errno == ECONNRESET) {
			ended(c, strerror(errno));
			return;
		} else if (errno != EINTR) {
			fail(c, strerror(errno));
			return;
		}
	}
	if (blocked && mark)
		fail(c, "a marked request does not fit the socket");
	else if (blocked != c->blocked) {
		c->blocked = blocked;
		watch(c, EPOLL_CTL_MOD);
	}
}

static void begin(struct connection *c)
{
	if (mark) {
		/* odd multiplier: a bijection, so that no two values are equal */
		char digits[25];
		uint64_t mixed = ++counter * 0x9e3779b97f4a7c15u;
		snprintf(digits, sizeof digits, "%016llx%08x", (unsigned long long)mixed,
			 (unsigned)counter);
		memcpy(mark, digits, sizeof digits - 1);
	}
	c->started = now();
	c->busy = 1;
	c->sent = c->header_length = c->end_length = c->content = c->padding = 0;
	c->body = 0;
	c->head = c->answered = 0;
	if (c->fd < 0)
		open_connection(c);
	send_more(c);
}

static void finished(struct connection *c)
{
	static const uint8_t no_status[5];

	if (memcmp(c->end, no_status, sizeof no_status)) {
		fail(c, "END_REQUEST reports a failure");
		return;
	}
	if (c->head != 2 || c->body != total) {
		fail(c, "the body is too short");
		return;
	}
	if (c->sent < request_length) {
		fail(c, "END_REQUEST before the request was sent");
		return;
	}
	if (latency_count == latency_room) {
		latency_room = latency_room ? 2 * latency_room : 65536;
		latencies = room_for(latencies, latency_room, sizeof *latencies);
	}
	latencies[latency_count++] = (uint32_t)((now() - c->started) / 100);
	requests++;
	c->served++;
	c->reused = 1;
	c->busy = 0;
	if (!keep) {
		close(c->fd);
		c->fd = -1;
	}
}

/* Compares a piece of STDOUT: first the CGI head, up to an empty line, then the body. */
static int take_stdout(struct connection *c, const uint8_t *data, size_t length)
{
	size_t i = 0;

	while (i < length && c->head != 2) {
		uint8_t byte = data[i++];
		if (byte == '\n')
			c->head++;
		else if (byte != '\r')
			c->head = 0;
	}
	while (i < length) {
		size_t offset = c->body % expected_length;
		size_t n = expected_length - offset;
		if (n > length - i)
			n = length - i;
		if (c->body + n > total || memcmp(data + i, expected + offset, n)) {
			fail(c, "the body differs");
			return 0;
		}
		c->body += n;
		i += n;
	}
	return 1;
}

static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

static int take_header(struct connection *c)
{
	const uint8_t *h = c->header;
	int ok = h[0] == 1 && h[2] == 0 && h[3] == 1;

	c->content = (size_t)h[4] << 8 | h[5];
	c->padding = h[6];
	c->end_length = 0;
	if (ok && h[1] == END_REQUEST)
		ok = c->content == HEADER;
	else if (ok && h[1] != STDOUT)
		ok = c->content == 0; /* an empty STDERR; anything in it is a failure */
	if (!ok)
		fail(c, "an unexpected record");
	return ok;
}

static void take(struct connection *c, const uint8_t *data, size_t length)
{
	while (length && c->busy) {
		size_t n;
		if (c->header_length < HEADER) {
			n = smaller(HEADER - c->header_length, length);
			memcpy(c->header + c->header_length, data, n);
			c->header_length += n;
			if (c->header_length == HEADER && !take_header(c))
				return;
		} else if (c->content) {
			n = smaller(c->content, length);
			if (c->header[1] == END_REQUEST) {
				memcpy(c->end + c->end_length, data, n);
				c->end_length += n;
			} else if (!take_stdout(c, data, n)) {
				return;
			}
			c->content -= n;
		} else {
			n = smaller(c->padding, length);
			c->padding -= n;
		}
		data += n;
		length -= n;
		if (c->header_length == HEADER && !c->content && !c->padding) {
			c->header_length = 0;
			if (c->header[1] == END_REQUEST) {
				finished(c);
				if (length && c->fd >= 0)
					fail(c, "bytes after END_REQUEST");
				return;
			}
		}
	}
}

static void receive(struct connection *c)
{
	ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
	if (n > 0 && !c->busy)
		fail(c, "bytes without a request");
	else if (n > 0) {
		c->answered = 1;
		take(c, buffer, (size_t)n);
	} else if (n == 0)
		ended(c, "the server closed the connection");
	else if (errno == ECONNRESET)
		ended(c, strerror(errno));
	else if (errno != EAGAIN && errno != EINTR)
		fail(c, strerror(errno));
}

/* Waits once; on connections that became free, `next` decides about one more. */
static void turn(int milliseconds, int (*next)(struct connection *))
{
	struct epoll_event events[BATCH];
	uint64_t limit = spin ? now() + (uint64_t)milliseconds * 1000000u : 0;
	int n;

	do
		n = epoll_wait(poller, events, BATCH, spin ? 0 : milliseconds);
	while (!n && spin && now() < limit);
	for (int i = 0; i < n; i++) {
		struct connection *c = events[i].data.ptr;
		if (c->fd >= 0 && events[i].events & EPOLLOUT)
			send_more(c);
		if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
			receive(c);
		if (!c->busy && next && next(c))
			begin(c);
	}
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static double percentile(double part)
{
	if (!latency_count)
		return 0;
	return latencies[(size_t)(part * (double)(latency_count - 1) + 0.5)] / 10.0;
}

static void restart_figures(void)
{
	requests = errors = latency_count = connections_opened = repeated = 0;
	problem[0] = 0;
}

static void report(uint64_t started, size_t starved)
{
	double seconds = (double)(now() - started) / 1e9;
	qsort(latencies, latency_count, sizeof *latencies, by_value);
	printf("{\"requests\": %zu, \"errors\": %zu, \"problem\": \"%s\", \"starved\": %zu, "
	       "\"opened\": %zu, \"repeated\": %zu, \"seconds\": %.6f, \"p50_us\": %.1f, "
	       "\"p99_us\": %.1f}\n",
	       requests, errors, problem, starved, connections_opened, repeated, seconds,
	       percentile(0.5), percentile(0.99));
	fflush(stdout);
}

static uint64_t deadline;
static size_t left;

static int until_bound(struct connection *c)
{
	(void)c;
	if (!left || errors > TOLERANCE || now() >= deadline)
		return 0;
	left--;
	return 1;
}

static void finish_all(struct connection *all, size_t count)
{
	uint64_t limit = now() + PATIENCE * 1000000000ull;
	size_t i = 0;
	while (i < count && now() < limit) {
		if (all[i].busy)
			turn(100, NULL);
		else
			i++;
	}
	for (i = 0; i < count; i++)
		if (all[i].busy)
			fail(&all[i], "no answer in time");
}

static void run(struct connection *all, size_t count, double seconds, size_t bound)
{
	uint64_t started = now();
	size_t starved = 0;

	restart_figures();
	deadline = started + (uint64_t)(seconds * 1e9);
	left = bound;
	for (size_t i = 0; i < count; i++) {
		all[i].served = 0;
		if (until_bound(&all[i]))
			begin(&all[i]);
	}
	while (left && errors <= TOLERANCE && now() < deadline)
		turn(100, until_bound);
	finish_all(all, count);
	for (size_t i = 0; i < count; i++)
		starved += !all[i].served;
	report(started, starved);
}

/* One request on each of these, sixteen at a time. */
static void once_each(struct connection *all, size_t count)
{
	uint64_t started = now();
	restart_figures();
	for (size_t i = 0; i < count && errors <= TOLERANCE; i += 16) {
		size_t n = smaller(16, count - i);
		for (size_t j = i; j < i + n; j++)
			begin(&all[j]);
		finish_all(all + i, n);
	}
	report(started, count - requests);
}

static struct connection *new_connections(size_t count)
{
	struct connection *all = room_for(NULL, count, sizeof *all);
	memset(all, 0, count * sizeof *all);
	for (size_t i = 0; i < count; i++)
		all[i].fd = -1;
	return all;
}

static void obey(struct connection *all, size_t count)
{
	struct connection *idle = NULL;
	size_t idle_count = 0, bound;
	double seconds;
	char line[100];

	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "run %lf %zu", &seconds, &bound) == 2) {
			run(all, count, seconds, bound);
		} else if (!idle && sscanf(line, "open %zu", &idle_count) == 1) {
			idle = new_connections(idle_count);
			once_each(idle, idle_count);
		} else if (idle && !strcmp(line, "again\n")) {
			once_each(idle, idle_count);
		} else {
			fprintf(stderr, "load: unknown command: %s", line);
			exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	struct rlimit files;
	size_t count;

	if (argc != 8) {
		fputs("usage: load SOCKET REQUEST BODY TOTAL CONNECTIONS kept|renewed|new "
		      "spin|sleep\n", stderr);
		return 2;
	}
	if (strlen(argv[1]) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		die(argv[1]);
	}
	strcpy(address.sun_path, argv[1]);
	request = read_whole(argv[2], &request_length);
	expected = read_whole(argv[3], &expected_length);
	total = strtoul(argv[4], NULL, 10);
	count = strtoul(argv[5], NULL, 10);
	renew = !strcmp(argv[6], "renewed");
	keep = renew || !strcmp(argv[6], "kept");
	spin = !strcmp(argv[7], "spin");
	mark = memmem(request, request_length, MARK, sizeof MARK - 1);
	if (!request_length || !expected_length || !count) {
		errno = EINVAL;
		die("empty request, empty body or no connection");
	}
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	poller = epoll_create1(EPOLL_CLOEXEC);
	if (poller < 0)
		die("epoll_create1");
	obey(new_connections(count), count);
	return 0;
}
