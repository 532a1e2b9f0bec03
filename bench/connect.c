// SPDX-License-Identifier: Apache-2.0
/* Opens, accepts and closes N connections over loopback in one thread; prints the CPU time of one, in ns.
 *
 * The kernel does all work for a loopback connection in the context of its caller, softirq included, so
 * the thread's own CPU clock has all of it, and nothing of the other processes' noise.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 10000;
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	struct timespec begin, end;
	int listener = socket(AF_INET, SOCK_STREAM, 0), server, client, i;

	check(listener, "socket");
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)), "bind");
	check(listen(listener, 16), "listen");
	check(getsockname(listener, (struct sockaddr *)&address, &length), "getsockname");
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
	for (i = 0; i < n; i++) {
		/* several addresses, so that ports in TIME_WAIT don't run out */
		address.sin_addr.s_addr = htonl(0x7f000001 + i % 16);
		client = socket(AF_INET, SOCK_STREAM, 0);
		check(connect(client, (struct sockaddr *)&address, sizeof(address)), "connect");
		server = accept(listener, NULL, NULL);
		check(server, "accept");
		close(client);
		close(server);
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	printf("%.0f\n", ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / n);
	return 0;
}
