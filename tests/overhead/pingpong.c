/*
 * Two processes on one CPU pass a byte to and fro through pipes, so that every pass is a context
 * switch and little else. Prints the nanoseconds of CPU time that both used for one switch.
 *
 *   pingpong ROUND_TRIPS CPU
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static double cpu_ns(int who)
{
	struct rusage usage;

	if (getrusage(who, &usage))
		exit(1);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e9 +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e3;
}

int main(int argc, char **argv)
{
	int there[2], back[2];
	char byte = 1;
	cpu_set_t cpus;
	long trips, i;

	if (argc != 3) {
		fprintf(stderr, "pingpong ROUND_TRIPS CPU\n");
		return 2;
	}
	trips = atol(argv[1]);
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[2]), &cpus);
	if (trips < 1 || sched_setaffinity(0, sizeof(cpus), &cpus) || pipe(there) || pipe(back)) {
		perror("pingpong");
		return 1;
	}

	switch (fork()) {
	case -1:
		perror("pingpong");
		return 1;
	case 0:
		for (i = 0; i < trips; i++)
			if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
				_exit(1);
		_exit(0);
	}
	for (i = 0; i < trips; i++)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			return 1;
	wait(NULL);
	/* A round trip is two switches. */
	printf("%.1f\n", (cpu_ns(RUSAGE_SELF) + cpu_ns(RUSAGE_CHILDREN)) / trips / 2);
	return 0;
}
