/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A C++ program whose profile is known: below a chain of 21 functions with frames of different sizes, hot_a takes 70 %
 * of its time, hot_b 20 %, and hot_c, in a shared library unless WHOLE, 10 %. Chance chooses, since a fixed pattern can
 * keep step with the sampling clock.
 * Arguments: seconds to live, and how the leaves are reached: "signal" = from a handler, on top of what it interrupted;
 * "late" = hot_c from a library that is opened when a line comes on standard input.
 */
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <thread>

#define LEAF __attribute__((noinline, noipa))

extern "C" std::uint64_t hot_c(std::uint64_t number);

static std::uint64_t (*last)(std::uint64_t) = hot_c;
static volatile std::uint64_t sink;
static bool by_signal;

extern "C" {
LEAF std::uint64_t hot_a(std::uint64_t number)
{
	for (int i = 0; i < 20000; i++)
		number = number * 6364136223846793005U + 1;
	return number;
}

LEAF std::uint64_t hot_b(std::uint64_t number)
{
	for (int i = 0; i < 20000; i++)
		number = number * 6364136223846793005U + 1;
	return number;
}

LEAF void choose()
{
	static unsigned int seed = 1;
	int chance = rand_r(&seed) % 10;

	sink = chance < 7 ? hot_a(sink) : chance < 9 ? hot_b(sink) : last(sink);
	sink = sink + 1;
}

LEAF void handler(int)
{
	choose();
	sink = sink + 1;
}
}

template <int depth> LEAF void deep(int seed)
{
	volatile char space[16 + depth * 8];

	space[0] = static_cast<char>(seed);
	if constexpr (depth > 0)
		deep<depth - 1>(seed + space[0]);
	else if (by_signal)
		std::raise(SIGUSR1);
	else
		choose();
	sink = sink + space[0];
}

LEAF void run(int seconds)
{
	for (time_t end = time(nullptr) + seconds; time(nullptr) < end;)
		for (int i = 0; i < 200; i++)
			deep<20>(i);
}

#ifdef LATE
static void open_library()
{
	char line[4096];

	if (!std::fgets(line, sizeof(line), stdin))
		std::exit(1);
	line[std::strcspn(line, "\n")] = 0;
	void *library = dlopen(line, RTLD_NOW);
	if (!library)
		std::exit(2);
	last = reinterpret_cast<std::uint64_t (*)(std::uint64_t)>(dlsym(library, "hot_c"));
}
#endif

int main(int argc, char **argv)
{
	int seconds = argc > 1 ? std::atoi(argv[1]) : 60;

	by_signal = argc > 2 && !std::strcmp(argv[2], "signal");
	std::signal(SIGUSR1, handler);
#ifdef LATE
	last = hot_b;
	std::thread(open_library).detach();
#endif
	std::thread thread(run, seconds);
	thread.join();
	return 0;
}
