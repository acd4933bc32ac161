/* Shapes, vectors, and tables of numbers: what the kernels are written in. */
#ifndef BNLASAGNE_VECTORS_H
#define BNLASAGNE_VECTORS_H

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

/* NaN and infinity have to be seen, sums must not be rearranged, and linking
 * with -ffast-math switches denormals off for the whole process. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) \
    || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "bnlasagne cannot be compiled with -ffast-math"
#endif

/* Tells the compiler that the arrays of a loop do not overlap. */
#ifdef __clang__
#define BNLASAGNE_INDEPENDENT \
    _Pragma("clang loop vectorize(assume_safety)")
#else
#define BNLASAGNE_INDEPENDENT _Pragma("GCC ivdep")
#endif

#ifdef _OPENMP
#define BNLASAGNE_PRAGMA(text) _Pragma(#text)
#else
#define BNLASAGNE_PRAGMA(text)
#endif

namespace bnlasagne {

typedef std::ptrdiff_t Index;

/* An array seen as [M][C][S]: C channels, each with M rows of S neighbours. */
struct Shape {
    Index M, C, S;
    Index columns() const { return C * S; }
    Index size() const { return M * C * S; }
    /* Values per channel. */
    Index count() const { return M * S; }
};

/* Bytes of a vector: as many as the registers have that the code is compiled
 * for. Compilers split longer vectors, but compare and choose their lanes one
 * by one. SSE2, NEON and most others have 16; and without any, the compiler
 * splits these. */
#if defined(__AVX512F__)
const Index REGISTER = 64;
#elif defined(__AVX__)
const Index REGISTER = 32;
#else
const Index REGISTER = 16;
#endif

template <typename T> struct Vector {
    typedef T type __attribute__((vector_size(REGISTER)));
    static const Index size = REGISTER / sizeof(T);
    /* The numbers of a vector's lanes. */
    typedef typename std::conditional<
        sizeof(T) == 4, std::int32_t, std::int64_t>::type Lane;
    typedef Lane Lanes __attribute__((vector_size(REGISTER)));
    static Lanes lanes() {
        Lanes numbers;
        for (Index i = 0; i < size; ++i) numbers[i] = static_cast<Lane>(i);
        return numbers;
    }
};

/* From and to any address; each is one instruction. */
template <typename V, typename T> inline V load(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof(V));
    return value;
}

template <typename V, typename T> inline void store(T* to, V value) {
    std::memcpy(to, &value, sizeof(V));
}

/* The vector at a place, with zero beyond its n-th lane. */
template <typename V, typename T> inline V load_some(const T* from, Index n) {
    if (n == Vector<T>::size) return load<V>(from);
    V vector = V();
    std::memcpy(&vector, from, n * sizeof(T));
    return vector;
}

/* A vector with zero outside of lanes `begin` to, and without, `end`. */
template <typename T, typename V> inline V cut(V vector, Index begin, Index end) {
    typedef typename Vector<T>::Lane Lane;
    const typename Vector<T>::Lanes lanes = Vector<T>::lanes();
    return (lanes >= static_cast<Lane>(begin)) & (lanes < static_cast<Lane>(end))
        ? vector : V();
}

template <typename V, typename T>
inline void store_some(T* to, Index n, V vector) {
    if (n == Vector<T>::size)
        store(to, vector);
    else
        std::memcpy(to, &vector, n * sizeof(T));
}

/* Values from a place to the next one where an aligned vector may start. */
template <typename T> inline Index to_aligned(const T* place) {
    const std::size_t over =
        reinterpret_cast<std::size_t>(place) % REGISTER / sizeof(T);
    return over ? Vector<T>::size - over : 0;
}

/* ---- Exponents ---------------------------------------------------------- */

/* The bits of a number in double precision: sign, 11 bits of exponent. */
const int EXPONENT_AT = 52, EXPONENT_OF_ONE = 1023, EXPONENT_OF_NAN = 2047;

