/* Batch normalization of arrays seen as [M][C][S]: C channels, each with M rows
 * of S neighbouring values.
 *
 * Memory traffic is all that counts, so each pass does as much as it can with
 * what it has read, and walks the array in the direction that meets what the
 * pass before left in the cache.
 *
 * - Where S is large (convolutions), work goes along the rows of a channel;
 *   where it is small (dense layers, channels last), across the C * S columns,
 *   four rows at a time.
 * - A unit of work is a channel, or a tile of columns: small enough to stay in
 *   the cache from its first pass to its second. Where there are too few units
 *   to share out, their rows are cut into pieces, each pass in turn.
 * - How work is cut depends on the shape alone, and what the pieces give is
 *   merged in a fixed order: the bits do not depend on the number of threads.
 * - Sums are taken in the array's own type over short blocks of deviations
 *   from a value near the mean, and merged in double (Chan et al., 1979).
 *
 * Never compile this with -ffast-math: it switches denormals off for the whole
 * process, and lets NaN through.
 */
#ifndef BNLASAGNE_KERNELS_H
#define BNLASAGNE_KERNELS_H

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#ifdef _OPENMP
#define BNLASAGNE_PRAGMA(text) _Pragma(#text)
#else
#define BNLASAGNE_PRAGMA(text)
#endif

