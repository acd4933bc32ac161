/* Batch normalization of arrays seen as [M][C][S]: C channels, each with M rows
 * of S neighbouring values.
 *
 * Memory traffic is most of what counts, so each pass does as much as it can
 * with what it has read, walks far along the memory, and asks ahead of time for
 * what lies elsewhere.
 *
 * - Where S is large (convolutions), work goes along the rows of each channel,
 *   in strips of neighbouring channels; where it is small (dense layers,
 *   channels last), across the C * S columns, four rows at a time.
 * - A unit of work is a strip, or a tile of columns, whose second pass
 *   follows its first while some of it is still in the cache. Where there are
 *   too few units to share out, their rows are cut into pieces, each pass in
 *   turn.
 * - How work is cut depends on the shape alone, and what the pieces give is
 *   merged in a fixed order: the bits do not depend on the number of threads.
 * - Sums are taken in the array's own type over short blocks of deviations
 *   from a value near the mean, and merged in double (Chan et al., 1979).
 * - Where squares overflow or underflow, moments are taken again in another
 *   unit. Deviations and gradients have units of their own: see Affine.
 */
#ifndef BNLASAGNE_KERNELS_H
#define BNLASAGNE_KERNELS_H

#include <algorithm>
#include <cmath>
#include <memory>

#include "batches.h"
#include "columns.h"
#include "rows.h"
#include "vectors.h"

#ifdef _OPENMP
#ifndef _WIN32
#include <unistd.h>
#endif
#endif

namespace bnlasagne {

/* Bytes of a row, from which on work goes along the rows: some vectors, for
 * sums that go through as many registers at once. */
const Index LONG_ROW = 4 * REGISTER;
/* Bytes, up to which an array is not worth a second thread. */
const Index SMALL = 524288;
/* Units, from which on they are shared out whole. */
const Index ENOUGH_UNITS = 4;
/* Columns of a unit: as many as have their sums in the first-level cache, for
 * rows are best walked far. */
const Index WIDTH = 2048;
/* Bytes of a piece. */
const Index PIECE = 262144;
/* Rows that a thread takes at a time to apply given statistics. */
const Index APPLY_ROWS = 32;

/* How the work is cut; a matter of the shape alone. */
struct Plan {
    bool along_rows, whole_units, parallel;
    Index channels;  // of a unit: a strip of rows, or a tile of columns
    Index width;     // columns of a unit; of its workspace, along rows
    Index units;
    Index total;     // to be cut in pieces: values of a channel, or rows
    Index length;    // of a piece
    Index pieces;    // of each unit

    Plan(const Shape& shape, Index bytes, bool rows)
        : along_rows(rows || shape.S * bytes >= LONG_ROW),
          parallel(shape.size() * bytes > SMALL),
          channels(std::max(WIDTH / shape.S, Index(1))),
          total(along_rows ? shape.count() : shape.M) {
        // Too few rows to be cut: narrower tiles instead.
        if (parallel && !along_rows && shape.M <= BLOCK_ROWS)
            channels = std::min(
                channels, (shape.C + ENOUGH_UNITS - 1) / ENOUGH_UNITS);
        units = (shape.C + channels - 1) / channels;
        whole_units = units >= ENOUGH_UNITS || !parallel;
        if (!whole_units && !along_rows) {
            channels = shape.C;
            units = 1;
        }
        const Index some = std::min(channels, shape.C);
        // Along rows, there is a vector for each channel.
        width = some * (along_rows ? REGISTER / bytes : shape.S);
        const Index row = (along_rows ? some : shape.columns()) * bytes;
        length = whole_units
            ? std::max(total, Index(1))
            : std::max(PIECE / row, along_rows ? BLOCK : BLOCK_ROWS);
        pieces = std::max((total + length - 1) / length, Index(1));
    }