/* Two to this power, which is within the range of T. */
template <typename T> inline double power_of_two(std::int64_t power) {
    const std::int64_t limit = std::numeric_limits<T>::max_exponent - 2;
    power = power < -limit ? -limit : power > limit ? limit : power;
    const std::int64_t bits = (power + EXPONENT_OF_ONE) << EXPONENT_AT;
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The inverse of a power of two, without a division. */
inline double inverse_of_power(double power) {
    std::int64_t bits;
    std::memcpy(&bits, &power, sizeof(bits));
    bits = (std::int64_t(2 * EXPONENT_OF_ONE) << EXPONENT_AT) - bits;
    std::memcpy(&power, &bits, sizeof(bits));
    return power;
}

inline std::int64_t biased_exponent(double value) {
    std::int64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return (bits >> EXPONENT_AT) & EXPONENT_OF_NAN;
}

/* The power of two next to a number, below it; 0 of numbers without one. */
inline std::int64_t exponent(double value) {
    const std::int64_t biased = biased_exponent(value);
    return biased == 0 || biased == EXPONENT_OF_NAN
        ? 0 : biased - EXPONENT_OF_ONE;
}

/* ---- Sums and memory ---------------------------------------------------- */

/* The sum of a vector's lanes. */
template <typename T, typename V> inline double total(V vector) {
    const Index size = Vector<T>::size;
    double lanes[size];
    for (Index i = 0; i < size; ++i) lanes[i] = vector[i];
    for (Index half = size / 2; half > 0; half /= 2)
        for (Index i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

/* Asks for a place's cache line ahead of time, into the second-level cache:
 * the first has no room for what is needed so much later. */
inline void fetch(const void* place) { __builtin_prefetch(place, 0, 2); }

/* Bytes of a cache line. */
const Index LINE = 64;

/* Some arrays of one length, not initialized. Each starts at the start of a
 * cache line, so that vectors in it do not straddle two; and an odd number of
 * lines after the one before, so that the same place in all of them is not in
 * the same set of the first-level cache. */
template <typename T> class Table {
    static const Index line_ = LINE / sizeof(T);
    std::unique_ptr<T[]> memory_;
    T* data_;
    Index stride_;

  public:
    Table(Index arrays, Index length)
        : stride_(((length + line_ - 1) / line_ | 1) * line_) {
        memory_.reset(new T[arrays * stride_ + line_]);
        std::size_t over =
            reinterpret_cast<std::size_t>(memory_.get()) % LINE / sizeof(T);
        data_ = memory_.get() + (over ? line_ - over : 0);
    }
    T* operator[](Index array) const { return data_ + array * stride_; }
};

/* Rows that are written at once, so that their cache lines are waited for
 * together: as many as do not evict each other's lines, which may all be of the
 * same set, from a first-level cache with eight of each. */
const Index NORMALIZED_ROWS = 4, GRADIENT_ROWS = 2;
/* Rows whose sums are taken at once. */
const Index SUMMED_ROWS = 4;
/* The most of these. */
const Index MOST_ROWS = 4;

/* What a thread needs to work on a unit: for each of its columns, sums and
 * constants; and results in double. */
template <typename T> struct Workspace {
    Table<T> sums, constants;
    Table<double> results;
    explicit Workspace(Index columns)
        : sums(3, columns), constants(9, columns), results(2, columns) {}
};

/* ---- Arithmetic of the values ------------------------------------------ */

template <bool RECTIFY, typename V> inline V rectified(V y) {
    // A NaN is not below zero and stays.
    return RECTIFY ? (y < V() ? V() : y) : y;
}

template <bool RECTIFY, typename V> inline V reaching(V dy, V y) {
    return RECTIFY ? (y > V() ? dy : V()) : dy;
}

/* y = (x * unit - centre) * scale + shift. The unit is a power of two, so that
 * it rounds nothing. It is 1 unless values are so large or small that something
 * in between would overflow or underflow, though the result does not. Where
 * loading it would take time, UNITS tells whether any is not 1.
 *
 * The centre is the mean rounded to the array's type, so that the subtraction
 * does not round where x is near the mean; what rounding took off the mean is
 * in the shift.
 *
 * K is a single value, or a vector of those of several channels. */
template <typename K, bool UNITS = true> struct Affine {
    K unit, centre, scale, shift;
    template <typename V> V deviation(V x) const {
        return (UNITS ? x * unit : x) - centre;
    }
    template <typename V> V operator()(V x) const {
        return deviation(x) * scale + shift;
    }
};

/* dx = a * (g * unit - mean) + b * deviation + c, with g the gradient that
 * reaches the normalized value, a unit of its own, and c what rounding took
 * off the others. */
template <typename K, bool UNITS = true> struct Gradient {
    Affine<K, UNITS> affine;
    K unit, mean, a, b, c;
    template <bool RECTIFY, typename V> V operator()(V x, V dy) const {
        V g = reaching<RECTIFY>(dy, affine(x));
        return a * ((UNITS ? g * unit : g) - mean) + b * affine.deviation(x) + c;
    }
};

}  // namespace bnlasagne

#endif