namespace bnlasagne {

typedef std::ptrdiff_t Index;

/* Values per block, and rows per block of columns, of single-type sums. */
const Index BLOCK = 4096;
const Index BLOCK_ROWS = 256;
/* Values that are walked forwards where all is walked backwards. */
const Index CHUNK = 8192;
/* From this S on, along the rows. */
const Index LONG_ROW = 256;
/* Columns, up to which they are few. */
const Index NARROW = 256;
/* Values, from which on threads are worth their start. */
const Index PARALLEL = 32768;
/* Units, from which on they are shared out whole. */
const Index ENOUGH_UNITS = 4;
/* Bytes of a tile of columns, and of a piece of rows. */
const Index TILE = 1048576;
const Index PIECE = 262144;

struct Shape {
    Index M, C, S;
    Index columns() const { return C * S; }
    Index size() const { return M * C * S; }
    /* Values per channel. */
    Index count() const { return M * S; }
};

/* GCC splits the vectors where the machine has only shorter ones. */
template <typename T> struct Vector {
    typedef T type __attribute__((vector_size(64)));
    static const Index size = 64 / sizeof(T);
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

template <typename T, typename V> inline double total(V vector) {
    T lanes[sizeof(V) / sizeof(T)];
    std::memcpy(lanes, &vector, sizeof(V));
    double sum = 0;
    for (std::size_t i = 0; i < sizeof(V) / sizeof(T); ++i) sum += lanes[i];
    return sum;
}

/* ---- Constants of a channel ------------------------------------------- */

struct Moments {
    double count, mean, m2;
    Moments() : count(0), mean(0), m2(0) {}
    Moments(double count, double mean, double m2)
        : count(count), mean(mean), m2(m2) {}
    void merge(const Moments& other) {
        if (other.count == 0) return;
        double joint = count + other.count, delta = other.mean - mean;
        mean += delta * (other.count / joint);
        m2 += other.m2 + delta * delta * (count * (other.count / joint));
        count = joint;
    }
};

/* y = (x - centre) * scale + shift. The centre is the mean rounded to the
 * array's type, so that the subtraction does not round where x is near the
 * mean; what rounding took off the mean is in the shift. */
template <typename T> struct Affine {
    T centre, scale, shift;
    Affine() {}
    Affine(double mean, double factor, double beta)
        : centre(static_cast<T>(mean)), scale(static_cast<T>(factor)) {
        double rest = mean - static_cast<double>(centre);
        // An infinite mean leaves no number as the rest.
        shift = static_cast<T>(beta - rest * factor);
    }
    template <typename V> V operator()(V x) const {
        return (x - centre) * scale + shift;
    }
};

/* dx = a * (g - mean) + b * (x - centre) + c, with g the gradient that reaches
 * the normalized value, and c what rounding took off the others. */
template <typename T> struct Gradient {
    Affine<T> affine;
    T mean, a, b, c;
};

template <bool RECTIFY, typename V> inline V rectified(V y) {
    // A NaN is not below zero and stays.
    return RECTIFY ? (y < V() ? V() : y) : y;
}

template <bool RECTIFY, typename V> inline V reaching(V dy, V y) {
    return RECTIFY ? (y > V() ? dy : V()) : dy;
}

/* What the forward pass tells the backward pass, for each channel. */
struct Statistics {
    double *mean, *std, *inverse;
    Statistics(double* memory, Index C)
        : mean(memory), std(memory + C), inverse(memory + 2 * C) {}
};

/* ---- Along the rows of a channel -------------------------------------- */

/* Calls f(offset, n) for runs of at most BLOCK neighbours that make up the
 * values number begin to end of channel c. */
template <bool BACKWARDS, typename F>
inline void each_run(Shape shape, Index c, Index begin, Index end,
                     F f) {
    if (begin >= end) return;
    Index first = begin / shape.S, last = (end - 1) / shape.S;
    for (Index i = first; i <= last; ++i) {
        Index m = BACKWARDS ? last - (i - first) : i;
        Index from = std::max(begin - m * shape.S, Index(0));
        Index to = std::min(end - m * shape.S, shape.S);
        Index row = (m * shape.C + c) * shape.S;
        Index runs = (to - from + BLOCK - 1) / BLOCK;
        for (Index r = 0; r < runs; ++r) {
            Index at = from + BLOCK * (BACKWARDS ? runs - 1 - r : r);
            f(row + at, std::min(BLOCK, to - at));
        }
    }
}

/* Sums of two terms, over vectors that follow each other. */
template <typename T> struct Sums {
    typedef typename Vector<T>::type V;
    V first[4], second[4];
    Index count;
    Sums() { clear(); }
    void clear() {
        for (int i = 0; i < 4; ++i) first[i] = second[i] = V();
        count = 0;
    }
    double total_first() const {
        return total<T>((first[0] + first[1]) + (first[2] + first[3]));
    }
    double total_second() const {
        return total<T>((second[0] + second[1]) + (second[2] + second[3]));
    }
};

template <typename T, typename F>
inline void sum_run(Sums<T>& sums, Index n, F terms) {
    const Index size = Vector<T>::size;
    Sums<T> local = sums;  // in registers
    Index i = 0;
    for (; i + 4 * size <= n; i += 4 * size)
        for (int k = 0; k < 4; ++k)
            terms(i + k * size, size, local.first[k], local.second[k]);
    for (; i < n; i += size)
        terms(i, std::min(size, n - i), local.first[0], local.second[0]);
    local.count += n;
    sums = local;
}

/* The vector at a place, filled up beyond its n-th lane. */
template <typename V, typename T>
inline V load_some(const T* from, Index n, T fill) {
    if (n == Vector<T>::size) return load<V>(from);
    V vector = V() + fill;
    std::memcpy(&vector, from, n * sizeof(T));
    return vector;
}

template <typename V, typename T>
inline void store_some(T* to, Index n, V vector) {
    if (n == Vector<T>::size)
        store(to, vector);
    else
        std::memcpy(to, &vector, n * sizeof(T));
}

template <typename T> struct AddValue {
    typedef typename Vector<T>::type V;
    const T* x;
    void operator()(Index i, Index n, V& first, V&) const {
        first += load_some<V>(x + i, n, T(0));
    }
};

template <typename T> struct AddDeviation {
    typedef typename Vector<T>::type V;
    const T* x;
    T near;
    void operator()(Index i, Index n, V& first, V& second) const {
        V deviation = load_some<V>(x + i, n, near) - near;
        first += deviation;
        second += deviation * deviation;
    }
};

template <typename T, bool RECTIFY> struct AddGradient {
    typedef typename Vector<T>::type V;
    const T *x, *dy;
    Affine<T> affine;
    void operator()(Index i, Index n, V& first, V& second) const {
        V value = load_some<V>(x + i, n, affine.centre);
        V g = reaching<RECTIFY>(load_some<V>(dy + i, n, T(0)), affine(value));
        first += g;
        second += g * (value - affine.centre);
    }
};

template <typename T>
Moments block_moments(const Sums<T>& sums, T near) {
    double n = sums.count, sum = sums.total_first();
    double m2 = sums.total_second() - sum * (sum / n);
    return Moments(n, near + sum / n, m2 < 0 ? 0 : m2);
}

/* Slow, but no float overflows. */
template <typename T>
Moments wide_moments(const T* x, Shape shape, Index c, Index begin,
                     Index end) {
    double sum = 0, m2 = 0, n = static_cast<double>(end - begin);
    each_run<false>(shape, c, begin, end, [&](Index at, Index k) {
        for (Index i = 0; i < k; ++i) sum += x[at + i];
    });
    double mean = sum / n;
    each_run<true>(shape, c, begin, end, [&](Index at, Index k) {
        for (Index i = 0; i < k; ++i) m2 += (x[at + i] - mean)
                                            * (x[at + i] - mean);
    });
    return Moments(n, mean, m2);
}

template <typename T>
Moments row_moments(const T* x, Shape shape, Index c, Index begin,
                    Index end) {
    Sums<T> sums;
    // An outlier at the start must not be what all is compared with.
    each_run<false>(shape, c, begin, std::min(end, begin + BLOCK),
                    [&](Index at, Index n) {
        sum_run(sums, n, AddValue<T>{x + at});
    });
    T near = static_cast<T>(sums.total_first() / sums.count);
    Moments moments;
    sums.clear();
    each_run<false>(shape, c, begin, end, [&](Index at, Index n) {
        sum_run(sums, n, AddDeviation<T>{x + at, near});
        if (sums.count >= BLOCK) {
            moments.merge(block_moments(sums, near));
            near = static_cast<T>(moments.mean);
            sums.clear();
        }
    });
    if (sums.count) moments.merge(block_moments(sums, near));
    if (!std::isfinite(moments.m2))
        return wide_moments(x, shape, c, begin, end);
    return moments;
}

template <typename T, bool RECTIFY>
void row_normalize(const T* x, T* y, Shape shape, Index c, Index begin,
                   Index end, Affine<T> affine) {
    typedef typename Vector<T>::type V;
    const Index size = Vector<T>::size;
    each_run<true>(shape, c, begin, end, [&](Index at, Index n) {
        const T* from = x + at;
        T* to = y + at;
        Index i = 0;
        for (; i + size <= n; i += size)
            store(to + i, rectified<RECTIFY>(affine(load<V>(from + i))));
        if (i < n)
            store_some(to + i, n - i, rectified<RECTIFY>(
                affine(load_some<V>(from + i, n - i, T(0)))));
    });
}

template <typename T, bool RECTIFY>
void row_gradient_sums(const T* x, const T* dy, Shape shape, Index c,
                       Index begin, Index end, Affine<T> affine,
                       double* sum, double* product) {
    Sums<T> sums;
    *sum = *product = 0;
    auto flush = [&]() {
        *sum += sums.total_first();
        *product += sums.total_second();
        sums.clear();
    };
    each_run<false>(shape, c, begin, end, [&](Index at, Index n) {
        sum_run(sums, n, AddGradient<T, RECTIFY>{x + at, dy + at, affine});
        if (sums.count >= BLOCK) flush();
    });
    flush();
}

template <typename T, bool RECTIFY>
void row_gradient(const T* x, const T* dy, T* dx, Shape shape, Index c,
                  Index begin, Index end, Gradient<T> gradient) {
    typedef typename Vector<T>::type V;
    const Index size = Vector<T>::size;
    const Gradient<T> k = gradient;
    auto gradient_at = [&](Index at, Index n) {
        V value = load_some<V>(x + at, n, T(0));
        V g = reaching<RECTIFY>(load_some<V>(dy + at, n, T(0)),
                                k.affine(value));
        V change = k.a * (g - k.mean) + k.b * (value - k.affine.centre) + k.c;
        store_some(dx + at, n, change);
    };
    each_run<true>(shape, c, begin, end, [&](Index at, Index n) {
        Index i = 0;
        for (; i + size <= n; i += size) gradient_at(at + i, size);
        if (i < n) gradient_at(at + i, n - i);
    });
}

/* ---- Across columns --------------------------------------------------- */

/* Calls f(V(), j) for each vector, or single value, of a number of columns. */
template <typename T, typename F> inline void each_column(Index n, F f) {
    typedef typename Vector<T>::type V;
    Index j = 0;
    for (; j + Vector<T>::size <= n; j += Vector<T>::size) f(V(), j);
    for (; j < n; ++j) f(T(), j);
}

/* Calls f(row, rows) for groups of some rows, a constant that the compiler can
 * unroll loops by, and for the less that are left. */
template <int ROWS, typename F>
inline void each_group(Index begin, Index end, F f) {
    typedef std::integral_constant<Index, ROWS> Rows;
    Index m = begin;
    for (; m + ROWS <= end; m += ROWS) f(m, Rows());
    if (m < end) f(m, end - m);
}

/* The same, from the last chunk of rows to the first; forwards within, as
 * processors fetch ahead best that way. */
template <int ROWS, typename F>
inline void each_group_backwards(Index begin, Index end, Index width, F f) {
    const Index chunk = std::max(CHUNK / width / ROWS * ROWS, Index(ROWS));
    for (Index m = (end - begin - 1) / chunk * chunk; m >= 0; m -= chunk)
        each_group<ROWS>(begin + m, std::min(begin + m + chunk, end), f);
}

/* A tile: columns from `column` on, of all or some of the rows. */
struct Tile {
    Index column, width, begin, end;
};

/* Adds two terms for each value of a tile to sums for each of its columns. */
template <typename T, typename F>
inline void sum_columns(Tile tile, Index begin, Index end, T* first,
                        T* second, F terms) {
    each_group<4>(begin, end, [&](Index m, auto rows) {
        each_column<T>(tile.width, [&](auto zero, Index j) {
            typedef decltype(zero) V;
            V one = load<V>(first + j), two = load<V>(second + j);
            for (Index r = 0; r < rows; ++r) terms(m + r, j, one, two);
            store(first + j, one);
            store(second + j, two);
        });
    });
}

/* Calls f(row, rows) for all rows of a tile, in the best way to write them:
 * where few columns are all there is, straight on. */
template <bool BACKWARDS, typename F>
inline void write_rows(Tile tile, Index stride, F f) {
    const bool straight = tile.width == stride && tile.width <= NARROW;
    if (BACKWARDS && straight)
        each_group_backwards<1>(tile.begin, tile.end, tile.width, f);
    else if (BACKWARDS)
        each_group_backwards<4>(tile.begin, tile.end, tile.width, f);
    else if (straight)
        each_group<1>(tile.begin, tile.end, f);
    else
        each_group<4>(tile.begin, tile.end, f);
}

/* Memory that starts at the start of a cache line, so that vectors in it do not
 * straddle two. */
template <typename T> class Lines {
    std::vector<T> memory_;
    T* data_;

  public:
    explicit Lines(Index size) : memory_(size + Vector<T>::size) {
        std::size_t over =
            reinterpret_cast<std::size_t>(memory_.data()) % 64 / sizeof(T);
        data_ = memory_.data() + (over ? Vector<T>::size - over : 0);
    }
    T* data() const { return data_; }
};

/* Memory that a thread needs for the columns of a tile. */
template <typename T> struct Columns {
    Lines<T> near, first, second, values;
    std::vector<double> mean, m2;
    Index width, padded;
    explicit Columns(Index width)
        : near(width), first(width), second(width),
          values(7 * (width + Vector<T>::size)), mean(width), m2(width),
          width(width),
          padded((width + Vector<T>::size - 1) / Vector<T>::size
                 * Vector<T>::size) {}
    T* constant(int k) { return values.data() + k * padded; }
    void clear_sums() {
        std::fill(first.data(), first.data() + width, T(0));
        std::fill(second.data(), second.data() + width, T(0));
    }
};

template <typename T>
void column_moments(const T* x, Shape shape, Tile tile,
                    Columns<T>& columns) {
    const Index stride = shape.columns(), width = tile.width;
    const T* base = x + tile.column;
    T *near = columns.near.data(), *first = columns.first.data();
    T* second = columns.second.data();
    double *mean = columns.mean.data(), *m2 = columns.m2.data();
    Index rows = std::min(BLOCK_ROWS, tile.end - tile.begin);
    columns.clear_sums();
    sum_columns(tile, tile.begin, tile.begin + rows, first, second,
                [=](Index m, Index j, auto& one, auto&) {
        typedef typename std::decay<decltype(one)>::type V;
        one += load<V>(base + m * stride + j);
    });
    for (Index j = 0; j < width; ++j) {
        near[j] = first[j] / static_cast<T>(rows);
        mean[j] = near[j];
        m2[j] = 0;
    }
    double done = 0;
    for (Index begin = tile.begin; begin < tile.end; begin += BLOCK_ROWS) {
        Index end = std::min(begin + BLOCK_ROWS, tile.end);
        double n = static_cast<double>(end - begin);
        columns.clear_sums();
        sum_columns(tile, begin, end, first, second,
                    [=](Index m, Index j, auto& one, auto& two) {
            typedef typename std::decay<decltype(one)>::type V;
            V deviation = load<V>(base + m * stride + j) - load<V>(near + j);
            one += deviation;
            two += deviation * deviation;
        });
        double inverse = 1 / n, part = n / (done + n), both = done * part;
        for (Index j = 0; j < width; ++j) {
            double sum = first[j];
            double own = second[j] - sum * sum * inverse;
            double delta = near[j] + sum * inverse - mean[j];
            m2[j] += (own < 0 ? 0 : own) + delta * delta * both;
            mean[j] += delta * part;
            near[j] = static_cast<T>(mean[j]);
        }
        done += n;
    }
}

template <typename T, bool RECTIFY, bool BACKWARDS>
void column_normalize(const T* x, T* y, Shape shape, Tile tile,
                      Columns<T>& columns) {
    const Index stride = shape.columns();
    const T *centre = columns.constant(0), *scale = columns.constant(1);
    const T* shift = columns.constant(2);
    auto group = [&](Index m, auto rows) {
        const T* from = x + m * stride + tile.column;
        T* to = y + m * stride + tile.column;
        each_column<T>(tile.width, [&](auto zero, Index j) {
            typedef decltype(zero) V;
            V c = load<V>(centre + j), f = load<V>(scale + j);
            V s = load<V>(shift + j);
            for (Index r = 0; r < rows; ++r)
                store(to + r * stride + j, rectified<RECTIFY>(
                    V((load<V>(from + r * stride + j) - c) * f + s)));
        });
    };
    write_rows<BACKWARDS>(tile, stride, group);
}

template <typename T, bool RECTIFY>
void column_gradient_sums(const T* x, const T* dy, Shape shape,
                          Tile tile, Columns<T>& columns) {
    const Index stride = shape.columns(), width = tile.width;
    const T *from = x + tile.column, *grad = dy + tile.column;
    const T *centre = columns.constant(0), *scale = columns.constant(1);
    const T* shift = columns.constant(2);
    T *first = columns.first.data(), *second = columns.second.data();
    double *sum = columns.mean.data(), *product = columns.m2.data();
    std::fill(sum, sum + width, 0.0);
    std::fill(product, product + width, 0.0);
    for (Index begin = tile.begin; begin < tile.end; begin += BLOCK_ROWS) {
        Index end = std::min(begin + BLOCK_ROWS, tile.end);
        columns.clear_sums();
        sum_columns(tile, begin, end, first, second,
                    [=](Index m, Index j, auto& one, auto& two) {
            typedef typename std::decay<decltype(one)>::type V;
            V deviation = load<V>(from + m * stride + j) - load<V>(centre + j);
            V g = reaching<RECTIFY>(
                load<V>(grad + m * stride + j),
                V(deviation * load<V>(scale + j) + load<V>(shift + j)));
            one += g;
            two += g * deviation;
        });
        for (Index j = 0; j < width; ++j) {
            sum[j] += first[j];
            product[j] += second[j];
        }
    }
}

template <typename T, bool RECTIFY>
void column_gradient(const T* x, const T* dy, T* dx, Shape shape,
                     Tile tile, Columns<T>& columns) {
    const Index stride = shape.columns();
    const T* constant[7];
    for (int k = 0; k < 7; ++k) constant[k] = columns.constant(k);
    write_rows<true>(tile, stride, [&](Index m, auto rows) {
        const Index at = m * stride + tile.column;
        each_column<T>(tile.width, [&](auto zero, Index j) {
            typedef decltype(zero) V;
            V k[7];
            for (int i = 0; i < 7; ++i) k[i] = load<V>(constant[i] + j);
            for (Index r = 0; r < rows; ++r) {
                Index here = at + r * stride + j;
                V deviation = load<V>(x + here) - k[0];
                V g = reaching<RECTIFY>(load<V>(dy + here),
                                        V(deviation * k[1] + k[2]));
                store(dx + here,
                      V(k[4] * (g - k[3]) + k[5] * deviation + k[6]));
            }
        });
    });
}

/* ---- Work and threads ------------------------------------------------- */

/* How the work is cut; a matter of the shape alone. */
struct Plan {
    bool along_rows, whole_units;
    Index channels;  // of a unit, which is one channel or a tile of columns
    Index width;     // columns of a unit
    Index units;
    Index length;    // of a piece: values along rows, or rows
    Index pieces;    // of each unit
    Plan(const Shape& shape, Index bytes) {
        along_rows = shape.S >= LONG_ROW;
        Index all = shape.columns();
        channels = 1;
        if (!along_rows) {
            Index wanted = TILE / std::max(shape.M * bytes, Index(1));
            wanted = std::min(wanted, std::max(all / 4, Index(64)));
            wanted = std::min(std::max(wanted, Index(64)), Index(1024));
            channels = std::max(wanted / std::max(shape.S, Index(1)),
                                Index(1));
        }
        units = (shape.C + channels - 1) / channels;
        whole_units = units >= ENOUGH_UNITS
                      || shape.size() * bytes <= 2 * PIECE;
        if (!whole_units && !along_rows) {
            channels = shape.C;
            units = 1;
        }
        // Along rows, no columns are worked on.
        width = along_rows ? 0 : channels * shape.S;
        Index total = along_rows ? shape.count() : shape.M;
        Index row = along_rows ? bytes : all * bytes;
        length = whole_units
            ? std::max(total, Index(1))
            : std::max(PIECE / row, along_rows ? BLOCK : BLOCK_ROWS);
        pieces = std::max((total + length - 1) / length, Index(1));
    }
    Index begin(Index piece) const { return piece * length; }
    Index end(Index piece, const Shape& shape) const {
        Index total = along_rows ? shape.count() : shape.M;
        return std::min(total, (piece + 1) * length);
    }
    Tile tile(Index unit, Index piece, const Shape& shape) const {
        Index column = unit * width;
        Tile made = {column, std::min(width, shape.columns() - column),
                     begin(piece), end(piece, shape)};
        return made;
    }
};

/* Runs a job's passes over all units and pieces. A job has
 *   Memory, what a thread needs, made from a number of columns;
 *   first(unit, piece, memory), which stores what it finds for the piece;
 *   join(channel), which merges the pieces in order;
 *   second(unit, piece, memory), which uses what was joined. */
template <typename Job> void run(Job& job, const Plan& plan, bool parallel) {
    (void)parallel;
    const Index C = job.shape.C;
    if (plan.whole_units) {
        BNLASAGNE_PRAGMA(omp parallel if (parallel))
        {
            typename Job::Memory memory(plan.width);
            BNLASAGNE_PRAGMA(omp for schedule(dynamic))
            for (Index unit = 0; unit < plan.units; ++unit) {
                job.first(unit, 0, memory);
                const Index first = unit * plan.channels;
                const Index end = std::min(first + plan.channels, C);
                for (Index c = first; c < end; ++c) job.join(c);
                job.second(unit, 0, memory);
            }
        }
        return;
    }
    const Index work = plan.units * plan.pieces;
    BNLASAGNE_PRAGMA(omp parallel if (parallel))
    {
        typename Job::Memory memory(plan.width);
        BNLASAGNE_PRAGMA(omp for schedule(static))
        for (Index i = 0; i < work; ++i)
            job.first(i / plan.pieces, i % plan.pieces, memory);
        BNLASAGNE_PRAGMA(omp for schedule(static))
        for (Index c = 0; c < C; ++c) job.join(c);
        BNLASAGNE_PRAGMA(omp for schedule(static))
        for (Index i = work - 1; i >= 0; --i)
            job.second(i / plan.pieces, i % plan.pieces, memory);
    }
}

template <typename T> struct Job {
    typedef Columns<T> Memory;
    Shape shape;
    Plan plan;
    Job(const Shape& shape) : shape(shape), plan(shape, sizeof(T)) {}
    Index channel(Index column) const { return column / shape.S; }
    bool parallel() const { return shape.size() >= PARALLEL; }
};

template <typename T, bool RECTIFY> struct Forward : Job<T> {
    using Job<T>::shape;
    using Job<T>::plan;
    const T *x, *gamma, *beta;
    double epsilon;
    T *y, *mean, *std;
    Statistics statistics;
    std::vector<Moments> moments;
    std::vector<Affine<T> > affine;

    Forward(const Shape& shape, const T* x, const T* gamma, const T* beta,
            double epsilon, T* y, T* mean, T* std, double* memory)
        : Job<T>(shape), x(x), gamma(gamma), beta(beta), epsilon(epsilon),
          y(y), mean(mean), std(std), statistics(memory, shape.C),
          moments(this->plan.pieces * shape.C), affine(shape.C) {}

    void first(Index unit, Index piece, Columns<T>& columns) {
        Moments* found = &moments[piece * shape.C];
        if (plan.along_rows) {
            found[unit] = row_moments(x, shape, unit, plan.begin(piece),
                                      plan.end(piece, shape));
            return;
        }
        Tile tile = plan.tile(unit, piece, shape);
        column_moments(x, shape, tile, columns);
        for (Index j = 0; j < tile.width; j += shape.S) {
            Index c = this->channel(tile.column + j);
            for (Index s = 0; s < shape.S; ++s)
                found[c].merge(Moments(
                    static_cast<double>(tile.end - tile.begin),
                    columns.mean[j + s], columns.m2[j + s]));
            if (!std::isfinite(found[c].m2))
                found[c] = wide_moments(x, shape, c, tile.begin * shape.S,
                                        tile.end * shape.S);
        }
    }

    void join(Index c) {
        Moments all = moments[c];
        for (Index piece = 1; piece < plan.pieces; ++piece)
            all.merge(moments[piece * shape.C + c]);
        double deviation = std::sqrt(all.m2 / all.count);
        if (all.count == 0)
            all.mean = deviation = std::numeric_limits<double>::quiet_NaN();
        double inverse = 1 / (deviation + epsilon);
        statistics.mean[c] = all.mean;
        statistics.std[c] = deviation;
        statistics.inverse[c] = inverse;
        mean[c] = static_cast<T>(all.mean);
        std[c] = static_cast<T>(deviation);
        affine[c] = Affine<T>(all.mean, gamma[c] * inverse, beta[c]);
    }

    void second(Index unit, Index piece, Columns<T>& columns) {
        if (plan.along_rows) {
            row_normalize<T, RECTIFY>(
                x, y, shape, unit, plan.begin(piece), plan.end(piece, shape),
                affine[unit]);
            return;
        }
        Tile tile = plan.tile(unit, piece, shape);
        for (Index j = 0; j < tile.width; ++j) {
            const Affine<T>& k = affine[this->channel(tile.column + j)];
            columns.constant(0)[j] = k.centre;
            columns.constant(1)[j] = k.scale;
            columns.constant(2)[j] = k.shift;
        }
        column_normalize<T, RECTIFY, true>(x, y, shape, tile, columns);
    }
};

template <typename T, bool RECTIFY> struct Backward : Job<T> {
    using Job<T>::shape;
    using Job<T>::plan;
    const T *x, *gamma, *beta, *dy;
    Statistics statistics;
    T *dx, *dgamma, *dbeta;
    std::vector<double> sums, products;
    std::vector<Gradient<T> > gradient;

    Backward(const Shape& shape, const T* x, const T* gamma, const T* beta,
             const T* dy, double* memory, T* dx, T* dgamma, T* dbeta)
        : Job<T>(shape), x(x), gamma(gamma), beta(beta), dy(dy),
          statistics(memory, shape.C), dx(dx), dgamma(dgamma), dbeta(dbeta),
          sums(this->plan.pieces * shape.C),
          products(this->plan.pieces * shape.C), gradient(shape.C) {
        for (Index c = 0; c < shape.C; ++c)
            gradient[c].affine = Affine<T>(
                statistics.mean[c], gamma[c] * statistics.inverse[c],
                beta[c]);
    }

    void fill(const Tile& tile, Columns<T>& columns) {
        for (Index j = 0; j < tile.width; ++j) {
            const Gradient<T>& k = gradient[this->channel(tile.column + j)];
            const T values[7] = {k.affine.centre, k.affine.scale,
                                 k.affine.shift, k.mean, k.a, k.b, k.c};
            for (int i = 0; i < 7; ++i) columns.constant(i)[j] = values[i];
        }
    }

    void first(Index unit, Index piece, Columns<T>& columns) {
        double* sum = &sums[piece * shape.C];
        double* product = &products[piece * shape.C];
        if (plan.along_rows) {
            row_gradient_sums<T, RECTIFY>(
                x, dy, shape, unit, plan.begin(piece), plan.end(piece, shape),
                gradient[unit].affine, sum + unit, product + unit);
            return;
        }
        Tile tile = plan.tile(unit, piece, shape);
        fill(tile, columns);
        column_gradient_sums<T, RECTIFY>(x, dy, shape, tile, columns);
        for (Index j = 0; j < tile.width; ++j) {
            Index c = this->channel(tile.column + j);
            sum[c] += columns.mean[j];
            product[c] += columns.m2[j];
        }
    }

    void join(Index c) {
        double sum = 0, product = 0;
        for (Index piece = 0; piece < plan.pieces; ++piece) {
            sum += sums[piece * shape.C + c];
            product += products[piece * shape.C + c];
        }
        Gradient<T>& k = gradient[c];
        const double count = static_cast<double>(shape.count());
        const double inverse = statistics.inverse[c], std = statistics.std[c];
        const double rest = statistics.mean[c]
                            - static_cast<double>(k.affine.centre);
        product -= rest * sum;
        // The standard deviation has no gradient where it is zero.
        const double a = gamma[c] * inverse;
        const double b = std == 0 || count == 0
            ? 0 : -a * inverse * product / (count * std);
        const double mean = count == 0 ? 0 : sum / count;
        k.mean = static_cast<T>(mean);
        k.a = static_cast<T>(a);
        k.b = static_cast<T>(b);
        k.c = static_cast<T>(
            -a * (mean - static_cast<double>(k.mean)) - b * rest);
        dgamma[c] = static_cast<T>(product * inverse);
        dbeta[c] = static_cast<T>(sum);
        if (count == 0) dgamma[c] = 0;
    }

    void second(Index unit, Index piece, Columns<T>& columns) {
        if (plan.along_rows) {
            row_gradient<T, RECTIFY>(
                x, dy, dx, shape, unit, plan.begin(piece),
                plan.end(piece, shape), gradient[unit]);
            return;
        }
        Tile tile = plan.tile(unit, piece, shape);
        fill(tile, columns);
        column_gradient<T, RECTIFY>(x, dy, dx, shape, tile, columns);
    }
};

/* ---- What the Ops call ------------------------------------------------- */

/* An empty S or C would have no columns to walk. */
inline bool is_empty(const Shape& shape) {
    return shape.C == 0 || shape.S == 0;
}

template <typename T, bool RECTIFY>
void forward(Shape shape, const T* x, const T* gamma, const T* beta,
             double epsilon, T* y, T* mean, T* std, double* statistics) {
    if (is_empty(shape)) shape.M = 0, shape.S = 1;
    Forward<T, RECTIFY> job(shape, x, gamma, beta, epsilon, y, mean, std,
                            statistics);
    run(job, job.plan, job.parallel());
}

template <typename T, bool RECTIFY>
void backward(Shape shape, const T* x, const T* gamma, const T* beta,
              const T* dy, double* statistics, T* dx, T* dgamma, T* dbeta) {
    if (is_empty(shape)) shape.M = 0, shape.S = 1;
    Backward<T, RECTIFY> job(shape, x, gamma, beta, dy, statistics, dx,
                             dgamma, dbeta);
    run(job, job.plan, job.parallel());
}

/* Normalizes by given statistics, in the order of the memory. */
template <typename T, bool RECTIFY>
void apply(const Shape& shape, const T* x, const T* mean, const T* std,
           const T* gamma, const T* beta, double epsilon, T* y) {
    typedef typename Vector<T>::type V;
    std::vector<Affine<T> > affine(shape.C);
    for (Index c = 0; c < shape.C; ++c)
        affine[c] = Affine<T>(mean[c], gamma[c] / (std[c] + epsilon),
                              beta[c]);
    const bool parallel = shape.size() >= PARALLEL;
    (void)parallel;
    if (shape.S >= Vector<T>::size) {
        const Index rows = shape.M * shape.C;
        BNLASAGNE_PRAGMA(omp parallel for schedule(static) if (parallel))
        for (Index row = 0; row < rows; ++row) {
            const Affine<T> k = affine[row % shape.C];
            const T* from = x + row * shape.S;
            T* to = y + row * shape.S;
            Index i = 0;
            for (; i + Vector<T>::size <= shape.S; i += Vector<T>::size)
                store(to + i, rectified<RECTIFY>(k(load<V>(from + i))));
            if (i < shape.S)
                store_some(to + i, shape.S - i, rectified<RECTIFY>(k(
                    load_some<V>(from + i, shape.S - i, T(0)))));
        }
        return;
    }
    const Index width = shape.columns();
    Columns<T> columns(width);
    for (Index j = 0; j < width; ++j) {
        columns.constant(0)[j] = affine[j / shape.S].centre;
        columns.constant(1)[j] = affine[j / shape.S].scale;
        columns.constant(2)[j] = affine[j / shape.S].shift;
    }
    const Index group = 32, groups = (shape.M + group - 1) / group;
    BNLASAGNE_PRAGMA(omp parallel for schedule(static) if (parallel))
    for (Index i = 0; i < groups; ++i) {
        Tile tile = {0, width, i * group,
                     std::min((i + 1) * group, shape.M)};
        column_normalize<T, RECTIFY, false>(x, y, shape, tile, columns);
    }
}

}  // namespace bnlasagne

#endif