    Index begin(Index piece) const { return piece * length; }
    Index end(Index piece) const {
        return std::min(total, (piece + 1) * length);
    }
    Strip strip(Index unit, Index piece, const Shape& shape) const {
        const Index channel = unit * channels;
        const Strip made = {channel, std::min(channels, shape.C - channel),
                            begin(piece), end(piece)};
        return made;
    }
    Tile tile(Index unit, Index piece, const Shape& shape) const {
        const Index column = unit * width;
        Tile made = {column, std::min(width, shape.columns() - column),
                     begin(piece), end(piece)};
        return made;
    }
};

/* Which passes a job makes over its array: where several processes work on one
 * batch, what the first pass of each finds is put together in between. */
enum Passes { BOTH, FIRST, SECOND };

/* A thread's share of a job's work. A job has
 *   first(unit, piece, work), which stores what it finds for the piece;
 *   merge(begin, end), which merges the pieces of channels in order;
 *   settle(begin, end), which makes constants of what was found;
 *   second(unit, piece, work), which uses them. */
template <typename Job> void take_part(Job& job) {
    const Plan& plan = job.plan;
    const Index C = job.shape.C, all = plan.units * plan.pieces;
    const bool finds = job.passes != SECOND, uses = job.passes != FIRST;
    const typename Job::Work work(plan.width);
    if (plan.whole_units) {
        BNLASAGNE_PRAGMA(omp for schedule(dynamic))
        for (Index unit = 0; unit < plan.units; ++unit) {
            const Index begin = unit * plan.channels;
            const Index end = std::min(begin + plan.channels, C);
            if (finds) {
                job.first(unit, 0, work);
                job.merge(begin, end);
            }
            if (uses) {
                job.settle(begin, end);
                job.second(unit, 0, work);
            }
        }
        return;
    }
    if (finds) {
        BNLASAGNE_PRAGMA(omp for schedule(static))
        for (Index i = 0; i < all; ++i)
            job.first(i / plan.pieces, i % plan.pieces, work);
    }
    BNLASAGNE_PRAGMA(omp single)
    {
        if (finds) job.merge(0, C);
        if (uses) job.settle(0, C);
    }
    if (uses) {
        BNLASAGNE_PRAGMA(omp for schedule(static))
        for (Index i = 0; i < all; ++i)
            job.second(i / plan.pieces, i % plan.pieces, work);
    }
}

/* The process that imported the package, as the Ops say. */
static Index home = 0;

/* OpenMP's threads do not survive a fork: a child that waited for them would
 * hang. It works alone, to the same bits. */
inline bool has_threads() {
#if defined(_OPENMP) && !defined(_WIN32)
    return getpid() == home;
#else
    return true;
#endif
}

/* `shared` tells whether it is one of several jobs that threads share: loops
 * that they share must not be inside of each other, so this one is done by a
 * team of one thread. */
template <typename Job> void run(Job& job, bool shared = false) {
    const bool parallel = job.plan.parallel && has_threads();
    if (!parallel && !shared) return take_part(job);
    BNLASAGNE_PRAGMA(omp parallel if (!shared))
    take_part(job);
}

/* Groups of virtual batches that threads share. What belongs to all of them is
 * summed in each group, and then over the groups. */
const Index GROUPS = 16;
inline Index groups_of(const Batch& batch) {
    return std::min(batch.number, GROUPS);
}

/* Calls f(own, i, at, group, shared) for virtual batch number i, which starts
 * at a place of the array. If each is too small for several threads, they may
 * share the groups. */
template <typename T, typename F>
void each_virtual_batch(const Batch& batch, F f) {
    const Index groups = groups_of(batch), bytes = sizeof(T);
    const bool shared = groups > 1 && batch.shape.size() * bytes > SMALL
                        && batch.virtual_batch(0).shape.size() * bytes <= SMALL
                        && has_threads();
    const auto do_group = [&](Index group) {
        for (Index i = batch.number * group / groups;
             i < batch.number * (group + 1) / groups; ++i)
            f(batch.virtual_batch(i), i, batch.offset(i), group, shared);
    };
    if (!shared) {
        for (Index group = 0; group < groups; ++group) do_group(group);
        return;
    }
    BNLASAGNE_PRAGMA(omp parallel for schedule(static))
    for (Index group = 0; group < groups; ++group) do_group(group);
}

/* What the forward pass tells the backward pass, for each channel; and what
 * both make of it: the inverse of the standard deviation with epsilon. */
struct Statistics {
    double *mean, *std;
    Table<double> inverse;
    Statistics(double* memory, Index C)
        : mean(memory), std(memory + C), inverse(1, C) {}
    void set_inverse(Index begin, Index end, double epsilon) {
        double* to = inverse[0];
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) to[c] = 1 / (std[c] + epsilon);
    }
};

/* Square root of a sum of squares; no square overflows or underflows. */
inline double root_of_squares(double a, double b, double c) {
    const double most = a > b ? (a > c ? a : c) : (b > c ? b : c);
    const double unit = most > 0 ? most : 1;
    a /= unit, b /= unit, c /= unit;
    return unit * std::sqrt(a * a + b * b + c * c);
}

/* Whether the squares that a channel's moments were summed from, in the type T,
 * neither overflowed nor got lost. Deviations from a mean of some size are zero
 * or large enough. */
