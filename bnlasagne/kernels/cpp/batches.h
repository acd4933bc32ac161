/* What of an array counts, and what of it is normalized together. */
#ifndef BNLASAGNE_BATCHES_H
#define BNLASAGNE_BATCHES_H

#include <algorithm>

#include "vectors.h"

namespace bnlasagne {

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
    Batch part(Index i) const {
        if (number == 1) return *this;
        Batch made = *this;
        made.number = 1;
        made.examples = i + 1 < number ? each : examples - i * each;
        // Without axes in front of the channels, there is one channel only.
        const bool in_m = shape.M != 1;
        Index& along = in_m ? made.shape.M : made.shape.S;
        const Index own = along / examples, row = mask.along_s ? shape.S : 1;
        along = own * made.examples;
        if (in_m ? mask.along_m : mask.along_s)
            made.mask.counts += own * each * i * (in_m ? row : 1);
        return made;
    }
};

}  // namespace bnlasagne

#endif
