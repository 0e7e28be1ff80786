/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A C++ program that does nothing but throw: at the end of a chain of 21 functions, each of which has an object that is
 * destroyed on the way back, by code far from the function's own. Argument: seconds to live.
 */
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <thread>

#define LEAF __attribute__((noinline, noipa))

static volatile std::uint64_t sink;

template <int depth> struct Guard {
	LEAF ~Guard()
	{
		std::uint64_t number = sink;

		for (int i = 0; i < 1000; i++)
			number = number * 6364136223846793005U + 1;
		sink = number;
	}
};

extern "C" LEAF void fail(int seed)
{
	if (seed >= 0)
		throw seed;
}

template <int depth> LEAF void deep(int seed)
{
	Guard<depth> guard;

	if constexpr (depth > 0)
		deep<depth - 1>(seed + 1);
	else
		fail(seed);
	sink = sink + seed;
}

LEAF void run(int seconds)
{
	for (time_t end = time(nullptr) + seconds; time(nullptr) < end;) {
		for (int i = 0; i < 200; i++) {
			try {
				deep<20>(i);
			} catch (int number) {
				sink = sink + number;
			}
		}
	}
}

int main(int argc, char **argv)
{
	std::thread thread(run, argc > 1 ? std::atoi(argv[1]) : 60);
	thread.join();
	return 0;
}