enum Squares : Index { SOUND, TOO_LARGE, TOO_SMALL };
template <typename T>
inline Index judge(double mean, double m2, double count) {
    typedef std::numeric_limits<T> Limits;
    const double least = Limits::min(), precision = Limits::epsilon();
    const bool small = m2 < count / precision * least
                       && std::fabs(mean) < 16 * std::sqrt(least) / precision;
    return !(m2 <= std::numeric_limits<double>::max())
        ? TOO_LARGE : small ? TOO_SMALL : SOUND;
}

/* A unit in which squares that were too large, or too small, are not. */
template <typename T> T other_unit(Squares squares) {
    const int power = std::numeric_limits<T>::max_exponent / 4 * 3;
    return static_cast<T>(
        power_of_two<T>(squares == TOO_LARGE ? -power : power));
}

/* Sets the units, powers of two, of channels of the given sizes. Most often,
 * all are 1. Sizes of more than two to so many, up or down, are brought to two
 * to the rest. */
template <typename T, typename F>
inline void set_units(Index begin, Index end, T* units, int most, int rest,
                      F size) {
    const double top = power_of_two<T>(most), bottom = 1 / top;
    Index others = 0;  // as wide as what is compared, for vectors of it
    for (Index c = begin; c < end; ++c) {
        // Neither zero nor what is no number.
        const double found = size(c);
        others |= found > top || (found < bottom && found > 0) ? 1 : 0;
    }
    std::fill(units + begin, units + end, T(1));
    if (!others) return;
    for (Index c = begin; c < end; ++c) {
        const Index power = exponent(size(c));
        units[c] = static_cast<T>(power_of_two<T>(
            power > most ? rest - power : power < -most ? -rest - power : 0));
    }
}

template <typename T> inline bool has_units(const T* units, Index n) {
    return std::count(units, units + n, T(1)) != n;
}

/* Repeats each channel's constant for its S columns. */
template <typename T>
void spread(const T* from, Index columns, Index S, T* to) {
    for (Index j = 0; j < columns; j += S)
        std::fill(to + j, to + j + S, from[j / S]);
}

/* An empty S or C would have no columns to walk. */
inline Batch walkable(Batch batch) {
    if (batch.shape.C == 0 || batch.shape.S == 0)
        batch.shape.M = 0, batch.shape.S = 1;
    return batch;
}

template <typename T, bool MASKED> struct RowsOf {
    typedef typename std::conditional<
        MASKED, CountedRows<T>, AllRows<T> >::type type;
};

/* What jobs have in common. Constants are those of Affine or Gradient, in
 * order, for each channel. */
template <typename T, bool MASKED> struct Job {
    typedef Workspace<T> Work;
    const typename RowsOf<T, MASKED>::type rows;
    const Shape shape;  // of the rows
    const Passes passes;
    const Plan plan;
    double count;  // values per channel, in the whole batch
    Statistics statistics;
    Table<double> found;  // per piece, then as merged
    Table<T> constants;

    Job(const Batch& batch, double* memory, int constants, Passes passes)
        : rows(walkable(batch)), shape(rows.shape), passes(passes),
          plan(shape, sizeof(T), rows.along_rows()), count(rows.count()),
          statistics(memory, shape.C), found(2 * plan.pieces, shape.C),
          constants(constants, shape.C) {}

    /* Values per channel in a piece. */
    double count_of(Index piece) const {
        return plan.along_rows
            ? rows.count(plan.strip(0, piece, shape))
            : static_cast<double>((plan.end(piece) - plan.begin(piece))
                                  * shape.S);
    }

    Affine<T> affine(Index c) const {
        Affine<T> made = {constants[0][c], constants[1][c], constants[2][c],
                          constants[3][c]};
        return made;
    }

    Gradient<T> gradient(Index c) const {
        Gradient<T> made = {affine(c), constants[4][c], constants[5][c],
                            constants[6][c], constants[7][c],
                            constants[8][c]};
        return made;
    }

    /* The constants of the channels of a unit, by their numbers in it. */
    struct AffineOf {
        const Job& job;
        const Index channel;
        Affine<T> operator()(Index c) const { return job.affine(channel + c); }
    };
    AffineOf affine_of(Index unit) const {
        return AffineOf{*this, unit * plan.channels};
    }
    struct GradientOf {
        const Job& job;
        const Index channel;
        Gradient<T> operator()(Index c) const {
            return job.gradient(channel + c);
        }
    };
    GradientOf gradient_of(Index unit) const {
        return GradientOf{*this, unit * plan.channels};
    }

    /* Sets constants 0 to 3, those of Affine. */
    void set_affine(Index begin, Index end, const T* gamma, const T* beta) {
        T *units = constants[0], *centre = constants[1];
        T *scale = constants[2], *shift = constants[3];
        const double *mean = statistics.mean, *std = statistics.std;
        const double *inverse = statistics.inverse[0];
        set_units(begin, end, units, 16, 0, [=](Index c) {
            return std[c];
        });
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            const double unit = units[c];
            const double factor = gamma[c] * (inverse[c]
                                              * inverse_of_power(unit));
            const T near = static_cast<T>(mean[c] * unit);
            // An infinite mean leaves no number as the rest.
            const double rest = mean[c] * unit - static_cast<double>(near);
            centre[c] = near;
            scale[c] = static_cast<T>(factor);
            shift[c] = static_cast<T>(beta[c] - rest * factor);
        }
    }

    /* What rounding took off a channel's mean, in the deviations' unit. */
    double rest(Index c) const {
        return statistics.mean[c] * constants[0][c]
               - static_cast<double>(constants[1][c]);
    }

    /* Points to the first n constants of a tile's columns: those of the
     * channels where these are columns, else copies in the workspace. */
    void point(const T** to, int n, const Tile& tile, const Work& work) const {
        for (int k = 0; k < n; ++k) {
            to[k] = constants[k] + tile.column / shape.S;
            if (shape.S == 1) continue;
            spread(to[k], tile.width, shape.S, work.constants[k]);
            to[k] = work.constants[k];
        }
    }
};

