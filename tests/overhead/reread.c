/*
 * Reads the files that standard input names, through descriptors that stay open, once a second, and prints the median
 * of the CPU time in microseconds that all of them took: what the kernel takes to write them, whoever reads.
 *
 *   reread ROUNDS <LIST
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FILES_MAX 16384
#define ROUNDS_MAX 1000

static double cpu_us(void)
{
	struct timespec time;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b)
{
	double difference = *(const double *)a - *(const double *)b;

	return (difference > 0) - (difference < 0);
}

int main(int argc, char **argv)
{
	static int files[FILES_MAX];
	static char line[4096], text[65536];
	int rounds = argc == 2 ? atoi(argv[1]) : 0, count = 0, round, i;
	static double took[ROUNDS_MAX];

	if (rounds < 1 || rounds > ROUNDS_MAX) {
		fprintf(stderr, "reread ROUNDS <LIST\n");
		return 2;
	}
	while (count < FILES_MAX && fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		files[count] = open(line, O_RDONLY | O_CLOEXEC);
		if (files[count] >= 0)
			count++;
	}
	for (round = 0; round < rounds; round++) {
		double begin;

		sleep(1);
		begin = cpu_us();
		for (i = 0; i < count; i++)
			if (pread(files[i], text, sizeof(text), 0) < 0)
				continue;
		took[round] = cpu_us() - begin;
	}
	qsort(took, rounds, sizeof(*took), by_size);
	printf("%.0f\n", took[rounds / 2]);
	return 0;
}
