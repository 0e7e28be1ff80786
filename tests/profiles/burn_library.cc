/* SPDX-License-Identifier: Apache-2.0 */
/* The leaf of burn.cc that lies in a shared library. */
#include <cstdint>

extern "C" __attribute__((noinline, noipa)) std::uint64_t hot_c(std::uint64_t number)
{
	for (int i = 0; i < 8000; i++) {
		number = (number ^ number >> 29) * 6364136223846793005U;
		number = (number ^ number >> 32) * 6364136223846793005U;
	}
	return number;
}