template <typename T, bool RECTIFY, bool MASKED>
struct Forward : Job<T, MASKED> {
    typedef typename Job<T, MASKED>::Work Work;
    typedef typename RowsOf<T, MASKED>::type::Columns Columns;
    using Job<T, MASKED>::rows;
    using Job<T, MASKED>::shape;
    using Job<T, MASKED>::plan;
    using Job<T, MASKED>::statistics;
    using Job<T, MASKED>::found;
    const T *x, *gamma, *beta;
    double epsilon;
    T *y, *mean, *std;

    Forward(const Batch& batch, const T* x, const T* gamma, const T* beta,
            double epsilon, T* y, T* mean, T* std, double* memory,
            Passes passes = BOTH)
        : Job<T, MASKED>(batch, memory, 4, passes), x(x), gamma(gamma),
          beta(beta), epsilon(epsilon), y(y), mean(mean), std(std) {}

    /* Finds means, and norms: roots of the sums of squared deviations. */
    void first(Index unit, Index piece, const Work& work) {
        const Index channel = unit * plan.channels;
        const Index channels = std::min(plan.channels, shape.C - channel);
        double* means = found[2 * piece] + channel;
        double* norms = found[2 * piece + 1] + channel;
        find(unit, piece, T(1), work, means, norms);
        const double count = this->count_of(piece);
        Index unsound = 0;
        for (Index c = 0; c < channels; ++c)
            unsound |= judge<T>(means[c], norms[c], count);
        if (unsound)
            find_again(unit, piece, channels, count, work, means, norms);
        else
            for (Index c = 0; c < channels; ++c)
                norms[c] = std::sqrt(norms[c]);
    }

    /* Finds the channels' means and sums of squared deviations, of values in
     * the given unit. */
    void find(Index unit, Index piece, T in, const Work& work, double* means,
              double* m2) {
        if (plan.along_rows)
            return row_moments(x, rows, plan.strip(unit, piece, shape), in,
                               work, means, m2);
        const Tile tile = plan.tile(unit, piece, shape);
        const bool merge = shape.S > 1;
        double* mean = merge ? work.results[0] : means;
        double* squares = merge ? work.results[1] : m2;
        (in == 1 ? column_moments<T, false, Columns>
                 : column_moments<T, true, Columns>)(
            x, rows.columns(), tile, in, work, mean, squares);
        if (merge) merge_columns(tile, mean, squares, means, m2);
    }

    /* Replaces sums of squares by norms, where need be by those that are found
     * in another unit. */
    void find_again(Index unit, Index piece, Index channels, double count,
                    const Work& work, double* means, double* norms) {
        Table<double> others(3, channels);
        double *kinds = others[0], *mean = others[1], *m2 = others[2];
        for (Index c = 0; c < channels; ++c) {
            kinds[c] = judge<T>(means[c], norms[c], count);
            if (kinds[c] == SOUND) norms[c] = std::sqrt(norms[c]);
        }
        const Squares unsound[] = {TOO_LARGE, TOO_SMALL};
        for (Squares kind : unsound) {
            if (!std::count(kinds, kinds + channels, kind)) continue;
            const T in = other_unit<T>(kind);
            find(unit, piece, in, work, mean, m2);
            for (Index c = 0; c < channels; ++c) {
                if (kinds[c] != kind) continue;
                means[c] = mean[c] / in;
                norms[c] = std::sqrt(m2[c]) / in;
            }
        }
    }

