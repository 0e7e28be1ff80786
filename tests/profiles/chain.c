/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program whose profile is known: main -> outer -> middle -> hot takes 70 % of its time, main -> other 30 %.
 * Both leaves do the same work, so their shares follow from how often they run. Chance chooses between them, since a
 * fixed pattern can keep step with the sampling clock.
 * Each round of the work waits for two multiplications: with one it takes some percent more or less, by where its code
 * lies. The result goes to the stack, since gcc leaves a leaf without locals frameless whatever the flags say.
 * With INLINED, middle is a part of outer, and only debug information tells them apart.
 * Argument: seconds to live.
 */
#include <stdlib.h>
#include <time.h>

#define LEAF __attribute__((noinline, noclone, noipa))
#define WORK 8000

static volatile unsigned long sink;

LEAF void hot(void)
{
	unsigned long number = sink;
	volatile unsigned long result;

	for (int i = 0; i < WORK; i++) {
		number = (number ^ number >> 29) * 6364136223846793005UL;
		number = (number ^ number >> 32) * 6364136223846793005UL;
	}
	result = number;
	(void)result;
}

LEAF void other(void)
{
	unsigned long number = sink;
	volatile unsigned long result;

	for (int i = 0; i < WORK; i++) {
		number = (number ^ number >> 29) * 6364136223846793005UL;
		number = (number ^ number >> 32) * 6364136223846793005UL;
	}
	result = number;
	(void)result;
}

#ifdef INLINED
static inline
	__attribute__((always_inline))
#else
LEAF
#endif
	void
	middle(void)
{
	hot();
	sink++;
}

LEAF void outer(void)
{
	middle();
	sink++;
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 60);
	unsigned int seed = 1;

	while (time(NULL) < end) {
		for (int i = 0; i < 200; i++) {
			if (rand_r(&seed) % 10 < 7)
				outer();
			else
				other();
		}
	}
	return 0;
}
