/*
 * Work that provokes kernel events until it is ended.
 *
 *   load switches    two processes pass a byte to and fro through pipes
 *   load tcp         one process sends to another over the loopback device
 *   load files FILE  writes 16 KiB to FILE and waits until it is on the disk
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK_BYTES (16 << 10)
/* The file is written again from its start then. */
#define FILE_MAX (16 << 20)

static char chunk[CHUNK_BYTES];

/* A child that goes with its parent. */
static pid_t child(void)
{
	pid_t pid = fork();

	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

static int switches(void)
{
	int there[2], back[2], in, out;

	if (pipe(there) || pipe(back))
		return 1;
	switch (child()) {
	case -1:
		return 1;
	case 0:
		in = there[0];
		out = back[1];
		break;
	default:
		in = back[0];
		out = there[1];
		if (write(out, chunk, 1) != 1)
			return 1;
	}
	while (read(in, chunk, 1) == 1 && write(out, chunk, 1) == 1)
		;
	return 1;
}

static int tcp(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), stream;

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length))
		return 1;
	switch (child()) {
	case -1:
		return 1;
	case 0:
		stream = accept(listener, NULL, NULL);
		while (read(stream, chunk, sizeof(chunk)) > 0)
			;
		return 1;
	}
	stream = socket(AF_INET, SOCK_STREAM, 0);
	if (stream < 0 || connect(stream, (struct sockaddr *)&address, length))
		return 1;
	while (write(stream, chunk, sizeof(chunk)) > 0)
		;
	return 1;
}

static int files(const char *path)
{
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	off_t at;

	if (file < 0)
		return 1;
	for (at = 0; pwrite(file, chunk, sizeof(chunk), at) == sizeof(chunk) && !fsync(file);)
		at = (at + CHUNK_BYTES) % FILE_MAX;
	return 1;
}

int main(int argc, char **argv)
{
	int status = 2;

	signal(SIGPIPE, SIG_IGN);
	if (argc == 2 && !strcmp(argv[1], "switches"))
		status = switches();
	else if (argc == 2 && !strcmp(argv[1], "tcp"))
		status = tcp();
	else if (argc == 3 && !strcmp(argv[1], "files"))
		status = files(argv[2]);
	else
		fprintf(stderr, "load switches | tcp | files FILE\n");
	if (status == 1)
		perror("load");
	return status;
}