    /* Moments of channels from those of their columns, of as many values. Of
     * equal means, the mean is the same, so that a channel of equal values has
     * no deviations. */
    void merge_columns(const Tile& tile, const double* from,
                       const double* from_m2, double* to, double* to_m2) {
        const Index S = shape.S, n = tile.end - tile.begin;
        for (Index c = 0; c < tile.width / S; ++c) {
            const double one = from[c * S], near = std::isfinite(one) ? one : 0;
            double sum = 0, m2 = 0, squares = 0;
            for (Index j = c * S; j < c * S + S; ++j) {
                sum += from[j] - near;
                m2 += from_m2[j];
            }
            to[c] = near + sum / static_cast<double>(S);
            for (Index j = c * S; j < c * S + S; ++j)
                squares += (from[j] - to[c]) * (from[j] - to[c]);
            to_m2[c] = m2 + static_cast<double>(n) * squares;
        }
    }

    void settle(Index begin, Index end) {
        if (this->passes == BOTH) set_statistics(begin, end);
        statistics.set_inverse(begin, end, epsilon);
        this->set_affine(begin, end, gamma, beta);
    }

    /* Sets the statistics by what was found. */
    void set_statistics(Index begin, Index end) {
        double *means = found[0], *norms = found[1];
        if (this->count == 0) {
            const double none = MASKED
                ? 0 : std::numeric_limits<double>::quiet_NaN();
            std::fill(means + begin, means + end, none);
            std::fill(norms + begin, norms + end, 0.);
        }
        const double share = 1 / std::sqrt(
            MASKED ? std::max(this->count, 1.) : this->count);
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            const double deviation = norms[c] * share;
            statistics.mean[c] = means[c];
            statistics.std[c] = deviation;
            mean[c] = static_cast<T>(means[c]);
            std[c] = static_cast<T>(deviation);
        }
    }

    /* Merges the moments of all pieces into those of the first. */
    void merge(Index begin, Index end) {
        double *means = found[0], *norms = found[1];
        double count = this->count_of(0);
        for (Index piece = 1; piece < plan.pieces; ++piece) {
            const double *other = found[2 * piece];
            const double *other_norms = found[2 * piece + 1];
            const double n = this->count_of(piece);
            if (n == 0) continue;
            const double part = n / (count + n);
            const double both = std::sqrt(count * part);
            BNLASAGNE_INDEPENDENT
            for (Index c = begin; c < end; ++c) {
                const double delta = other[c] - means[c];
                means[c] += delta * part;
                norms[c] = root_of_squares(norms[c], other_norms[c],
                                           std::fabs(delta) * both);
            }
            count += n;
        }
    }

    void second(Index unit, Index piece, const Work& work) {
        if (plan.along_rows)
            return row_normalize<T, RECTIFY>(
                x, y, rows, plan.strip(unit, piece, shape),
                this->affine_of(unit));
        const Tile tile = plan.tile(unit, piece, shape);
        const T* constants[4];
        this->point(constants, 4, tile, work);
        (has_units(constants[0], tile.width)
            ? column_normalize<T, RECTIFY, true, Columns>
            : column_normalize<T, RECTIFY, false, Columns>)(
            x, y, rows.columns(), tile, constants);
    }
};

template <typename T, bool RECTIFY, bool MASKED>
struct Backward : Job<T, MASKED> {
    typedef typename Job<T, MASKED>::Work Work;
    typedef typename RowsOf<T, MASKED>::type::Columns Columns;
    using Job<T, MASKED>::rows;
    using Job<T, MASKED>::shape;
    using Job<T, MASKED>::plan;
    using Job<T, MASKED>::statistics;
    using Job<T, MASKED>::found;
    const T *x, *gamma, *dy;
    T *dx, *dgamma, *dbeta;
    // Of each parameter, sums over several jobs to add to instead, or NULL.
    double *gamma_sums, *beta_sums;

    Backward(const Batch& batch, const T* x, const T* gamma, const T* beta,
             double epsilon, const T* dy, double* memory, T* dx, T* dgamma,
             T* dbeta, Passes passes = BOTH)
        : Job<T, MASKED>(batch, memory, 9, passes), x(x), gamma(gamma), dy(dy),
          dx(dx), dgamma(dgamma), dbeta(dbeta), gamma_sums(NULL),
          beta_sums(NULL) {
        statistics.set_inverse(0, shape.C, epsilon);
        this->set_affine(0, shape.C, gamma, beta);
    }

