/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A C++ program whose profile is known: below a chain of 21 functions with frames of different sizes, hot_a takes 70 %
 * of its time, hot_b 20 %, and hot_c, in a shared library unless WHOLE, 10 %. Chance chooses, since a fixed pattern can
 * keep step with the sampling clock.
 * Arguments: seconds to live, and how the leaves are reached:
 *   signal     from a handler, on top of what raised it
 *   timer      from a handler too, on top of whatever ran
 *   alternate  the same on a stack of the handler's own
 *   trap       on such a stack, on top of a function whose first instruction is none
 * With LATE, hot_c comes from a library that is opened when a line comes on standard input.
 */
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <thread>
#include <ucontext.h>
#include <unistd.h>

#define LEAF __attribute__((noinline, noipa))

extern "C" std::uint64_t hot_c(std::uint64_t number);

static std::uint64_t (*last)(std::uint64_t) = hot_c;
static volatile std::uint64_t sink;
static const char *how = "";
static void (*bottom)();

extern "C" {
LEAF std::uint64_t hot_a(std::uint64_t number)
{
	for (int i = 0; i < 8000; i++) {
		number = (number ^ number >> 29) * 6364136223846793005U;
		number = (number ^ number >> 32) * 6364136223846793005U;
	}
	return number;
}

LEAF std::uint64_t hot_b(std::uint64_t number)
{
	for (int i = 0; i < 8000; i++) {
		number = (number ^ number >> 29) * 6364136223846793005U;
		number = (number ^ number >> 32) * 6364136223846793005U;
	}
	return number;
}

LEAF void choose()
{
	static unsigned int seed = 1;
	int chance = rand_r(&seed) % 10;

	sink = chance < 7 ? hot_a(sink) : chance < 9 ? hot_b(sink) : last(sink);
	sink = sink + 1;
}

LEAF void raise_signal()
{
	std::raise(SIGUSR1);
	sink = sink + 1;
}

LEAF void handler(int)
{
	choose();
	sink = sink + 1;
}

/* Longer than the time between two signals, or few samples would find it. */
LEAF void long_handler(int)
{
	for (int i = 0; i < 200; i++)
		choose();
	sink = sink + 1;
}

#ifdef __x86_64__
void trap();
__asm__(".pushsection .text\n"
	".type trap, @function\n"
	"trap:\n"
	".cfi_startproc\n"
	"	ud2\n"
	"	ret\n"
	".cfi_endproc\n"
	".size trap, . - trap\n"
	".popsection\n");

LEAF void trap_handler(int, siginfo_t *, void *context)
{
	choose();
	static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_RIP] += 2;
}
#endif
}

template <int depth> LEAF void deep(int seed)
{
	volatile char space[16 + depth * 8];

	space[0] = static_cast<char>(seed);
	if constexpr (depth > 0)
		deep<depth - 1>(seed + space[0]);
	else
		bottom();
	sink = sink + space[0];
}

static void handle(int number, void (*handler)(int), int flags)
{
	struct sigaction action = {};

	action.sa_handler = handler;
	action.sa_flags = flags;
	sigaction(number, &action, nullptr);
}

/* By this thread's CPU time, and to it: of a whole process's timer other threads take the signals. */
static void start_timer()
{
	sigevent event = {};
	itimerspec every = { { 0, 1000000 }, { 0, 1000000 } };
	timer_t timer;

	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = SIGPROF;
	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) || timer_settime(timer, 0, &every, nullptr))
		std::exit(3);
}

static void prepare()
{
	static char space[1 << 16];
	stack_t alternate = { space, 0, sizeof(space) };
	bool is_alternate = !std::strcmp(how, "alternate");

	bottom = choose;
	sigaltstack(&alternate, nullptr);
	if (!std::strcmp(how, "signal")) {
		handle(SIGUSR1, handler, 0);
		bottom = raise_signal;
	}
	if (is_alternate || !std::strcmp(how, "timer")) {
		handle(SIGPROF, long_handler, is_alternate ? SA_ONSTACK : 0);
		start_timer();
	}
#ifdef __x86_64__
	if (!std::strcmp(how, "trap")) {
		handle(SIGILL, reinterpret_cast<void (*)(int)>(trap_handler), SA_ONSTACK | SA_SIGINFO);
		bottom = trap;
	}
#endif
}

LEAF void run(int seconds)
{
	prepare();
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

	how = argc > 2 ? argv[2] : "";
#ifdef LATE
	last = hot_b;
	std::thread(open_library).detach();
#endif
	std::thread thread(run, seconds);
	thread.join();
	return 0;
}
