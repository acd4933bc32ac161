/* How running averages move on. */
#ifndef BNLASAGNE_AVERAGES_H
#define BNLASAGNE_AVERAGES_H

#include <algorithm>

#include "vectors.h"

namespace bnlasagne {

template <typename T> bool all_finite(const T* values, Index n) {
    bool finite = true;
    for (Index i = 0; i < n; ++i) finite &= is_finite(values[i]);
    return finite;
}

/* Without a statistic, the average stays. With all the weight, the statistic
 * replaces it, whatever it is. */
template <typename T>
void move_average(const T* average, const T* statistic, double alpha, Index n,
                  T* to) {
    if (!statistic) {
        std::copy(average, average + n, to);
        return;
    }
    if (alpha == 1) {
        std::copy(statistic, statistic + n, to);
        return;
    }
    for (Index i = 0; i < n; ++i)
        to[i] = static_cast<T>((1 - alpha) * average[i]
                               + alpha * statistic[i]);
}

}  // namespace bnlasagne

#endif
