/* Work across columns, for arrays with short rows or none: all values of a row
 * of the array, of M rows and C * S columns, that lie next to each other. */
#ifndef BNLASAGNE_COLUMNS_H
#define BNLASAGNE_COLUMNS_H

#include <algorithm>
#include <type_traits>

#include "batches.h"
#include "vectors.h"

namespace bnlasagne {

/* Rows per block whose sums are taken in the array's own type. */
const Index BLOCK_ROWS = 256;
/* Rows whose mean the first block is compared with; see SAMPLE. */
const Index SAMPLE_ROWS = BLOCK_ROWS / SAMPLED;
/* Columns, up to which rows are written one by one, straight on. */
const Index NARROW = 256;

/* Of a sum of squares, what rounding may leave of it where values are equal. */
const double ROUNDED = 8 * std::numeric_limits<double>::epsilon();

/* A tile: columns from `column` on, of rows begin to, and without, end. */
struct Tile {
    Index column, width, begin, end;
};

/* Whether a new cache line is reached in column j, for which it is enough to be
 * fetched once. */
template <typename T> inline bool begins_line(Index j) {
    return REGISTER == LINE || j * sizeof(T) % LINE == 0;
}

/* Calls work.column<V>(group, at, j, n) for each vector, or single value, of a
 * group of n rows of a tile: `at` is where the group has column j. */
template <typename T, typename Rows, typename N, typename Work>
inline void each_column(Tile tile, Rows rows, Index m, N n,
                        const Work& work) {
    typedef typename Vector<T>::type V;
    const auto group = rows.group(m, n);
    const Index at = group.first() + tile.column;
    Index j = 0;
    for (; j + Vector<T>::size <= tile.width; j += Vector<T>::size)
        work.template column<V>(group, at + j, j, n);
    for (; j < tile.width; ++j)
        work.template column<T>(group, at + j, j, n);
}

/* The same for all groups of rows, with a constant that the compiler can unroll
 * loops by, and for the less that are left: what belongs to a column is loaded
 * once per group. */
template <typename T, Index ROWS, typename Rows, typename Work>
inline void each_group(Tile tile, Rows rows, const Work& work) {
    typedef std::integral_constant<Index, ROWS> N;
    Index m = tile.begin;
    for (; m + ROWS <= tile.end; m += ROWS)
        each_column<T>(tile, rows, m, N(), work);
    if (m < tile.end) each_column<T>(tile, rows, m, tile.end - m, work);
}

template <typename T, typename F> struct SumColumns {
    T *first, *second;
    F terms;
    template <typename V, typename Group, typename N>
    void column(const Group& group, Index at, Index j, N n) const {
        V one = load<V>(first + j), two = load<V>(second + j);
        for (Index r = 0; r < n; ++r) {
            if (begins_line<T>(j)) terms.fetch_at(group.ahead(at, r));
            terms(group.row(at, r), j, one, two);
        }
        store(first + j, one);
        store(second + j, two);
    }
};

/* Adds two terms for each value of a tile to sums for each of its columns. */
template <typename T, typename Rows, typename F>
inline void sum_columns(Tile tile, Rows rows, T* first, T* second,
                        F terms) {
    std::fill(first, first + tile.width, T(0));
    std::fill(second, second + tile.width, T(0));
    const SumColumns<T, F> work = {first, second, terms};
    each_group<T, SUMMED_ROWS>(tile, rows, work);
}

template <typename T, bool UNITS> struct AddColumnValue {
    const T* x;
    T unit;
    void fetch_at(Index at) const { fetch(x + at); }
    template <typename V>
    void operator()(Index at, Index, V& first, V&) const {
        const V value = load<V>(x + at);
        first += UNITS ? value * unit : value;
    }
};

template <typename T, bool UNITS> struct AddColumnDeviation {
    const T *x, *near;
    T unit;
    void fetch_at(Index at) const { fetch(x + at); }
    template <typename V>
    void operator()(Index at, Index j, V& first, V& second) const {
        const V value = load<V>(x + at);
        const V deviation = (UNITS ? value * unit : value)
                            - load<V>(near + j);
        first += deviation;
        second += deviation * deviation;
    }
};

/* Where the constants of columns lie. */
template <typename T, bool UNITS> struct AffineColumns {
    const T *unit, *centre, *scale, *shift;
    explicit AffineColumns(const T* const* constants)
        : unit(constants[0]), centre(constants[1]), scale(constants[2]),
          shift(constants[3]) {}
    /* Those of a column, or of a vector of them. */
    template <typename V> Affine<V, UNITS> at(Index j) const {
        Affine<V, UNITS> affine = {
            UNITS ? load<V>(unit + j) : V(), load<V>(centre + j),
            load<V>(scale + j), load<V>(shift + j)};
        return affine;
    }
};

template <typename T, bool UNITS> struct GradientColumns {
    AffineColumns<T, UNITS> affine;
    const T *unit, *mean, *a, *b, *c;
    explicit GradientColumns(const T* const* constants)
        : affine(constants), unit(constants[4]), mean(constants[5]),
          a(constants[6]), b(constants[7]), c(constants[8]) {}
    template <typename V> Gradient<V, UNITS> at(Index j) const {
        Gradient<V, UNITS> gradient = {
            affine.template at<V>(j), UNITS ? load<V>(unit + j) : V(),
            load<V>(mean + j), load<V>(a + j), load<V>(b + j),
            load<V>(c + j)};
        return gradient;
    }
};

template <typename T, bool RECTIFY, bool UNITS> struct AddColumnGradient {
    const T *x, *dy;
    AffineColumns<T, UNITS> columns;
    void fetch_at(Index at) const { fetch(x + at), fetch(dy + at); }
    template <typename V>
    void operator()(Index at, Index j, V& first, V& second) const {
        Affine<V, UNITS> affine = columns.template at<V>(j);
        V value = load<V>(x + at);
        V g = reaching<RECTIFY>(load<V>(dy + at), affine(value));
        first += g;
        second += g * affine.deviation(value);
    }
};

/* Calls f(block) for blocks of rows of a tile. */
template <typename F> inline void each_block_of_rows(Tile tile, F f) {
    Tile block = tile;
    for (Index m = tile.begin; m < tile.end; m += BLOCK_ROWS) {
        block.begin = m;
        block.end = std::min(m + BLOCK_ROWS, tile.end);
        f(block);
    }
}

/* Mean, and sum of squares about it, of each column, in the given unit, which
 * is 1 without UNITS. */
template <typename T, bool UNITS, typename Rows>
void column_moments(const T* x, Rows rows, Tile tile, T unit,
                    const Workspace<T>& work, double* mean, double* m2) {
    const Index width = tile.width;
    T *first = work.sums[0], *second = work.sums[1], *near = work.sums[2];
    Tile sample = tile;
    sample.end = tile.begin + sample_of(tile.end - tile.begin, SAMPLE_ROWS, 1);
    const T size = static_cast<T>(sample.end - sample.begin);
    sum_columns(sample, rows, first, second, AddColumnValue<T, UNITS>{x, unit});
    BNLASAGNE_INDEPENDENT
    for (Index j = 0; j < width; ++j) {
        near[j] = first[j] / size;
        mean[j] = near[j];
        m2[j] = 0;
    }
    double count = 0;
    each_block_of_rows(tile, [&](Tile block) {
        sum_columns(block, rows, first, second,
                    AddColumnDeviation<T, UNITS>{x, near, unit});
        const double n = static_cast<double>(block.end - block.begin);
        const double inverse = 1 / n, part = n / (count + n);
        const double both = count * part;
        BNLASAGNE_INDEPENDENT
        for (Index j = 0; j < width; ++j) {
            double sum = first[j];
            // In this order, no more than the sum of squares: it is finite.
            double own = second[j] - sum * (sum * inverse);
            double delta = near[j] + sum * inverse - mean[j];
            m2[j] += (own < ROUNDED * second[j] ? 0 : own)
                     + delta * delta * both;
            mean[j] += delta * part;
            near[j] = static_cast<T>(mean[j]);
        }
        count += n;
    });
}

/* Sums of the gradient, and of its product with the deviation. */
template <typename T, bool RECTIFY, bool UNITS, typename Rows>
void column_gradient_sums(const T* x, const T* dy, Rows rows, Tile tile,
                          const T* const* constants,
                          const Workspace<T>& work, double* sum,
                          double* product) {
    const Index width = tile.width;
    T *first = work.sums[0], *second = work.sums[1];
    std::fill(sum, sum + width, 0.0);
    std::fill(product, product + width, 0.0);
    each_block_of_rows(tile, [&](Tile block) {
        sum_columns(block, rows, first, second,
                    AddColumnGradient<T, RECTIFY, UNITS>{
                        x, dy, AffineColumns<T, UNITS>(constants)});
        BNLASAGNE_INDEPENDENT
        for (Index j = 0; j < width; ++j) {
            sum[j] += first[j];
            product[j] += second[j];
        }
    });
}

template <typename T, typename F> struct WriteColumns {
    T* y;
    F results;
    /* All of a group are computed before any is stored: where rows are a
     * multiple of a page apart, a load would wait for the store to the same
     * place in the row before. */
    template <typename V, typename Group, typename N>
    void column(const Group& group, Index at, Index j, N n) const {
        const auto constants = results.columns.template at<V>(j);
        V values[MOST_ROWS];
        for (Index r = 0; r < n; ++r) {
            if (begins_line<T>(j)) results.fetch_at(group.ahead(at, r));
            values[r] = results.template result<V>(group.row(at, r),
                                                   constants);
        }
        for (Index r = 0; r < n; ++r) store(y + group.row(at, r), values[r]);
    }
};

/* Writes results.result<V>(at, constants) to each place of a tile. */
template <Index ROWS, typename T, typename Rows, typename F>
inline void write_columns(T* y, Rows rows, Tile tile, F results) {
    const WriteColumns<T, F> work = {y, results};
    if (tile.width <= NARROW)
        each_group<T, 1>(tile, rows, work);
    else
        each_group<T, ROWS>(tile, rows, work);
}

template <typename T, bool RECTIFY, bool UNITS> struct NormalizeColumns {
    const T* x;
    AffineColumns<T, UNITS> columns;
    void fetch_at(Index at) const { fetch(x + at); }
    template <typename V>
    V result(Index at, const Affine<V, UNITS>& affine) const {
        return rectified<RECTIFY>(affine(load<V>(x + at)));
    }
};

template <typename T, bool RECTIFY, bool UNITS, typename Rows>
void column_normalize(const T* x, T* y, Rows rows, Tile tile,
                      const T* const* constants) {
    write_columns<NORMALIZED_ROWS>(
        y, rows, tile, NormalizeColumns<T, RECTIFY, UNITS>{
            x, AffineColumns<T, UNITS>(constants)});
}

template <typename T, bool RECTIFY, bool UNITS> struct GradientOfColumns {
    const T *x, *dy;
    GradientColumns<T, UNITS> columns;
    void fetch_at(Index at) const { fetch(x + at), fetch(dy + at); }
    template <typename V>
    V result(Index at, const Gradient<V, UNITS>& gradient) const {
        return gradient.template operator()<RECTIFY>(load<V>(x + at),
                                                     load<V>(dy + at));
    }
};

template <typename T, bool RECTIFY, bool UNITS, typename Rows>
void column_gradient(const T* x, const T* dy, T* dx, Rows rows,
                     Tile tile, const T* const* constants) {
    write_columns<GRADIENT_ROWS>(
        dx, rows, tile, GradientOfColumns<T, RECTIFY, UNITS>{
            x, dy, GradientColumns<T, UNITS>(constants)});
}

}  // namespace bnlasagne

#endif
