package main

/*
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LEAF static __attribute__((noinline))

extern void goBack(void);
static volatile uint64_t result;

LEAF uint64_t hot_c(uint64_t number)
{
	for (int i = 0; i < 8000; i++) {
		number = (number ^ number >> 29) * 6364136223846793005U;
		number = (number ^ number >> 32) * 6364136223846793005U;
	}
	return number;
}

LEAF void through(void)
{
	goBack();
	result++;
}

// Longer than the time between two signals of the timer, or few samples would find it.
LEAF void handler(int number)
{
	for (int i = 0; i < (number == SIGPROF ? 200 : 1); i++)
		result = hot_c(result);
	result++;
}

LEAF void raise_signal(void)
{
	raise(SIGUSR1);
	result++;
}

// On the stack that Go gives to handlers: a goroutine's own is too small.
static void handle(int number)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};

	sigaction(number, &action, 0);
}

// By this thread's CPU time, and to it: of a whole process's timer other threads take the signals.
static void start_timer(void)
{
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
	struct itimerspec every = {{0, 1000000}, {0, 1000000}};
	timer_t timer;

	event._sigev_un._tid = syscall(SYS_gettid);
	if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) || timer_settime(timer, 0, &every, 0))
		exit(3);
}
*/
import "C"
import "runtime"

//go:noinline
func hotC(number uint64) uint64 { return uint64(C.hot_c(C.uint64_t(number))) }

//go:noinline
func throughC() { C.through() }

//go:noinline
func raise() { C.raise_signal() }

// prepare has the end of the chain reached "through" C that calls Go back, from C's handler of a "signal" that C raises, or
// has C's handler of a "timer" come on top of whatever runs.
func prepare(how string) {
	switch how {
	case "through":
		bottom = throughC
	case "signal":
		C.handle(C.SIGUSR1)
		bottom = raise
	case "timer":
		runtime.LockOSThread()
		C.handle(C.SIGPROF)
		C.start_timer()
	}
}
