/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that runs code from a file system of its own, which answers nothing any more once the code runs: whoever
 * looks at that file waits for as long as the program lives. Arguments: an empty folder, and seconds to live.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BYTES 4096

/* push rbp; mov rbp, rsp; mov ecx, 1000000; 1: dec ecx; jnz 1b; pop rbp; ret */
static const unsigned char loop[] = {
	0x55, 0x48, 0x89, 0xe5, 0xb9, 0x40, 0x42, 0x0f, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0x5d, 0xc3,
};
static volatile int is_silent;

static void answer(int fd, const struct fuse_in_header *in, int error, const void *what, size_t bytes)
{
	static char buffer[sizeof(struct fuse_out_header) + BYTES];
	struct fuse_out_header out = { .len = sizeof(out) + bytes, .error = error, .unique = in->unique };

	memcpy(buffer, &out, sizeof(out));
	memcpy(buffer + sizeof(out), what, bytes);
	if (write(fd, buffer, out.len) < 0)
		_exit(3);
}

static struct fuse_attr about(uint64_t node)
{
	return (struct fuse_attr){
		.ino = node,
		.size = node == FUSE_ROOT_ID ? 0 : BYTES,
		.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0755,
		.nlink = 1,
		.blksize = BYTES,
	};
}

static void *serve(void *argument)
{
	static char request[FUSE_MIN_READ_BUFFER + BYTES];
	int fd = *(int *)argument;

	for (;;) {
		const struct fuse_in_header *in = (void *)request;
		if (read(fd, request, sizeof(request)) < (ssize_t)sizeof(*in))
			_exit(4);
		if (is_silent)
			continue;
		if (in->opcode == FUSE_INIT) {
			struct fuse_init_out out = {
				.major = FUSE_KERNEL_VERSION,
				.minor = FUSE_KERNEL_MINOR_VERSION,
				.max_write = BYTES,
			};
			answer(fd, in, 0, &out, sizeof(out));
		} else if (in->opcode == FUSE_LOOKUP) {
			struct fuse_entry_out out = { .nodeid = 2, .attr = about(2) };
			answer(fd, in, 0, &out, sizeof(out));
		} else if (in->opcode == FUSE_GETATTR) {
			struct fuse_attr_out out = { .attr = about(in->nodeid) };
			answer(fd, in, 0, &out, sizeof(out));
		} else if (in->opcode == FUSE_OPEN) {
			struct fuse_open_out out = {};
			answer(fd, in, 0, &out, sizeof(out));
		} else if (in->opcode == FUSE_READ) {
			char page[BYTES] = {};
			memcpy(page, loop, sizeof(loop));
			answer(fd, in, 0, page, sizeof(page));
		} else if (in->opcode != FUSE_FORGET && in->opcode != FUSE_INTERRUPT) {
			answer(fd, in, -38, NULL, 0);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int fuse = open("/dev/fuse", O_RDWR);
	time_t end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 60);
	char text[4200];
	pthread_t thread;

	if (argc < 2 || fuse < 0 || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return 1;
	snprintf(text, sizeof(text), "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
	if (mount("stuck", argv[1], "fuse", MS_NODEV | MS_NOSUID, text) || pthread_create(&thread, NULL, serve, &fuse))
		return 1;
	snprintf(text, sizeof(text), "%s/code", argv[1]);
	int file = open(text, O_RDONLY);
	void *code = mmap(NULL, BYTES, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
	/* The end of a program closes what is open, and would wait for itself. */
	if (file < 0 || code == MAP_FAILED || close(file))
		return 1;
	((void (*)(void))code)();
	is_silent = 1;
	puts("silent");
	fflush(stdout);
	while (time(NULL) < end)
		((void (*)(void))code)();
	_exit(0);
}
