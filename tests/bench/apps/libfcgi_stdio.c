/* The measured program on libfcgi's fcgi_stdio.h; the argument is the handler. */
#include <fcgi_stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 65536, PIECES = 1024 };

static void hello(void)
{
	/* volatile: the two look-ups are part of what is measured */
	const char *volatile method = getenv("REQUEST_METHOD");
	const char *volatile address = getenv("REMOTE_ADDR");

	if (!method || !address)
		exit(1);
	printf("Content-Type: text/plain\r\n\r\nHello, world\n");
}

static void echo(void)
{
	const char *text = getenv("CONTENT_LENGTH");
	size_t length = text ? strtoul(text, NULL, 10) : 0, have = 0, got;
	char *body = malloc(length + PIECE);

	if (!body)
		exit(1);
	do {
		size_t left = length - have;
		got = fread(body + have, 1, left < PIECE ? left : PIECE, stdin);
		have += got;
	} while (got && have < length);
	printf("Content-Type: application/octet-stream\r\n\r\n");
	fwrite(body, 1, have, stdout);
	free(body);
}

static void download(void)
{
	static char block[PIECE];

	memset(block, 'x', sizeof block);
	printf("Content-Type: application/octet-stream\r\n\r\n");
	for (int i = 0; i < PIECES; i++)
		fwrite(block, 1, sizeof block, stdout);
}

int main(int argc, char **argv)
{
	void (*handler)(void) = NULL;

	if (argc == 2 && !strcmp(argv[1], "hello"))
		handler = hello;
	else if (argc == 2 && !strcmp(argv[1], "echo"))
		handler = echo;
	else if (argc == 2 && !strcmp(argv[1], "download"))
		handler = download;
	if (!handler)
		return 2;
	while (FCGI_Accept() >= 0)
		handler();
	return 0;
}
