/* Work along the rows of one channel, for arrays with long rows.
 *
 * A channel's values are numbered through, row by row; each function takes
 * those from number begin to, and without, number end. */
#ifndef BNLASAGNE_ROWS_H
#define BNLASAGNE_ROWS_H

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace bnlasagne {

/* Values per block whose sums are taken in the array's own type. */
const Index BLOCK = 4096;
/* Values whose mean the first block is compared with: an outlier among them
 * must not matter. However they differ from the block's others, this makes its
 * sum of squares no more than BLOCK / SAMPLE + 1 times what it is about the
 * block's mean. */
const Index SAMPLE = 256;

/* Calls f(offset, n) for runs of at most BLOCK neighbours. */
template <typename F>
inline void each_run(Shape shape, Index c, Index begin, Index end, F f) {
    Index m = begin / shape.S, s = begin % shape.S;
    while (begin < end) {
        Index n = std::min(std::min(BLOCK, shape.S - s), end - begin);
        f((m * shape.C + c) * shape.S + s, n);
        begin += n;
        s += n;
        if (s == shape.S) s = 0, ++m;
    }
}

/* From a run to the same place in the next row. Processors fetch ahead by
 * themselves, but not from row to row; zero where rows are too long for it to
 * matter. */
inline Index to_next_row(Shape shape) {
    return shape.S <= BLOCK ? shape.columns() : 0;
}

struct TwoSums {
    double first, second;
};

/* Sums of two terms over all values. */
template <typename T, typename F>
inline TwoSums sum_values(Shape shape, Index c, Index begin, Index end,
                          F terms) {
    typedef typename Vector<T>::type V;
    const Index size = Vector<T>::size, ahead = to_next_row(shape);
    V first[4] = {}, second[4] = {};
    each_run(shape, c, begin, end, [&](Index at, Index n) {
        Index i = 0;
        for (; i + 4 * size <= n; i += 4 * size)
            for (int k = 0; k < 4; ++k) {
                const Index here = at + i + k * size;
                if (ahead) terms.fetch_at(here + ahead);
                terms(here, size, first[k], second[k]);
            }
        for (; i < n; i += size)
            terms(at + i, std::min(size, n - i), first[0], second[0]);
    });
    TwoSums sums = {
        total<T>((first[0] + first[1]) + (first[2] + first[3])),
        total<T>((second[0] + second[1]) + (second[2] + second[3]))};
    return sums;
}

template <typename T> struct AddValue {
    typedef typename Vector<T>::type V;
    const T* x;
    T unit;
    void fetch_at(Index at) const { fetch(x + at); }
    void operator()(Index at, Index n, V& first, V&) const {
        first += load_some<V>(x + at, n, T(0)) * unit;
    }
};

/* Of values in another unit, a power of two. */
template <typename T> struct AddDeviation {
    typedef typename Vector<T>::type V;
    const T* x;
    T unit, near;
    void fetch_at(Index at) const { fetch(x + at); }
    void operator()(Index at, Index n, V& first, V& second) const {
        V deviation = load_some<V>(x + at, n, near / unit) * unit - near;
        first += deviation;
        second += deviation * deviation;
    }
};

template <typename T, bool RECTIFY> struct AddGradient {
    typedef typename Vector<T>::type V;
    const T *x, *dy;
    Affine<T> affine;
    void fetch_at(Index at) const { fetch(x + at), fetch(dy + at); }
    void operator()(Index at, Index n, V& first, V& second) const {
        V value = load_some<V>(x + at, n, T(0));
        V g = reaching<RECTIFY>(load_some<V>(dy + at, n, T(0)),
                                affine(value));
        first += g;
        second += g * affine.deviation(value);
    }
};

/* Calls f(begin, end) for blocks of whole rows, or of parts of one. */
template <typename F>
inline void each_block(Shape shape, Index begin, Index end, F f) {
    const Index block = shape.S < BLOCK ? BLOCK / shape.S * shape.S : BLOCK;
    for (; begin < end; begin += block) f(begin, std::min(begin + block, end));
}

/* Mean, and sum of squares about it, of values in the given unit. */
template <typename T>
void row_moments(const T* x, Shape shape, Index c, Index begin, Index end,
                 T unit, double* mean, double* m2) {
    const Index sample = std::min(SAMPLE, end - begin);
    T near = static_cast<T>(
        sum_values<T>(shape, c, begin, begin + sample,
                      AddValue<T>{x, unit}).first
        / static_cast<double>(sample));
    double count = 0;
    *mean = near;
    *m2 = 0;
    each_block(shape, begin, end, [&](Index from, Index to) {
        TwoSums sums = sum_values<T>(shape, c, from, to,
                                     AddDeviation<T>{x, unit, near});
        const double n = static_cast<double>(to - from), all = count + n;
        const double distance = sums.first / n;
        const double own = sums.second - sums.first * distance;
        const double delta = near + distance - *mean;
        *m2 += (own < 0 ? 0 : own) + delta * delta * (count * n / all);
        *mean += delta * (n / all);
        near = static_cast<T>(*mean);
        count = all;
    });
}

/* Writes results(i, n) for the n values from number i on of some neighbours,
 * where n is a whole vector but for fewer neighbours than that. Vectors between
 * the first and the last one start where no store straddles two cache lines.
 * They overlap these two, which are read first: y may be what is read. */
template <typename T, typename F>
inline void write_run(T* y, Index n, F results) {
    const Index size = Vector<T>::size;
    if (n < size) return store_some(y, n, results(Index(0), n));
    const auto first = results(Index(0), size);
    const auto last = results(n - size, size);
    for (Index i = to_aligned(y); i + size <= n; i += size)
        store(y + i, results(i, size));
    store(y, first);
    store(y + n - size, last);
}

template <typename T, bool RECTIFY>
inline void normalize_run(const T* x, T* y, Index n, Affine<T> affine) {
    typedef typename Vector<T>::type V;
    write_run(y, n, [=](Index i, Index some) {
        return rectified<RECTIFY>(affine(load_some<V>(x + i, some, T(0))));
    });
}

template <typename T, bool RECTIFY>
void row_normalize(const T* x, T* y, Shape shape, Index c, Index begin,
                   Index end, Affine<T> affine) {
    each_run(shape, c, begin, end, [&](Index at, Index n) {
        normalize_run<T, RECTIFY>(x + at, y + at, n, affine);
    });
}

/* Sums of the gradient, and of its product with the deviation. */
template <typename T, bool RECTIFY>
TwoSums row_gradient_sums(const T* x, const T* dy, Shape shape, Index c,
                          Index begin, Index end, Affine<T> affine) {
    TwoSums all = {0, 0};
    each_block(shape, begin, end, [&](Index from, Index to) {
        TwoSums sums = sum_values<T>(shape, c, from, to,
                                     AddGradient<T, RECTIFY>{x, dy, affine});
        all.first += sums.first;
        all.second += sums.second;
    });
    return all;
}

template <typename T, bool RECTIFY>
void row_gradient(const T* x, const T* dy, T* dx, Shape shape, Index c,
                  Index begin, Index end, Gradient<T> gradient) {
    typedef typename Vector<T>::type V;
    each_run(shape, c, begin, end, [&](Index at, Index n) {
        write_run(dx + at, n, [=](Index i, Index some) -> V {
            V value = load_some<V>(x + at + i, some, T(0));
            V above = load_some<V>(dy + at + i, some, T(0));
            return gradient.template operator()<RECTIFY>(value, above);
        });
    });
}

}  // namespace bnlasagne

#endif
