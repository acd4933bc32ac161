/* Work across columns, for arrays with short rows or none: all values of a row
 * of the array, of M rows and C * S columns, that lie next to each other. */
#ifndef BNLASAGNE_COLUMNS_H
#define BNLASAGNE_COLUMNS_H

#include <algorithm>
#include <type_traits>

#include "vectors.h"

namespace bnlasagne {

/* Rows per block whose sums are taken in the array's own type. */
const Index BLOCK_ROWS = 256;
/* Rows whose mean the first block is compared with; see SAMPLE. */
const Index SAMPLE_ROWS = 16;
/* Columns, up to which rows are written one by one, straight on. */
const Index NARROW = 256;

/* A tile: columns from `column` on, of rows begin to, and without, end. */
struct Tile {
    Index column, width, begin, end;
};

/* What it takes to work on a tile: for each of its columns, sums, a value near
 * the mean, and results in double. */
template <typename T> struct Workspace {
    Table<T> sums, constants;
    Table<double> results;
    explicit Workspace(Index width)
        : sums(3, width), constants(7, width), results(2, width) {}
};

/* Calls f(V(), j) for each vector, or single value, of a number of columns. */
template <typename T, typename F> inline void each_column(Index n, F f) {
    typedef typename Vector<T>::type V;
    Index j = 0;
    for (; j + Vector<T>::size <= n; j += Vector<T>::size) f(V(), j);
    for (; j < n; ++j) f(T(), j);
}

/* Calls f(row, rows) for groups of rows, with a constant that the compiler can
 * unroll loops by, and for the less that are left: what belongs to a column is
 * loaded once per group. */
template <int ROWS, typename F>
inline void each_group(Index begin, Index end, F f) {
    typedef std::integral_constant<Index, ROWS> Rows;
    Index m = begin;
    for (; m + ROWS <= end; m += ROWS) f(m, Rows());
    if (m < end) f(m, end - m);
}

/* Adds two terms for each value of a tile to sums for each of its columns. */
template <typename T, typename F>
inline void sum_columns(Tile tile, Index stride, T* first, T* second,
                        F terms) {
    std::fill(first, first + tile.width, T(0));
    std::fill(second, second + tile.width, T(0));
    each_group<4>(tile.begin, tile.end, [&](Index m, auto rows) {
        const Index at = m * stride + tile.column;
        each_column<T>(tile.width, [&](auto zero, Index j) {
            typedef decltype(zero) V;
            V one = load<V>(first + j), two = load<V>(second + j);
            for (Index r = 0; r < rows; ++r) {
                const Index here = at + r * stride + j;
                terms.fetch_at(here + rows * stride);
                terms(here, j, one, two);
            }
            store(first + j, one);
            store(second + j, two);
        });
    });
}

template <typename T> struct AddColumnValue {
    const T* x;
    void fetch_at(Index at) const { fetch(x + at); }
    template <typename V>
    void operator()(Index at, Index, V& first, V&) const {
        first += load<V>(x + at);
    }
};

template <typename T> struct AddColumnDeviation {
    const T *x, *near;
    void fetch_at(Index at) const { fetch(x + at); }
    template <typename V>
    void operator()(Index at, Index j, V& first, V& second) const {
        V deviation = load<V>(x + at) - load<V>(near + j);
        first += deviation;
        second += deviation * deviation;
    }
};

/* Where the constants of columns lie. */
template <typename T> struct AffineColumns {
    const T *centre, *scale, *shift;
    explicit AffineColumns(const T* const* constants)
        : centre(constants[0]), scale(constants[1]), shift(constants[2]) {}
    /* Those of a column, or of a vector of them. */
    template <typename V> Affine<V> at(Index j) const {
        Affine<V> affine = {load<V>(centre + j), load<V>(scale + j),
                            load<V>(shift + j)};
        return affine;
    }
};

template <typename T> struct GradientColumns {
    AffineColumns<T> affine;
    const T *mean, *a, *b, *c;
    explicit GradientColumns(const T* const* constants)
        : affine(constants), mean(constants[3]), a(constants[4]),
          b(constants[5]), c(constants[6]) {}
    template <typename V> Gradient<V> at(Index j) const {
        Gradient<V> gradient = {
            affine.template at<V>(j), load<V>(mean + j), load<V>(a + j),
            load<V>(b + j), load<V>(c + j)};
        return gradient;
    }
};

template <typename T, bool RECTIFY> struct AddColumnGradient {
    const T *x, *dy;
    AffineColumns<T> columns;
    void fetch_at(Index at) const { fetch(x + at), fetch(dy + at); }
    template <typename V>
    void operator()(Index at, Index j, V& first, V& second) const {
        Affine<V> affine = columns.template at<V>(j);
        V value = load<V>(x + at);
        V g = reaching<RECTIFY>(load<V>(dy + at), affine(value));
        first += g;
        second += g * (value - affine.centre);
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

/* Mean, and sum of squares about it, of each column. */
template <typename T>
void column_moments(const T* x, Index stride, Tile tile,
                    const Workspace<T>& work, double* mean, double* m2) {
    const Index width = tile.width;
    T *first = work.sums[0], *second = work.sums[1], *near = work.sums[2];
    Tile sample = tile;
    sample.end = std::min(tile.end, tile.begin + SAMPLE_ROWS);
    const T size = static_cast<T>(sample.end - sample.begin);
    sum_columns(sample, stride, first, second, AddColumnValue<T>{x});
    BNLASAGNE_INDEPENDENT
    for (Index j = 0; j < width; ++j) {
        near[j] = first[j] / size;
        mean[j] = near[j];
        m2[j] = 0;
    }
    double count = 0;
    each_block_of_rows(tile, [&](Tile block) {
        sum_columns(block, stride, first, second,
                    AddColumnDeviation<T>{x, near});
        const double n = static_cast<double>(block.end - block.begin);
        const double inverse = 1 / n, part = n / (count + n);
        const double both = count * part;
        BNLASAGNE_INDEPENDENT
        for (Index j = 0; j < width; ++j) {
            double sum = first[j];
            double own = second[j] - sum * sum * inverse;
            double delta = near[j] + sum * inverse - mean[j];
            m2[j] += (own < 0 ? 0 : own) + delta * delta * both;
            mean[j] += delta * part;
            near[j] = static_cast<T>(mean[j]);
        }
        count += n;
    });
}

/* Sums of the gradient, and of its product with the deviation. */
template <typename T, bool RECTIFY>
void column_gradient_sums(const T* x, const T* dy, Index stride, Tile tile,
                          const T* const* constants,
                          const Workspace<T>& work, double* sum,
                          double* product) {
    const Index width = tile.width;
    T *first = work.sums[0], *second = work.sums[1];
    std::fill(sum, sum + width, 0.0);
    std::fill(product, product + width, 0.0);
    each_block_of_rows(tile, [&](Tile block) {
        sum_columns(block, stride, first, second,
                    AddColumnGradient<T, RECTIFY>{
                        x, dy, AffineColumns<T>(constants)});
        BNLASAGNE_INDEPENDENT
        for (Index j = 0; j < width; ++j) {
            sum[j] += first[j];
            product[j] += second[j];
        }
    });
}

/* Writes results(constants, zero, at, ahead) to each place of a tile: with the
 * constants of the place's column, a zero of the type to compute in, and how
 * far ahead the same column comes again. All of a group are computed before any
 * is stored: where rows are a multiple of a page apart, a load would wait for
 * the store to the same place in the row before. */
template <typename Columns, typename T, typename F>
inline void write_columns(T* y, Index stride, Tile tile,
                          const T* const* constants, F results) {
    const Columns columns(constants);
    auto write = [&](Index m, auto rows) {
        const Index at = m * stride + tile.column;
        each_column<T>(tile.width, [&](auto zero, Index j) {
            typedef decltype(zero) V;
            const auto constant = columns.template at<V>(j);
            V values[4];
            for (Index r = 0; r < rows; ++r)
                values[r] = results(constant, zero, at + r * stride + j,
                                    rows * stride);
            for (Index r = 0; r < rows; ++r)
                store(y + at + r * stride + j, values[r]);
        });
    };
    if (tile.width <= NARROW)
        each_group<1>(tile.begin, tile.end, write);
    else
        each_group<4>(tile.begin, tile.end, write);
}

template <typename T, bool RECTIFY>
void column_normalize(const T* x, T* y, Index stride, Tile tile,
                      const T* const* constants) {
    write_columns<AffineColumns<T>>(
        y, stride, tile, constants,
        [=](const auto& affine, auto zero, Index at, Index ahead) {
            typedef decltype(zero) V;
            fetch(x + at + ahead);
            return rectified<RECTIFY>(affine(load<V>(x + at)));
        });
}

template <typename T, bool RECTIFY>
void column_gradient(const T* x, const T* dy, T* dx, Index stride, Tile tile,
                     const T* const* constants) {
    write_columns<GradientColumns<T>>(
        dx, stride, tile, constants,
        [=](const auto& gradient, auto zero, Index at, Index ahead) {
            typedef decltype(zero) V;
            fetch(x + at + ahead);
            fetch(dy + at + ahead);
            return gradient.template operator()<RECTIFY>(
                load<V>(x + at), load<V>(dy + at));
        });
}

}  // namespace bnlasagne

#endif
