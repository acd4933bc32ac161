/* Work along the rows of neighbouring channels, for arrays with long rows. */
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

/* Some neighbouring channels. The values of each are numbered through, row by
 * row, and the strip has those from number begin to, and without, number end. */
struct Strip {
    Index channel, channels, begin, end;
    double count() const { return static_cast<double>(end - begin); }
};

/* Calls f(c, at, n, rows) for runs of at most BLOCK values of the strip's
 * channel number c, in the order of the memory. Runs at the same place in
 * several rows are given at once: in ROWS of them, or else in one. */
template <Index ROWS, typename F>
inline void each_run(Shape shape, Strip strip, F f) {
    Index m = strip.begin / shape.S, s = strip.begin % shape.S;
    for (Index done = strip.begin; done < strip.end;) {
        const Index n = std::min(std::min(BLOCK, shape.S - s),
                                 strip.end - done);
        const Index rows =
            n == shape.S && strip.end - done >= ROWS * n ? ROWS : 1;
        const Index at = (m * shape.C + strip.channel) * shape.S + s;
        for (Index c = 0; c < strip.channels; ++c)
            f(c, at + c * shape.S, n, rows);
        done += rows * n;
        s += n;
        if (s == shape.S) s = 0, m += rows;
    }
}

/* Calls f(block) for blocks of whole rows, or of parts of one. */
template <typename F> inline void each_block(Shape shape, Strip strip, F f) {
    const Index length = shape.S < BLOCK ? BLOCK / shape.S * shape.S : BLOCK;
    Strip block = strip;
    for (; block.begin < strip.end; block.begin = block.end) {
        block.end = std::min(block.begin + length, strip.end);
        f(block);
    }
}

/* From a run to the same place in the next row. Processors fetch ahead by
 * themselves, but not from row to row; zero where rows are too long for it to
 * matter. */
inline Index to_next_row(Shape shape) {
    return shape.S <= BLOCK ? shape.columns() : 0;
}

template <typename V> struct Two {
    V first, second;
    void add(Two other) { first += other.first, second += other.second; }
};

/* The sums of a run's terms, lane by lane. */
template <typename T, typename F>
inline Two<typename Vector<T>::type> sum_run(Index at, Index n, Index ahead,
                                             F terms) {
    typedef Two<typename Vector<T>::type> Sums;
    const Index size = Vector<T>::size;
    Sums sums[4] = {};
    Index i = 0;
    for (; i + 4 * size <= n; i += 4 * size)
        for (Index k = 0; k < 4; ++k) {
            const Index here = at + i + k * size;
            if (ahead && k * REGISTER % LINE == 0)
                terms.fetch_at(here + ahead);
            sums[k].add(terms(here, size));
        }
    for (; i + size <= n; i += size) sums[0].add(terms(at + i, size));
    if (i < n) {
        // A whole vector that ends with the run, of which some was added.
        Sums rest = n < size ? terms(at, n) : terms(at + n - size, size);
        const Index begin = n < size ? 0 : size - (n - i);
        const Index end = n < size ? n : size;
        rest.first = cut<T>(rest.first, begin, end);
        rest.second = cut<T>(rest.second, begin, end);
        sums[0].add(rest);
    }
    sums[0].add(sums[1]);
    sums[2].add(sums[3]);
    sums[0].add(sums[2]);
    return sums[0];
}

/* Sums two terms over all values of each channel, and calls f(c, sums). For
 * channel number c, terms_of(c) gives the terms. */
template <typename T, typename Terms, typename F>
inline void sum_rows(Shape shape, Strip strip, const Workspace<T>& work,
                     Terms terms_of, F f) {
    typedef typename Vector<T>::type V;
    const Index size = Vector<T>::size, ahead = to_next_row(shape);
    T *first = work.sums[0], *second = work.sums[1];
    std::fill(first, first + strip.channels * size, T(0));
    std::fill(second, second + strip.channels * size, T(0));
    each_run<1>(shape, strip, [=](Index c, Index at, Index n, Index) {
        const Two<V> sums = sum_run<T>(at, n, ahead, terms_of(c));
        T *one = first + c * size, *two = second + c * size;
        store(one, load<V>(one) + sums.first);
        store(two, load<V>(two) + sums.second);
    });
    for (Index c = 0; c < strip.channels; ++c) {
        const Two<double> sums = {total<T>(load<V>(first + c * size)),
                                  total<T>(load<V>(second + c * size))};
        f(c, sums);
    }
}

template <typename T> struct ValueTerms {
    typedef typename Vector<T>::type V;
    const T* x;
    T unit;
    void fetch_at(Index at) const { fetch(x + at); }
    Two<V> operator()(Index at, Index n) const {
        const Two<V> terms = {load_some<V>(x + at, n) * unit, V()};
        return terms;
    }
};

/* Of values in another unit, a power of two. */
template <typename T> struct DeviationTerms {
    typedef typename Vector<T>::type V;
    const T* x;
    T unit, near;
    void fetch_at(Index at) const { fetch(x + at); }
    Two<V> operator()(Index at, Index n) const {
        const V deviation = load_some<V>(x + at, n) * unit - near;
        const Two<V> terms = {deviation, deviation * deviation};
        return terms;
    }
};

