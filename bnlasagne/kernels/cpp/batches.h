/* What of an array counts, and what of it is normalized together. */
#ifndef BNLASAGNE_BATCHES_H
#define BNLASAGNE_BATCHES_H

#include <algorithm>
#include <utility>

#include "vectors.h"

namespace bnlasagne {

/* Values per block whose sums are taken in the array's own type. */
const Index BLOCK = 4096;
/* One of so many values is in the sample whose mean the first block is compared
 * with: an outlier in it must not matter. However it differs from the block's
 * other values, this makes the block's sum of squares no more than SAMPLED + 1
 * times what it is about the block's mean. */
const Index SAMPLED = 16;
const Index SAMPLE = BLOCK / SAMPLED;

/* The size of a sample of so many values or rows. */
inline Index sample_of(Index count, Index most, Index least) {
    return std::min(count, std::max(
        std::min((count + SAMPLED - 1) / SAMPLED, most), least));
}

/* For each row of an array, or for each value of a row, whether it counts; or
 * for each of both. What it does not vary along, it has once. */
struct Mask {
    const unsigned char* counts;  // NULL if all do
    bool along_m, along_s;
};

/* An array, its mask, and virtual batches of so many examples; the last one has
 * the rest. */
struct Batch {
    Shape shape;
    Mask mask;
    Index number, each, examples;

    /* Sets virtual batches of some examples, which have so many values per
     * channel each. */
    void cut(Index size, Index values) {
        size = std::min(size, std::max(examples, Index(1)));
        values = std::max(values, Index(1));
        number = std::max((examples * values + size * values - LEAST_VALUES)
                          / (size * values), Index(1));
        each = size;
    }

    /* Where a virtual batch starts in the array. */
    Index offset(Index i) const {
        return i ? shape.size() / examples * each * i : 0;
    }

    /* A virtual batch. Its examples follow each other in memory. */
    Batch virtual_batch(Index i) const {
        if (number == 1) return *this;
        Batch made = *this;
        made.number = 1;
        made.examples = i + 1 < number ? each : examples - i * each;
        // Without axes in front of the channels, there is one channel only.
        const bool in_m = shape.M != 1;
        Index& along = in_m ? made.shape.M : made.shape.S;
        const Index own = along / examples;
        along = own * made.examples;
        if (in_m ? mask.along_m : mask.along_s)
            made.mask.counts += own * each * i
                                * (in_m && mask.along_s ? shape.S : 1);
        return made;
    }

