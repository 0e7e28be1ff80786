/* SPDX-License-Identifier: Apache-2.0 */
/* The leaf of burn.cc that lies in a shared library. */
#include <cstdint>

extern "C" __attribute__((noinline, noipa)) std::uint64_t hot_c(std::uint64_t number)
{
	for (int i = 0; i < 20000; i++)
		number = number * 6364136223846793005U + 1;
	return number;
}
