package main

/*
#include <stdint.h>

static __attribute__((noinline)) uint64_t hot_c(uint64_t number)
{
	for (int i = 0; i < 20000; i++)
		number = number * 6364136223846793005U + 1;
	return number;
}
*/
import "C"

//go:noinline
func hotC(number uint64) uint64 { return uint64(C.hot_c(C.uint64_t(number))) }