    void first(Index unit, Index piece, const Work& work) {
        const Index channel = unit * plan.channels;
        double* sum = found[2 * piece] + channel;
        double* product = found[2 * piece + 1] + channel;
        if (plan.along_rows)
            return row_gradient_sums<T, RECTIFY>(
                x, dy, rows, plan.strip(unit, piece, shape),
                this->affine_of(unit), work, sum, product);
        const Tile tile = plan.tile(unit, piece, shape);
        const T* constants[4];
        this->point(constants, 4, tile, work);
        const bool merge = shape.S > 1;
        double* to = merge ? work.results[0] : sum;
        double* to_product = merge ? work.results[1] : product;
        (has_units(constants[0], tile.width)
            ? column_gradient_sums<T, RECTIFY, true, Columns>
            : column_gradient_sums<T, RECTIFY, false, Columns>)(
            x, dy, rows.columns(), tile, constants, work, to, to_product);
        if (merge) {
            add_columns(tile, to, sum);
            add_columns(tile, to_product, product);
        }
    }

    /* Sums of channels from those of their columns. */
    void add_columns(const Tile& tile, const double* from, double* to) {
        for (Index c = 0; c < tile.width / shape.S; ++c) {
            to[c] = from[c * shape.S];
            for (Index s = 1; s < shape.S; ++s)
                to[c] += from[c * shape.S + s];
        }
    }

    /* Adds the sums of all pieces to those of the first. Then the products are
     * with the deviations from the mean, rather than from what it was rounded
     * to. */
    void merge(Index begin, Index end) {
        double *sum = found[0], *product = found[1];
        for (Index piece = 1; piece < plan.pieces; ++piece) {
            const double *more = found[2 * piece];
            const double *more_product = found[2 * piece + 1];
            BNLASAGNE_INDEPENDENT
            for (Index c = begin; c < end; ++c) {
                sum[c] += more[c];
                product[c] += more_product[c];
            }
        }
        for (Index c = begin; c < end; ++c)
            product[c] -= this->rest(c) * sum[c];
        set_param_gradients(begin, end);
    }

    /* Sets the gradients of the parameters, by this process's values. */
    void set_param_gradients(Index begin, Index end) {
        const double *sums = found[0], *products = found[1];
        const double* inverse = statistics.inverse[0];
        const bool empty = this->count == 0;
        const T* units = this->constants[0];
        const auto by_gamma = [=](Index c) {
            return empty ? 0 : products[c]
                               * (inverse[c] * inverse_of_power(units[c]));
        };
        if (gamma_sums) {
            BNLASAGNE_INDEPENDENT
            for (Index c = begin; c < end; ++c) {
                gamma_sums[c] += by_gamma(c);
                beta_sums[c] += sums[c];
            }
            return;
        }
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            dgamma[c] = static_cast<T>(by_gamma(c));
            dbeta[c] = static_cast<T>(sums[c]);
        }
    }

    /* Sets constants 4 to 8. */
    void settle(Index begin, Index end) {
        const double *sums = found[0], *products = found[1];
        const double share = 1 / this->count;
        T *units = this->constants[4], *mean = this->constants[5];
        T *a = this->constants[6], *b = this->constants[7];
        T* c_ = this->constants[8];
        const double* inverses = statistics.inverse[0];
        const T* gammas = gamma;
        set_units(begin, end, units, 64, 64, [=](Index c) {
            return std::fabs(gammas[c] * inverses[c]);
        });
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            const double unit = this->constants[0][c];
            const double inverse = inverses[c];
            const double std = statistics.std[c] * unit;
            const double factor = gamma[c] * inverse;
            const double gradient_unit = units[c];
            const double own = inverse_of_power(gradient_unit);
            // The standard deviation has no gradient where it is zero.
            const double slope = std == 0 ? 0
                : -factor * (products[c] * share
                             * (inverse * inverse_of_power(unit) / std));
            const double average = sums[c] * share * own;
            const T near = static_cast<T>(average);
            units[c] = static_cast<T>(own);
            mean[c] = near;
            a[c] = static_cast<T>(factor * gradient_unit);
            b[c] = static_cast<T>(slope);
            c_[c] = static_cast<T>(
                -factor * gradient_unit
                    * (average - static_cast<double>(near))
                - slope * this->rest(c));
        }
    }

    void second(Index unit, Index piece, const Work& work) {
        if (plan.along_rows)
            return row_gradient<T, RECTIFY>(
                x, dy, dx, rows, plan.strip(unit, piece, shape),
                this->gradient_of(unit));
        const Tile tile = plan.tile(unit, piece, shape);
        const T* constants[9];
        this->point(constants, 9, tile, work);
        (has_units(constants[0], tile.width)
            || has_units(constants[4], tile.width)
            ? column_gradient<T, RECTIFY, true, Columns>
            : column_gradient<T, RECTIFY, false, Columns>)(
            x, dy, dx, rows.columns(), tile, constants);
    }
};

