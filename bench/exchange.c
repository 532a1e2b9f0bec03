// SPDX-License-Identifier: Apache-2.0
/* exchange N: prints the port that it listens on, waits for a line, and then exchanges N requests and
 * responses over one kept connection on loopback, in one thread; prints the CPU time of one, in ns.
 *
 * The kernel does all work in the context of the caller, softirq included, so the thread's own CPU clock has
 * all of it, and nothing of the other processes' noise.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char request[] = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
static const char response[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static void carry(int from, int to, const char *text, int size)
{
	char buffer[128];

	if (write(from, text, size) != size || read(to, buffer, sizeof(buffer)) != size) {
		fprintf(stderr, "exchange: a message did not arrive in one piece\n");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 10000, one = 1, listener, client, server, i;
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	struct timespec begin, end;

	listener = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(bind(listener, (struct sockaddr *)&address, length), "bind");
	check(listen(listener, 1), "listen");
	check(getsockname(listener, (struct sockaddr *)&address, &length), "getsockname");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	if (getchar() < 0)
		return 1;
	client = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(connect(client, (struct sockaddr *)&address, length), "connect");
	server = check(accept(listener, NULL, NULL), "accept");
	check(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), "TCP_NODELAY");
	check(setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), "TCP_NODELAY");
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
	for (i = 0; i < n; i++) {
		carry(client, server, request, sizeof(request) - 1);
		carry(server, client, response, sizeof(response) - 1);
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	printf("%.0f\n", ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / n);
	return 0;
}
