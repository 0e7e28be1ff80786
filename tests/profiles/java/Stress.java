// SPDX-License-Identifier: Apache-2.0

import java.util.HashMap;
import java.util.Map;

/**
 * What is hard to walk: short calls of every kind, so that many samples are in a prologue, an epilogue or a stub, and
 * nothing is a long loop in one frame. Arguments: seconds to live, and "virtual" to run in a virtual thread.
 */
final class Stress {
    interface Operation {
        int apply(int x);
    }

    static final class Plus implements Operation {
        public int apply(int x) {
            return x + 1;
        }
    }

    static final class Times implements Operation {
        public int apply(int x) {
            return x * 3;
        }
    }

    static final class Or implements Operation {
        public int apply(int x) {
            return x ^ 5;
        }
    }

    static final class Minus implements Operation {
        public int apply(int x) {
            return x - 7;
        }
    }

    private static final Operation[] OPERATIONS = {new Plus(), new Times(), new Or(), new Minus()};
    private static final byte[] FROM = new byte[8192];
    private static final byte[] TO = new byte[8192];

    static int recursion(int n) {
        return n < 2 ? n : recursion(n - 1) + recursion(n - 2);
    }

    static int interfaces(int n) {
        int sum = 0;
        for (int i = 0; i < n; i++) sum += OPERATIONS[(i ^ sum) & 3].apply(i);
        return sum;
    }

    static int copies(int n) {
        for (int i = 0; i < n; i++) System.arraycopy(FROM, i & 63, TO, 0, 100 + (i & 4095));
        return TO[5];
    }

    static int exceptions(int n) {
        int sum = 0;
        for (int i = 0; i < n; i++) {
            try {
                sum += thrower(i);
            } catch (IllegalStateException expected) {
                sum++;
            }
        }
        return sum;
    }

    static int thrower(int i) {
        if ((i & 3) == 0) throw new IllegalStateException("x");
        return 1;
    }

    static long natives(int n) {
        long sum = 0;
        for (int i = 0; i < n; i++) {
            sum += Runtime.getRuntime().freeMemory() + System.identityHashCode(OPERATIONS[i & 3]);
            sum += Thread.currentThread().getStackTrace().length;
        }
        return sum;
    }

    static int texts(int n) {
        int sum = 0;
        for (int i = 0; i < n; i++) sum += ("a" + i + "b").hashCode() + String.format("%d-%s", i, "q").length();
        return sum;
    }

    static int lambdas(int n) {
        Map<Integer, Integer> map = new HashMap<>();
        for (int i = 0; i < n; i++) map.merge(i & 1023, 1, Integer::sum);
        return map.size();
    }

    static synchronized int locked(int x) {
        return x + 1;
    }

    static int locks(int n) {
        int sum = 0;
        for (int i = 0; i < n; i++) sum = locked(sum);
        return sum;
    }

    static int many(
            double a, double b, double c, double d, double e, double f, double g, double h, double i, double j,
            long k, long l, long m, long n, long o, long p, long q) {
        return (int) (a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p + q);
    }

    static int arguments(int n) {
        int sum = 0;
        for (int i = 0; i < n; i++) sum += many(i, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, i);
        return sum;
    }

    static long all(int seed) {
        long sum = recursion(20 + seed % 3) + interfaces(20000) + copies(300) + exceptions(300) + natives(30);
        return sum + texts(60) + lambdas(4000) + locks(9000) + arguments(9000);
    }

    static long deep(int depth, int seed) throws InterruptedException {
        if (depth > 0) return deep(depth - 1, seed) + 1;
        if ((seed & 7) == 0) Thread.sleep(1);
        return all(seed);
    }

    static void run(long end, int depth) {
        long sum = 0;
        try {
            for (int seed = 0; System.nanoTime() < end; seed++) sum += depth > 0 ? deep(depth, seed) : all(seed);
        } catch (InterruptedException interrupted) {
            return;
        }
        System.out.println(sum);
    }

    public static void main(String[] arguments) throws Exception {
        long end = System.nanoTime() + Long.parseLong(arguments[0]) * 1_000_000_000L;
        if (arguments.length == 1) {
            run(end, 0);
            return;
        }
        // By name: the compiler of an older JDK knows no virtual threads.
        Object builder = Class.forName("java.lang.Thread").getMethod("ofVirtual").invoke(null);
        Runnable task = () -> run(end, 12);
        Class<?> type = Class.forName("java.lang.Thread$Builder");
        ((Thread) type.getMethod("start", Runnable.class).invoke(builder, task)).join();
    }
}
