/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program whose user stack is known: main -> outer -> middle -> hang_up closes a connection with unread data, which
 * resets it. It calls the kernel itself: the C library's function has no frame, and hides the function that calls it.
 * Ends when its input does.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FRAME __attribute__((noinline, noclone, noipa))

static volatile long sink;

/* Its result goes to the stack, since gcc leaves a leaf without locals frameless whatever the flags say. */
FRAME void hang_up(int connection)
{
	volatile long result;
#ifdef __x86_64__
	long value;

	__asm__ volatile("syscall" : "=a"(value) : "0"(SYS_close), "D"((long)connection) : "rcx", "r11", "memory");
#else
	register long number __asm__("x8") = SYS_close;
	register long value __asm__("x0") = connection;

	__asm__ volatile("svc 0" : "+r"(value) : "r"(number) : "memory");
#endif
	result = value;
	(void)result;
}

FRAME void middle(int connection)
{
	hang_up(connection);
	sink++;
}

FRAME void outer(int connection)
{
	middle(connection);
	sink++;
}

int main(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	char byte;

	if (bind(listener, (void *)&address, length) || listen(listener, 1) ||
	    getsockname(listener, (void *)&address, &length) || connect(client, (void *)&address, length))
		return 1;
	int server = accept(listener, NULL, NULL);
	if (write(server, "x", 1) != 1 || recv(client, &byte, 1, MSG_PEEK) != 1)
		return 1;
	outer(client);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
