// SPDX-License-Identifier: Apache-2.0
/* connect N [RATE [PORTS]]: opens, accepts and closes N connections over loopback in one thread; prints the
 * CPU time of one, in ns. With RATE, so many a second and no more; prints the rate that was reached. They go
 * to 16 addresses by turns, and to so many PORTS (1).
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

#define MAX_PORTS 1024

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static int listening(struct sockaddr_in *address)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t length = sizeof(*address);

	*address = (struct sockaddr_in){ .sin_family = AF_INET };
	check(listener, "socket");
	check(bind(listener, (struct sockaddr *)address, length), "bind");
	check(listen(listener, 16), "listen");
	check(getsockname(listener, (struct sockaddr *)address, &length), "getsockname");
	return listener;
}

static double seconds_between(const struct timespec *begin, const struct timespec *end)
{
	return (end->tv_sec - begin->tv_sec) + (end->tv_nsec - begin->tv_nsec) / 1e9;
}

/* Sleep until the i-th connection is due, a millisecond's worth of them at a time. */
static void pace(const struct timespec *begin, int i, int rate)
{
	long long ns = begin->tv_nsec + i * 1000000000LL / rate;
	struct timespec due = { .tv_sec = begin->tv_sec + ns / 1000000000, .tv_nsec = ns % 1000000000 };

	if (i % (rate / 1000 + 1) == 0)
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 10000, rate = argc > 2 ? atoi(argv[2]) : 0;
	clockid_t clock = rate ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
	int ports = argc > 3 ? atoi(argv[3]) : 1, listeners[MAX_PORTS], server, client, i;
	struct sockaddr_in addresses[MAX_PORTS], *address;
	struct timespec begin, end;

	if (n < 1 || rate < 0 || ports < 1 || ports > MAX_PORTS) {
		fprintf(stderr, "usage: connect N [RATE [PORTS]], PORTS at most %d\n", MAX_PORTS);
		return 2;
	}
	for (i = 0; i < ports; i++)
		listeners[i] = listening(&addresses[i]);
	clock_gettime(clock, &begin);
	for (i = 0; i < n; i++) {
		if (rate)
			pace(&begin, i, rate);
		/* several addresses, so that ports in TIME_WAIT don't run out */
		address = &addresses[i / 16 % ports];
		address->sin_addr.s_addr = htonl(0x7f000001 + i % 16);
		client = socket(AF_INET, SOCK_STREAM, 0);
		check(connect(client, (struct sockaddr *)address, sizeof(*address)), "connect");
		server = accept(listeners[i / 16 % ports], NULL, NULL);
		check(server, "accept");
		close(client);
		close(server);
	}
	clock_gettime(clock, &end);
	printf("%.0f\n", rate ? n / seconds_between(&begin, &end) : seconds_between(&begin, &end) * 1e9 / n);
	return 0;
}
