// SPDX-License-Identifier: Apache-2.0

/**
 * A program whose profile is known: below 21 calls of deep, hotA takes 70 % of its time, hotB 20 %, hotC 10 %. HotSpot
 * inlines what it likes. Argument: seconds to live.
 */
final class Burn {
    interface Kernel {
        long run(long seed, int rounds);
    }

    static final class KernelA implements Kernel {
        public long run(long seed, int rounds) {
            long number = seed + 70;
            for (int i = 0; i < rounds; i++) number = mix(number + i);
            return number;
        }
    }

    static final class KernelB implements Kernel {
        public long run(long seed, int rounds) {
            long number = seed + 20;
            for (int i = 0; i < rounds; i++) number = mix(number + i);
            return number;
        }
    }

    private final Kernel first = new KernelA();
    private final Kernel second = new KernelB();

    static long mix(long number) {
        number ^= number >>> 33;
        number *= 0xff51afd7ed558ccdL;
        return number ^ number >>> 29;
    }

    long hotA(long seed) {
        return first.run(seed, 70_000) + 1;
    }

    long hotB(long seed) {
        return second.run(seed, 20_000) + 1;
    }

    long hotC(long seed) {
        return leafC(seed, 10_000) + 1;
    }

    static long leafC(long seed, int rounds) {
        long number = seed;
        for (int i = 0; i < rounds; i++) number = mix(number + i);
        return number;
    }

    long deep(int depth, long seed) {
        if (depth > 0) return deep(depth - 1, seed + depth) + 1;
        return hotC(hotB(hotA(seed)));
    }

    static long run(long end) {
        Burn burn = new Burn();
        long number = 1;
        while (System.nanoTime() < end) number = burn.deep(20, number);
        return number;
    }

    public static void main(String[] arguments) {
        System.out.println(run(System.nanoTime() + Long.parseLong(arguments[0]) * 1_000_000_000L));
    }
}