template <typename T, bool RECTIFY> struct GradientTerms {
    typedef typename Vector<T>::type V;
    const T *x, *dy;
    Affine<T> affine;
    void fetch_at(Index at) const { fetch(x + at), fetch(dy + at); }
    Two<V> operator()(Index at, Index n) const {
        const V value = load_some<V>(x + at, n);
        const V g = reaching<RECTIFY>(load_some<V>(dy + at, n),
                                      affine(value));
        const Two<V> terms = {g, g * affine.deviation(value)};
        return terms;
    }
};

/* Mean, and sum of squares about it, of each channel, of values in the given
 * unit. */
template <typename T>
void row_moments(const T* x, Shape shape, Strip strip, T unit,
                 const Workspace<T>& work, double* mean, double* m2) {
    Strip sample = strip;
    sample.end = std::min(strip.end, strip.begin + SAMPLE);
    sum_rows(shape, sample, work,
             [=](Index) { return ValueTerms<T>{x, unit}; },
             [=](Index c, Two<double> sums) {
        mean[c] = static_cast<T>(sums.first / sample.count());
        m2[c] = 0;
    });
    double count = 0;
    each_block(shape, strip, [&](Strip block) {
        const double n = block.count(), all = count + n;
        const double part = n / all, both = count * part;
        sum_rows(shape, block, work,
                 [=](Index c) {
            return DeviationTerms<T>{x, unit, static_cast<T>(mean[c])};
        }, [=](Index c, Two<double> sums) {
            const double distance = sums.first / n;
            const double own = sums.second - sums.first * distance;
            const double delta = static_cast<double>(static_cast<T>(mean[c]))
                                 + distance - mean[c];
            m2[c] += (own < 0 ? 0 : own) + delta * delta * both;
            mean[c] += delta * part;
        });
        count = all;
    });
}

/* Writes results(i, n) to y + i, for the n values from there on in a row, where
 * n is a whole vector but for fewer than that in all. Vectors between a row's
 * first and last one start where no store straddles two cache lines. They
 * overlap these two, which are read first: y may be what is read. */
template <Index ROWS, typename T, typename F>
inline void write_rows(T* y, Index n, Index stride, F results) {
    const Index size = Vector<T>::size, some = std::min(n, size);
    typename Vector<T>::type first[ROWS], last[ROWS], values[ROWS];
    for (Index r = 0; r < ROWS; ++r) {
        first[r] = results(r * stride, some);
        last[r] = results(r * stride + n - some, some);
    }
    for (Index i = to_aligned(y); i + size <= n; i += size) {
        for (Index r = 0; r < ROWS; ++r)
            values[r] = results(r * stride + i, size);
        for (Index r = 0; r < ROWS; ++r)
            store(y + r * stride + i, values[r]);
    }
    for (Index r = 0; r < ROWS; ++r) {
        store_some(y + r * stride, some, first[r]);
        store_some(y + r * stride + n - some, some, last[r]);
    }
}

/* The same for all values of a strip: of_channel(c) has the results of channel
 * number c. */
template <Index ROWS, typename T, typename F>
inline void write_strip(T* y, Shape shape, Strip strip, F of_channel) {
    each_run<ROWS>(shape, strip, [=](Index c, Index at, Index n, Index rows) {
        const auto results = of_channel(c);
        const auto here = [=](Index i, Index some) {
            return results(at + i, some);
        };
        if (rows == 1)
            write_rows<1>(y + at, n, 0, here);
        else
            write_rows<ROWS>(y + at, n, shape.columns(), here);
    });
}

template <typename T, bool RECTIFY> struct Normalized {
    typedef typename Vector<T>::type V;
    const T* x;
    Affine<T> affine;
    V operator()(Index at, Index n) const {
        return rectified<RECTIFY>(affine(load_some<V>(x + at, n)));
    }
};

/* affine_of(c) has the constants of channel number c. */
template <typename T, bool RECTIFY, typename F>
void row_normalize(const T* x, T* y, Shape shape, Strip strip, F affine_of) {
    write_strip<NORMALIZED_ROWS>(y, shape, strip, [=](Index c) {
        return Normalized<T, RECTIFY>{x, affine_of(c)};
    });
}

/* Sums of the gradient, and of its product with the deviation. */
template <typename T, bool RECTIFY, typename F>
void row_gradient_sums(const T* x, const T* dy, Shape shape, Strip strip,
                       F affine_of, const Workspace<T>& work, double* sum,
                       double* product) {
    std::fill(sum, sum + strip.channels, 0.0);
    std::fill(product, product + strip.channels, 0.0);
    each_block(shape, strip, [&](Strip block) {
        sum_rows(shape, block, work,
                 [=](Index c) {
            return GradientTerms<T, RECTIFY>{x, dy, affine_of(c)};
        }, [=](Index c, Two<double> sums) {
            sum[c] += sums.first;
            product[c] += sums.second;
        });
    });
}

template <typename T, bool RECTIFY> struct Gradients {
    typedef typename Vector<T>::type V;
    const T *x, *dy;
    Gradient<T> gradient;
    V operator()(Index at, Index n) const {
        return gradient.template operator()<RECTIFY>(
            load_some<V>(x + at, n), load_some<V>(dy + at, n));
    }
};

template <typename T, bool RECTIFY, typename F>
void row_gradient(const T* x, const T* dy, T* dx, Shape shape, Strip strip,
                  F gradient_of) {
    write_strip<GRADIENT_ROWS>(dx, shape, strip, [=](Index c) {
        return Gradients<T, RECTIFY>{x, dy, gradient_of(c)};
    });
}

}  // namespace bnlasagne

#endif