/* ---- What the Ops call ------------------------------------------------- */

/* Arguments are the batch, then an Op's inputs, then its outputs, in order.
 * `statistics` are the mean of each channel, and then the standard deviation of
 * each. Of statistics, moments and counts, there are those of one virtual batch
 * after the other. */

template <typename T, bool RECTIFY, bool MASKED>
void forward(const Batch& batch, const T* x, const T* gamma, const T* beta,
             double epsilon, T* y, T* mean, T* std, double* statistics,
             std::int64_t* counts) {
    const Index C = batch.shape.C;
    each_virtual_batch<T>(batch, [=](const Batch& own, Index i, Index at,
                                     Index, bool shared) {
        if (counts) counts[i] = own.count();
        Forward<T, RECTIFY, MASKED> job(
            own, x + at, gamma, beta, epsilon, y + at, mean + i * C,
            std + i * C, statistics + 2 * i * C);
        run(job, shared);
        job.rows.clear(y + at, job.plan.parallel && has_threads());
    });
}

template <typename T, bool RECTIFY, bool MASKED>
void backward(const Batch& batch, const T* x, const T* gamma, const T* beta,
              double epsilon, const T* dy, double* statistics, T* dx,
              T* dgamma, T* dbeta) {
    const Index C = batch.shape.C, groups = groups_of(batch);
    const bool several = groups > 1;
    const Table<double> sums(2 * groups, several ? C : 0);
    each_virtual_batch<T>(batch, [=, &sums](const Batch& own, Index i,
                                            Index at, Index group,
                                            bool shared) {
        Backward<T, RECTIFY, MASKED> job(
            own, x + at, gamma, beta, epsilon, dy + at,
            statistics + 2 * i * C, dx + at, dgamma, dbeta);
        if (several) {
            job.gamma_sums = sums[2 * group];
            job.beta_sums = sums[2 * group + 1];
            if (i == batch.number * group / groups) {
                std::fill(job.gamma_sums, job.gamma_sums + C, 0.);
                std::fill(job.beta_sums, job.beta_sums + C, 0.);
            }
        }
        run(job, shared);
        job.rows.clear(dx + at, job.plan.parallel && has_threads());
    });
    if (!several) return;
    for (Index group = 1; group < groups; ++group)
        for (int k = 0; k < 2; ++k) {
            double* to = sums[k];
            const double* more = sums[2 * group + k];
            BNLASAGNE_INDEPENDENT
            for (Index c = 0; c < C; ++c) to[c] += more[c];
        }
    for (Index c = 0; c < C; ++c) {
        dgamma[c] = static_cast<T>(sums[0][c]);
        dbeta[c] = static_cast<T>(sums[1][c]);
    }
}

/* The same in two passes, for what comes between them. Moments are the number
 * of values per channel, the mean of each channel, and the sum of squared
 * deviations of each. */

template <typename T, bool MASKED>
void find_statistics(const Batch& batch, const T* x, T* mean, T* std,
                     double* statistics, double* moments,
                     std::int64_t* counts) {
    const Index C = batch.shape.C;
    each_virtual_batch<T>(batch, [=](const Batch& own, Index i, Index at,
                                     Index, bool shared) {
        if (counts) counts[i] = own.count();
        Forward<T, false, MASKED> job(
            own, x + at, NULL, NULL, 0, NULL, mean + i * C, std + i * C,
            statistics + 2 * i * C, FIRST);
        run(job, shared);
        job.set_statistics(0, C);
        double* to = moments + i * (1 + 2 * C);
        to[0] = job.count;
        for (Index c = 0; c < C; ++c) {
            const double norm = job.found[1][c];
            to[1 + c] = job.found[0][c];
            to[1 + C + c] = norm * norm;
        }
    });
}

template <typename T, bool RECTIFY, bool MASKED>
void forward_by(const Batch& batch, const T* x, const T* gamma, const T* beta,
                double epsilon, double* statistics, T* y) {
    Forward<T, RECTIFY, MASKED> job(batch, x, gamma, beta, epsilon, y, NULL,
                                    NULL, statistics, SECOND);
    run(job);
    job.rows.clear(y, job.plan.parallel && has_threads());
}

