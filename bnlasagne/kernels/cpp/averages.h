/* How running averages move on. */
#ifndef BNLASAGNE_AVERAGES_H
#define BNLASAGNE_AVERAGES_H

#include <algorithm>

#include "vectors.h"

namespace bnlasagne {

/* By their bits, so that no flag of the compiler's can deny it. */
template <typename T> bool all_finite(const T* values, Index n) {
    typedef typename Vector<T>::Lane Bits;
    const T infinity = std::numeric_limits<T>::infinity();
    const Bits sign = std::numeric_limits<Bits>::min();
    Bits least, others = 0;
    std::memcpy(&least, &infinity, sizeof(T));
    for (Index i = 0; i < n; ++i) {
        Bits bits;
        std::memcpy(&bits, values + i, sizeof(T));
        others |= (bits & ~sign) >= least ? 1 : 0;
    }
    return !others;
}

/* Follows the first ones of some statistics, of one batch after the other.
 * Those of a batch are usable if they are finite and of enough values. With all
 * the weight, the statistic replaces the average, whatever it is. */
template <typename T>
void move_average(const T* average, const std::int64_t* counts, Index batches,
                  const T* const* statistics, int kinds, double alpha, Index n,
                  T* to) {
    std::copy(average, average + n, to);
    for (Index batch = 0; batch < batches; ++batch) {
        bool usable = counts[batch] >= LEAST_VALUES;
        for (int kind = 0; kind < kinds; ++kind)
            usable = usable && all_finite(statistics[kind] + batch * n, n);
        if (!usable) continue;
        const T* statistic = statistics[0] + batch * n;
        if (alpha == 1)
            std::copy(statistic, statistic + n, to);
        else
            for (Index i = 0; i < n; ++i)
                to[i] = static_cast<T>((1 - alpha) * to[i]
                                       + alpha * statistic[i]);
    }
}

}  // namespace bnlasagne

#endif
