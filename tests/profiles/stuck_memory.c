/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library that calls itself a JVM, whose descriptions lie in memory that never comes: whoever reads it waits for a
 * page that nobody delivers. It ends the program with 9 where the kernel does not let it be so.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define AMONG_NOTHING __attribute__((aligned(PAGE)))

/* Never touched, so that the kernel asks for each page. */
AMONG_NOTHING char gHotSpotVMStructs[PAGE];
AMONG_NOTHING char gHotSpotVMStructEntryArrayStride[PAGE];
AMONG_NOTHING char gHotSpotVMStructEntryTypeNameOffset[PAGE];
AMONG_NOTHING char gHotSpotVMStructEntryFieldNameOffset[PAGE];
AMONG_NOTHING char gHotSpotVMStructEntryTypeStringOffset[PAGE];
AMONG_NOTHING char gHotSpotVMStructEntryIsStaticOffset[PAGE];
AMONG_NOTHING char gHotSpotVMStructEntryOffsetOffset[PAGE];
AMONG_NOTHING char gHotSpotVMStructEntryAddressOffset[PAGE];

static void hold(int fd, char *page)
{
	struct uffdio_register area = {
		.range = { .start = (uintptr_t)page, .len = PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (ioctl(fd, UFFDIO_REGISTER, &area))
		_exit(9);
}

__attribute__((constructor)) static void begin(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		_exit(9);
	hold(fd, gHotSpotVMStructs);
	hold(fd, gHotSpotVMStructEntryArrayStride);
	hold(fd, gHotSpotVMStructEntryTypeNameOffset);
	hold(fd, gHotSpotVMStructEntryFieldNameOffset);
	hold(fd, gHotSpotVMStructEntryTypeStringOffset);
	hold(fd, gHotSpotVMStructEntryIsStaticOffset);
	hold(fd, gHotSpotVMStructEntryOffsetOffset);
	hold(fd, gHotSpotVMStructEntryAddressOffset);
}
