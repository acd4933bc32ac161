/* Work along the rows of neighbouring channels, for arrays with long rows. */
#ifndef BNLASAGNE_ROWS_H
#define BNLASAGNE_ROWS_H

#include <algorithm>
#include <cmath>

#include "batches.h"
#include "vectors.h"

namespace bnlasagne {

/* Calls f(c, at, run, several) for runs of at most BLOCK values of the strip's
 * channel number c, in the order of the memory; `at` is where the run is for
 * this channel. Unless a mask varies along rows, runs at the same place in
 * several rows are given at once: in ROWS of them, or else in one. */
template <Index ROWS, typename Rows, typename F>
inline void each_run(const Rows& rows, Strip strip, F f) {
    const Index S = rows.shape.S;
    Index m = strip.begin / S, s = strip.begin % S;
    for (Index done = strip.begin; done < strip.end;) {
        const Index n = std::min(std::min(BLOCK, S - s), strip.end - done);
        const Index several = !rows.along_rows() && n == S
            && strip.end - done >= ROWS * n ? ROWS : 1;
        const auto run = rows.run(m, s, n);
        const Index at = run.at + strip.channel * S;
        for (Index c = 0; c < strip.channels; ++c)
            f(c, at + c * S, run, several);
        done += several * n;
        s += n;
        if (s == S) s = 0, m += several;
    }
}

/* Calls f(block) for blocks of whole rows, or of parts of one. */
template <typename F> inline void each_block(Index S, Strip strip, F f) {
    const Index length = S < BLOCK ? BLOCK / S * S : BLOCK;
    Strip block = strip;
    for (; block.begin < strip.end; block.begin = block.end) {
        block.end = std::min(block.begin + length, strip.end);
        f(block);
    }
}

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
template <typename T, typename Rows, typename Terms, typename F>
inline void sum_rows(const Rows& rows, Strip strip, const Workspace<T>& work,
                     Terms terms_of, F f) {
    typedef typename Vector<T>::type V;
    typedef typename Rows::Run Run;
    const Index size = Vector<T>::size;
    T *first = work.sums[0], *second = work.sums[1];
    std::fill(first, first + strip.channels * size, T(0));
    std::fill(second, second + strip.channels * size, T(0));
    each_run<1>(rows, strip, [=](Index c, Index at, const Run& run, Index) {
        const Index from = at + run.begin(), n = run.end() - run.begin();
        const auto terms = terms_of(c);
        const Two<V> sums = run.dense()
            ? sum_run<T>(from, n, run.ahead, terms)
            : sum_run<T>(from, n, run.ahead, run.select(terms, at));
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
template <typename T, typename Rows>
void row_moments(const T* x, const Rows& rows, Strip strip, T unit,
                 const Workspace<T>& work, double* mean, double* m2) {
    const Strip sample = rows.sample(strip);
    const double size = rows.count(sample);
    sum_rows(rows, sample, work,
             [=](Index) { return ValueTerms<T>{x, unit}; },
             [=](Index c, Two<double> sums) {
        mean[c] = size > 0 ? static_cast<T>(sums.first / size) : 0;
        m2[c] = 0;
    });
    double count = 0;
    each_block(rows.shape.S, strip, [&](Strip block) {
        const double n = rows.count(block), all = count + n;
        if (n == 0) return;
        const double part = n / all, both = count * part;
        sum_rows(rows, block, work,
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
 * n is a whole vector but for fewer than that in all; and in other rows, each
 * to_row(r) values on. Vectors between a row's first and last one start where
 * no store straddles two cache lines. They overlap these two, which are read
 * first: y may be what is read. */
template <Index ROWS, typename T, typename R, typename F>
inline void write_rows(T* y, Index n, R to_row, F results) {
    const Index size = Vector<T>::size, some = std::min(n, size);
    typename Vector<T>::type first[ROWS], last[ROWS], values[ROWS];
    Index rows[ROWS];
    for (Index r = 0; r < ROWS; ++r) {
        rows[r] = to_row(r);
        first[r] = results(rows[r], some);
        last[r] = results(rows[r] + n - some, some);
    }
    for (Index i = to_aligned(y); i + size <= n; i += size) {
        for (Index r = 0; r < ROWS; ++r)
            values[r] = results(rows[r] + i, size);
        for (Index r = 0; r < ROWS; ++r) store(y + rows[r] + i, values[r]);
    }
    for (Index r = 0; r < ROWS; ++r) {
        store_some(y + rows[r], some, first[r]);
        store_some(y + rows[r] + n - some, some, last[r]);
    }
}

/* The same for a run, or for runs at the same place in several rows; and zeros
 * in front of it and behind it, where nothing counts. */
template <Index ROWS, typename T, typename Run, typename F>
inline void write_run(T* y, Index at, const Run& run, Index several,
                      F results) {
    const Index from = at + run.begin(), n = run.end() - run.begin();
    const auto to_row = [=](Index r) { return run.to_row(r); };
    const auto here = [=](Index i, Index some) {
        return results(from + i, some);
    };
    if (several > 1) return write_rows<ROWS>(y + from, n, to_row, here);
    std::fill(y + at, y + from, T(0));
    std::fill(y + from + n, y + at + run.n, T(0));
    if (Run::MASKED && run.ahead)
        // One row at a time waits for memory, which several wait for together.
        for (Index i = from; i < from + n; i += LINE / Index(sizeof(T))) {
            results.fetch_at(i + run.ahead);
            __builtin_prefetch(y + i + run.ahead, 1, 2);
        }
    if (run.dense()) return write_rows<1>(y + from, n, to_row, here);
    const auto selected = run.select(results, at);
    write_rows<1>(y + from, n, to_row, [=](Index i, Index some) {
        return selected(from + i, some);
    });
}

/* The same for all values of a strip: of_channel(c) has the results of channel
 * number c. */
template <Index ROWS, typename T, typename Rows, typename F>
inline void write_strip(T* y, const Rows& rows, Strip strip, F of_channel) {
    typedef typename Rows::Run Run;
    each_run<ROWS>(rows, strip, [=](Index c, Index at, const Run& run,
                                    Index several) {
        write_run<ROWS>(y, at, run, several, of_channel(c));
    });
}

template <typename T, bool RECTIFY> struct Normalized {
    typedef typename Vector<T>::type V;
    const T* x;
    Affine<T> affine;
    void fetch_at(Index at) const { fetch(x + at); }
    V operator()(Index at, Index n) const {
        return rectified<RECTIFY>(affine(load_some<V>(x + at, n)));
    }
};

/* affine_of(c) has the constants of channel number c. */
template <typename T, bool RECTIFY, typename Rows, typename F>
void row_normalize(const T* x, T* y, const Rows& rows, Strip strip,
                   F affine_of) {
    write_strip<NORMALIZED_ROWS>(y, rows, strip, [=](Index c) {
        return Normalized<T, RECTIFY>{x, affine_of(c)};
    });
}

/* Sums of the gradient, and of its product with the deviation. */
template <typename T, bool RECTIFY, typename Rows, typename F>
void row_gradient_sums(const T* x, const T* dy, const Rows& rows, Strip strip,
                       F affine_of, const Workspace<T>& work, double* sum,
                       double* product) {
    std::fill(sum, sum + strip.channels, 0.0);
    std::fill(product, product + strip.channels, 0.0);
    each_block(rows.shape.S, strip, [&](Strip block) {
        sum_rows(rows, block, work,
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
    void fetch_at(Index at) const { fetch(x + at), fetch(dy + at); }
    V operator()(Index at, Index n) const {
        return gradient.template operator()<RECTIFY>(
            load_some<V>(x + at, n), load_some<V>(dy + at, n));
    }
};

template <typename T, bool RECTIFY, typename Rows, typename F>
void row_gradient(const T* x, const T* dy, T* dx, const Rows& rows,
                  Strip strip, F gradient_of) {
    write_strip<GRADIENT_ROWS>(dx, rows, strip, [=](Index c) {
        return Gradients<T, RECTIFY>{x, dy, gradient_of(c)};
    });
}

}  // namespace bnlasagne

#endif
