/* The memory traffic of batch normalization and nothing else: each pass over
 * an array reads and writes what it must, with one multiplication and one
 * addition per value.
 */
#ifdef _OPENMP
#include <omp.h>
#endif

/* Bytes of the registers: longer vectors are taken apart. */
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

typedef float Vector __attribute__((
    vector_size(BYTES), aligned(__alignof__(float)), may_alias));
const long WIDTH = BYTES / sizeof(float);
/* Vectors per turn of a loop, so that additions do not wait for each other. */
const long TURN = 4;

static inline Vector load(const float* from) {
    return *reinterpret_cast<const Vector*>(from);
}

static inline void store(float* to, Vector value) {
    *reinterpret_cast<Vector*>(to) = value;
}

/* Calls pass(from, to) in each thread, for its part of the array. What is
 * left of the last turn, a few values, is not worth its code. */
template <typename Pass> static void shared_out(long size, Pass pass) {
    const long turns = size / (WIDTH * TURN);
#pragma omp parallel
    {
        long thread = 0, threads = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        threads = omp_get_num_threads();
#endif
        pass(turns * thread / threads * WIDTH * TURN,
             turns * (thread + 1) / threads * WIDTH * TURN);
    }
}

/* Where sums go, so that the compiler cannot leave them out. */
static volatile float sink;

static void keep(const Vector* sums) {
    Vector sum = sums[0] + sums[1] + sums[2] + sums[3];
    sink = sum[0];
}

static void read(const float* x, long size) {
    shared_out(size, [=](long from, long to) {
        Vector sums[TURN] = {};
        for (long i = from; i < to; i += WIDTH * TURN)
            for (long j = 0; j < TURN; ++j)
                sums[j] += load(x + i + j * WIDTH);
        keep(sums);
    });
}

static void read(const float* x, const float* dy, long size) {
    shared_out(size, [=](long from, long to) {
        Vector sums[TURN] = {};
        for (long i = from; i < to; i += WIDTH * TURN)
            for (long j = 0; j < TURN; ++j)
                sums[j] += load(x + i + j * WIDTH) * load(dy + i + j * WIDTH);
        keep(sums);
    });
}

static void write(const float* x, float* y, long size) {
    shared_out(size, [=](long from, long to) {
        for (long i = from; i < to; i += WIDTH * TURN)
            for (long j = 0; j < TURN; ++j)
                store(y + i + j * WIDTH, load(x + i + j * WIDTH) * 2.f + 1.f);
    });
}

static void write(const float* x, const float* dy, float* dx, long size) {
    shared_out(size, [=](long from, long to) {
        for (long i = from; i < to; i += WIDTH * TURN)
            for (long j = 0; j < TURN; ++j)
                store(dx + i + j * WIDTH, load(x + i + j * WIDTH) * 2.f
                                          + load(dy + i + j * WIDTH));
    });
}

extern "C" {

void inference(const float* x, float* y, long size) {
    write(x, y, size);
}

void training(const float* x, const float* dy, float* y, float* dx,
              long size) {
    read(x, size);
    write(x, y, size);
    read(x, dy, size);
    write(x, dy, dx, size);
}

}