/* Sums are the number of values per channel, and for each channel the sum of
 * the gradient that reaches the normalized values, and then that of its product
 * with their deviations from the mean. */
template <typename T, bool RECTIFY, bool MASKED>
void find_gradient_sums(const Batch& batch, const T* x, const T* gamma,
                        const T* beta, double epsilon, const T* dy,
                        double* statistics, double* sums, T* dgamma,
                        T* dbeta) {
    const Index C = batch.shape.C;
    Backward<T, RECTIFY, MASKED> job(batch, x, gamma, beta, epsilon, dy,
                                     statistics, NULL, dgamma, dbeta, FIRST);
    run(job);
    sums[0] = job.count;
    for (Index c = 0; c < C; ++c) {
        sums[1 + c] = job.found[0][c];
        sums[1 + C + c] = job.found[1][c] / job.constants[0][c];
    }
}

template <typename T, bool RECTIFY, bool MASKED>
void backward_by(const Batch& batch, const T* x, const T* gamma,
                 const T* beta, double epsilon, const T* dy,
                 double* statistics, const double* sums, T* dx) {
    const Index C = batch.shape.C;
    Backward<T, RECTIFY, MASKED> job(batch, x, gamma, beta, epsilon, dy,
                                     statistics, dx, NULL, NULL, SECOND);
    job.count = sums[0];
    for (Index c = 0; c < C; ++c) {
        job.found[0][c] = sums[1 + c];
        job.found[1][c] = sums[1 + C + c] * job.constants[0][c];
    }
    run(job);
    job.rows.clear(dx, job.plan.parallel && has_threads());
}

/* Normalizes by given statistics, in the order of the memory. */
template <typename T, bool RECTIFY, bool MASKED>
void apply(const Batch& batch, const T* x, const T* mean, const T* std,
           const T* gamma, const T* beta, double epsilon, T* y) {
    typedef typename RowsOf<T, MASKED>::type Rows;
    typedef typename Rows::Columns Columns;
    const Rows rows(walkable(batch));
    const Shape shape = rows.shape;
    const Index C = shape.C, S = shape.S, width = shape.columns();
    Table<T> constants(4, C);
    T *units = constants[0], *centre = constants[1], *scale = constants[2];
    std::copy(beta, beta + C, constants[3]);
    set_units(Index(0), C, units, 64, 64, [=](Index c) {
        return std::fabs(gamma[c] / (std[c] + epsilon));
    });
    BNLASAGNE_INDEPENDENT
    for (Index c = 0; c < C; ++c) {
        const double factor = gamma[c] / (std[c] + epsilon);
        const double unit = 1. / units[c];
        units[c] = static_cast<T>(unit);
        centre[c] = static_cast<T>(mean[c] * unit);
        scale[c] = static_cast<T>(factor / unit);
    }
    const bool parallel = shape.size() * Index(sizeof(T)) > SMALL
                          && has_threads();
    rows.clear(y, parallel);
    if (S >= Vector<T>::size || rows.along_rows()) {
        BNLASAGNE_PRAGMA(omp parallel for schedule(static) if (parallel))
        for (Index row = 0; row < shape.M * C; ++row) {
            const Index c = row % C;
            const auto run = rows.run(row / C, 0, S);
            const Index at = run.at + c * S;
            const Affine<T> affine = {units[c], centre[c], scale[c],
                                      constants[3][c]};
            write_run<1>(y, at, run, 1, Normalized<T, RECTIFY>{x, affine});
        }
        return;
    }
    Table<T> columns(4, S == 1 ? 0 : width);
    const T* all[4];
    for (int k = 0; k < 4; ++k) {
        if (S > 1) spread(constants[k], width, S, columns[k]);
        all[k] = S > 1 ? columns[k] : constants[k];
    }
    const auto normalize = has_units(units, C)
        ? column_normalize<T, RECTIFY, true, Columns>
        : column_normalize<T, RECTIFY, false, Columns>;
    const Index groups = (shape.M + APPLY_ROWS - 1) / APPLY_ROWS;
    BNLASAGNE_PRAGMA(omp parallel for schedule(static) if (parallel))
    for (Index i = 0; i < groups; ++i) {
        const Tile tile = {0, width, i * APPLY_ROWS,
                           std::min((i + 1) * APPLY_ROWS, shape.M)};
        normalize(x, y, rows.columns(), tile, all);
    }
}

}  // namespace bnlasagne

#endif