    /* Values per channel that count. */
    Index count() const {
        if (!mask.counts) return shape.count();
        const Index M = mask.along_m ? shape.M : 1;
        const Index S = mask.along_s ? shape.S : 1;
        const Index counted = M * S - std::count(mask.counts,
                                                 mask.counts + M * S, 0);
        return counted * (shape.M / std::max(M, Index(1)))
               * (shape.S / std::max(S, Index(1)));
    }
};

/* Some neighbouring channels. The values of each are numbered through, row by
 * row, and the strip has those from number begin to, and without, number end. */
struct Strip {
    Index channel, channels, begin, end;
};

/* From a run to the same place in the next row. Processors fetch ahead by
 * themselves, but not from row to row; zero where rows are too long for it to
 * matter. */
inline Index to_next_row(Index S, Index distance) {
    return S <= BLOCK ? distance : 0;
}

/* Where rows start, for work across columns: so far apart, or at listed places.
 * A group is of n rows from number m on. From `first` on, a place `at` is told
 * without the row: row(at, r) is there in number r of them, and ahead(at, r) in
 * number r of the next group. */
struct Stride {
    Index stride;
    template <typename N> struct Group {
        Index start, stride;
        N n;
        Index first() const { return start; }
        Index row(Index at, Index r) const { return at + r * stride; }
        Index ahead(Index at, Index r) const {
            return row(at, r) + n * stride;
        }
    };
    template <typename N> Group<N> group(Index m, N n) const {
        return Group<N>{m * stride, stride, n};
    }
};

struct Starts {
    const Index* starts;
    struct Group {
        Index rows[MOST_ROWS], next[MOST_ROWS];
        Index first() const { return 0; }
        Index row(Index at, Index r) const { return rows[r] + at; }
        Index ahead(Index at, Index r) const { return next[r] + at; }
    };
    template <typename N> Group group(Index m, N n) const {
        Group made;
        for (Index r = 0; r < n; ++r) {
            made.rows[r] = starts[m + r];
            made.next[r] = starts[m + r + Index(n)];
        }
        return made;
    }
};

/* The rows of an array without a mask.
 *
 * Kernels see rows by these names: `shape` has the number of rows that there is
 * work on. A run is of n values of one channel, from place s of row m on. Those
 * from `begin` to, and without, `end` are to be looked at. Unless the run is
 * dense, run.select(f, at) has those of f's values that count. */
template <typename T> struct AllRows {
    static const bool MASKED = false;
    Shape shape;

    explicit AllRows(const Batch& batch) : shape(batch.shape) {}
    bool along_rows() const { return false; }
    Index at(Index m) const { return m * shape.columns(); }
    double count() const { return static_cast<double>(shape.count()); }
    double count(const Strip& strip) const {
        return static_cast<double>(strip.end - strip.begin);
    }
    Strip sample(Strip strip) const {
        strip.end = strip.begin + sample_of(strip.end - strip.begin, SAMPLE,
                                            Vector<T>::size);
        return strip;
    }

    typedef Stride Columns;
    Columns columns() const { return Stride{shape.columns()}; }

    struct Run {
        static const bool MASKED = false;
        Index at, n, ahead;
        Index begin() const { return 0; }
        Index end() const { return n; }
        Index to_row(Index r) const { return r * ahead; }
        bool dense() const { return true; }
        template <typename F> const F& select(const F& f, Index) const {
            return f;
        }
    };
    Run run(Index m, Index s, Index n) const {
        return Run{at(m) + s, n, to_next_row(shape.S, shape.columns())};
    }

    void clear(T*, bool) const {}
};

template <typename V> struct Two {
    V first, second;
    void add(Two other) { first += other.first, second += other.second; }
};

template <typename L, typename V> inline V chosen(L lanes, V value) {
    return lanes ? value : V();
}

template <typename L, typename V> inline Two<V> chosen(L lanes, Two<V> both) {
    const Two<V> made = {chosen(lanes, both.first),
                         chosen(lanes, both.second)};
    return made;
}

/* The rows of an array in which anything counts. */
template <typename T> class CountedRows {
    typedef typename Vector<T>::Lane Lane;
    const Mask mask_;
    const Index all_;   // rows of the array
    const bool lanes_of_each_;
    double count_;
    Table<Index> starts_;
    // If the mask varies along rows: where the first and the last value that
    // counts are, and how many count in the rows before; and lanes of ones
    // where a value counts.
    Table<Index> begins_, ends_, before_;
    Table<Lane> lanes_;

    /* Rows that are fetched ahead are some behind the last. */
    static const Index MORE = 8;

  public:
    static const bool MASKED = true;
    Shape shape;

    explicit CountedRows(const Batch& batch)
        : mask_(batch.mask), all_(batch.shape.M),
          lanes_of_each_(mask_.along_s && mask_.along_m),
          count_(0), starts_(1, all_ + MORE),
          begins_(1, mask_.along_s ? all_ : 0),
          ends_(1, mask_.along_s ? all_ : 0),
          before_(1, mask_.along_s ? all_ + 1 : 0),
          lanes_(lanes_of_each_ ? all_ : 1,
                 mask_.along_s ? batch.shape.S + Vector<T>::size : 0),
          shape(batch.shape) {
        const Index S = shape.S, row = mask_.along_s ? S : 1;
        Index count = 0;
        shape.M = 0;
        for (Index m = 0; m < all_; ++m) {
            const unsigned char* counts =
                mask_.counts + (mask_.along_m ? m * row : 0);
            const Index own = mask_.along_s ? set_row(counts, count)
                : *counts ? S : 0;
            if (!own) continue;
            starts_[0][shape.M++] = m * shape.columns();
            count += own;
        }
        if (mask_.along_s) before_[0][shape.M] = count;
        for (Index i = 0; i < MORE; ++i)
            starts_[0][shape.M + i] = shape.M ? starts_[0][shape.M - 1] : 0;
        count_ = static_cast<double>(count);
    }

    bool along_rows() const { return mask_.along_s; }
    Index at(Index m) const { return starts_[0][m]; }
    double count() const { return count_; }
    double count(const Strip& strip) const {
        if (!mask_.along_s)
            return static_cast<double>(strip.end - strip.begin);
        const Index S = shape.S, m = strip.begin / S, last = strip.end / S;
        const Index s = strip.begin % S, rest = strip.end % S;
        const Index *before = before_[0], next = s ? m + 1 : m;
        return static_cast<double>(
            (s ? counted(m, s, S) : 0) + before[last] - before[next]
            + (rest ? counted(last, 0, rest) : 0));
    }
    /* It goes on until enough values are in it. */
    Strip sample(const Strip& strip) const {
        const Index enough = sample_of(static_cast<Index>(count(strip)),
                                       SAMPLE, Vector<T>::size);
        Strip made = strip;
        Index length = enough;
        do {
            made.end = std::min(strip.end, strip.begin + length);
            length *= 2;
        } while (made.end < strip.end && count(made) < enough);
        return made;
    }

    typedef Starts Columns;
    Columns columns() const { return Starts{starts_[0]}; }

    template <typename F> struct Selected {
        typedef typename Vector<T>::Lanes Lanes;
        F f;
        const Lane* lanes;
        Index from;
        void fetch_at(Index at) const { f.fetch_at(at); }
        auto operator()(Index at, Index n) const
            -> decltype(std::declval<const F&>()(at, n)) {
            return chosen(load<Lanes>(lanes + (at - from)), f(at, n));
        }
    };
    struct Run {
        static const bool MASKED = true;
        Index at, n, ahead, from, to;
        const Index* starts;
        const Lane* lanes;  // NULL if all from begin to end count
        Index to_row(Index r) const { return starts[r] - starts[0]; }
        Index begin() const { return from; }
        Index end() const { return to; }
        bool dense() const { return !lanes; }
        template <typename F>
        Selected<F> select(const F& f, Index at) const {
            return Selected<F>{f, lanes, at};
        }
    };
    Run run(Index m, Index s, Index n) const {
        const Index ahead = to_next_row(shape.S, at(m + 1) - at(m));
        const Index* starts = starts_[0] + m;
        if (!mask_.along_s) return Run{at(m) + s, n, ahead, 0, n, starts, NULL};
        const Index begin = begins_[0][m], end = ends_[0][m];
        const Index from = std::min(std::max(begin - s, Index(0)), n);
        const Index to = std::max(std::min(end - s, n), from);
        const bool dense = before_[0][m + 1] - before_[0][m] == end - begin;
        return Run{at(m) + s, n, ahead, from, to, starts,
                   dense ? NULL : lanes_[lanes_of_each_ ? m : 0] + s};
    }

    /* Writes zeros to the other rows. */
    void clear(T* y, bool parallel) const {
        (void)parallel;
        const Index stride = shape.columns();
        BNLASAGNE_PRAGMA(omp parallel for schedule(static) if (parallel))
        for (Index i = 0; i <= shape.M; ++i) {
            const Index begin = i ? at(i - 1) + stride : 0;
            const Index end = i < shape.M ? at(i) : all_ * stride;
            if (begin < end) std::fill(y + begin, y + end, T(0));
        }
    }

  private:
    /* Makes what belongs to the next row, and returns how many values of it
     * count. */
    Index set_row(const unsigned char* counts, Index before) {
        const Index m = shape.M, S = shape.S;
        Lane* lanes = lanes_[lanes_of_each_ ? m : 0];
        if (lanes_of_each_ || !m) {
            for (Index s = 0; s < S; ++s)
                lanes[s] = counts[s] ? Lane(-1) : Lane(0);
            std::fill(lanes + S, lanes + S + Vector<T>::size, Lane(0));
        }
        Index begin = 0, end = S;
        while (begin < end && !counts[begin]) ++begin;
        while (begin < end && !counts[end - 1]) --end;
        begins_[0][m] = begin;
        ends_[0][m] = end;
        before_[0][m] = before;
        return counted(m, begin, end);
    }
    /* Values that count from place `begin` to, and without, place `end`. */
    Index counted(Index m, Index begin, Index end) const {
        const Lane* lanes = lanes_[lanes_of_each_ ? m : 0];
        Index found = 0;
        for (Index s = begin; s < end; ++s) found -= lanes[s];
        return found;
    }
};

}  // namespace bnlasagne

#endif
