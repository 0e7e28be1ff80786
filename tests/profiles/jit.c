/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that makes code while it runs, and names it in /tmp/perf-PID.map by the pid that it knows of itself, among
 * lines that are none. Arguments: seconds to live, and "silent" to write no map.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* push rbp; mov rbp, rsp; mov ecx, 1000000; 1: dec ecx; jnz 1b; pop rbp; ret */
static const unsigned char loop[] = {
	0x55, 0x48, 0x89, 0xe5, 0xb9, 0x40, 0x42, 0x0f, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0x5d, 0xc3,
};

int main(int argc, char **argv)
{
	void *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 60);
	char path[64];

	if (code == MAP_FAILED)
		return 1;
	memcpy(code, loop, sizeof(loop));
	if (argc <= 2) {
		snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
		FILE *map = fopen(path, "w");
		if (!map)
			return 2;
		fprintf(map, "no line\n%lx\n%lx zz bad\n", (unsigned long)code, (unsigned long)code);
		fprintf(map, "%lx %zx made_while_running\n", (unsigned long)code, sizeof(loop));
		fclose(map);
	}
	while (time(NULL) < end)
		((void (*)(void))code)();
	return 0;
}
