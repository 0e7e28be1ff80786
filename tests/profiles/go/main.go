// A Go program whose profile is known: below a chain of 21 calls, hotA takes 70 % of its time, hotB 20 % and hotC 10 %.
// hotA has no frame, hotB is a method of a generic type behind an interface, and hotC has its work inlined, or in C where
// cgo is on. Chance chooses, since a fixed pattern can keep step with the sampling clock. Each round of the work waits for
// two multiplications: with one it takes some percent more or less, by where its code lies.
// Arguments: seconds to live, and with cgo how the end of the chain is reached: see with_c.go.
package main

import (
	"os"
	"strconv"
	"time"
)

type hot interface{ run(number uint64) uint64 }

type kind[T ~uint64] struct{ add T }

var (
	hotB   hot = &kind[uint64]{1}
	seed       = uint64(88172645463325252)
	bottom     = choose
	sink   uint64
	end    time.Time
	done   = make(chan bool)
)

//go:noinline
func hotA(number uint64) uint64 {
	for i := 0; i < 8000; i++ {
		number = (number ^ number>>29) * 6364136223846793005
		number = (number ^ number>>32) * 6364136223846793005
	}
	return number
}

//go:noinline
func (k *kind[T]) run(number uint64) uint64 {
	for i := 0; i < 8000; i++ {
		number = (number ^ number>>29) * 6364136223846793005
		number = (number ^ number>>32) * 6364136223846793005
	}
	return number + uint64(k.add)
}

func work(number uint64) uint64 {
	for i := 0; i < 8000; i++ {
		number = (number ^ number>>29) * 6364136223846793005
		number = (number ^ number>>32) * 6364136223846793005
	}
	return number
}

//go:noinline
func choose() {
	seed ^= seed << 13
	seed ^= seed >> 7
	seed ^= seed << 17
	switch chance := seed % 10; {
	case chance < 7:
		sink = hotA(sink)
	case chance < 9:
		sink = hotB.run(sink)
	default:
		sink = hotC(sink)
	}
	sink++
}

//go:noinline
func deep(depth int) {
	var space [24]byte
	space[depth%24] = byte(sink)
	if depth == 0 {
		bottom()
	} else {
		deep(depth - 1)
	}
	sink += uint64(space[depth%24])
}

//go:noinline
func run() {
	if len(os.Args) > 2 {
		prepare(os.Args[2])
	}
	for time.Now().Before(end) {
		for i := 0; i < 200; i++ {
			deep(20)
		}
	}
	done <- true
}

func main() {
	seconds := 60
	if len(os.Args) > 1 {
		seconds, _ = strconv.Atoi(os.Args[1])
	}
	end = time.Now().Add(time.Duration(seconds) * time.Second)
	go run()
	<-done
}
