/* foreign: the hello of the measured pools on libfcgi, which knows nothing of its
 * supervisor, and serves one connection at a time. */
#include <fcgi_stdio.h>

int main(void)
{
	while (FCGI_Accept() >= 0)
		printf("Content-Type: text/plain\r\n\r\nHello, world\n");
	return 0;
}
