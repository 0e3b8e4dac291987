/* The measured program on libfcgi's fcgiapp.h: HANDLER PROCESSES
 *
 * So many processes accept on descriptor 0, as one process of libfcgi serves one
 * connection. The first one only waits: for the end of them, or to be told to end
 * (SIGTERM), which it passes on. */
#include <fcgiapp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIECE = 65536, PIECES = 1024, MOST = 256 };

static void hello(FCGX_Request *request)
{
	/* volatile: the two look-ups are part of what is measured */
	const char *volatile method = FCGX_GetParam("REQUEST_METHOD", request->envp);
	const char *volatile address = FCGX_GetParam("REMOTE_ADDR", request->envp);

	if (!method || !address)
		exit(1);
	FCGX_PutS("Content-Type: text/plain\r\n\r\nHello, world\n", request->out);
}

static void echo(FCGX_Request *request)
{
	const char *text = FCGX_GetParam("CONTENT_LENGTH", request->envp);
	size_t length = text ? strtoul(text, NULL, 10) : 0, have = 0;
	char *body = malloc(length + PIECE);
	int got;

	if (!body)
		exit(1);
	do {
		size_t left = length - have;
		got = FCGX_GetStr(body + have, left < PIECE ? (int)left : PIECE, request->in);
		have += (size_t)got;
	} while (got && have < length);
	FCGX_PutS("Content-Type: application/octet-stream\r\n\r\n", request->out);
	FCGX_PutStr(body, (int)have, request->out);
	free(body);
}

static void download(FCGX_Request *request)
{
	static char block[PIECE];

	memset(block, 'x', sizeof block);
	FCGX_PutS("Content-Type: application/octet-stream\r\n\r\n", request->out);
	for (int i = 0; i < PIECES; i++)
		FCGX_PutStr(block, sizeof block, request->out);
}

static int serve(void (*handler)(FCGX_Request *))
{
	FCGX_Request request;

	if (FCGX_Init() || FCGX_InitRequest(&request, 0, 0))
		return 1;
	while (FCGX_Accept_r(&request) >= 0)
		handler(&request);
	return 0;
}

int main(int argc, char **argv)
{
	void (*handler)(FCGX_Request *) = NULL;
	int count = argc == 3 ? atoi(argv[2]) : 0, got;
	pid_t children[MOST];
	sigset_t awaited;

	if (count >= 1 && !strcmp(argv[1], "hello"))
		handler = hello;
	else if (count >= 1 && !strcmp(argv[1], "echo"))
		handler = echo;
	else if (count >= 1 && !strcmp(argv[1], "download"))
		handler = download;
	if (!handler || count > MOST)
		return 2;
	sigemptyset(&awaited);
	sigaddset(&awaited, SIGTERM);
	sigaddset(&awaited, SIGCHLD);
	sigprocmask(SIG_BLOCK, &awaited, NULL);
	for (int i = 0; i < count; i++) {
		children[i] = fork();
		if (children[i] < 0)
			return 1;
		if (!children[i]) {
			sigprocmask(SIG_UNBLOCK, &awaited, NULL);
			return serve(handler);
		}
	}
	sigwait(&awaited, &got);
	for (int i = 0; i < count; i++)
		kill(children[i], SIGTERM);
	while (wait(NULL) > 0)
		;
	return got == SIGTERM ? 0 : 1;
}
