/* Batch normalization of arrays seen as [M][C][S]: C channels, each with M rows
 * of S neighbouring values.
 *
 * Memory traffic is most of what counts, so each pass does as much as it can
 * with what it has read, walks far along the memory, and asks ahead of time for
 * what lies elsewhere.
 *
 * - Where S is large (convolutions), work goes along the rows of a channel;
 *   where it is small (dense layers, channels last), across the C * S columns,
 *   four rows at a time.
 * - A unit of work is a channel, or a tile of columns, whose second pass
 *   follows its first while some of it is still in the cache. Where there are
 *   too few units to share out, their rows are cut into pieces, each pass in
 *   turn.
 * - How work is cut depends on the shape alone, and what the pieces give is
 *   merged in a fixed order: the bits do not depend on the number of threads.
 * - Sums are taken in the array's own type over short blocks of deviations
 *   from a value near the mean, and merged in double (Chan et al., 1979).
 *
 * Never compile this with -ffast-math: it switches denormals off for the whole
 * process, and lets NaN through.
 */
#ifndef BNLASAGNE_KERNELS_H
#define BNLASAGNE_KERNELS_H

#include <algorithm>
#include <cmath>
#include <memory>

#include "columns.h"
#include "rows.h"
#include "vectors.h"

#ifdef _OPENMP
#define BNLASAGNE_PRAGMA(text) _Pragma(#text)
#else
#define BNLASAGNE_PRAGMA(text)
#endif

namespace bnlasagne {

/* From this S on, work goes along the rows. */
const Index LONG_ROW = 1024;
/* Bytes, up to which an array is not worth a second thread. */
const Index SMALL = 524288;
/* Units, from which on they are shared out whole. */
const Index ENOUGH_UNITS = 4;
/* Columns of a tile: as many as have their sums in the first-level cache, for
 * rows are best walked far. */
const Index WIDTH = 2048;
/* Bytes of a piece. */
const Index PIECE = 262144;
/* Rows that a thread takes at a time to apply given statistics. */
const Index APPLY_ROWS = 32;

/* How the work is cut; a matter of the shape alone. */
struct Plan {
    bool along_rows, whole_units, parallel;
    Index channels;  // of a unit, which is one channel or a tile of columns
    Index width;     // columns of a unit; none along rows
    Index units;
    Index total;     // to be cut in pieces: values of a channel, or rows
    Index length;    // of a piece
    Index pieces;    // of each unit

    Plan(const Shape& shape, Index bytes)
        : along_rows(shape.S >= LONG_ROW),
          parallel(shape.size() * bytes > SMALL),
          channels(along_rows ? 1 : std::max(WIDTH / shape.S, Index(1))),
          total(along_rows ? shape.count() : shape.M) {
        units = (shape.C + channels - 1) / channels;
        whole_units = units >= ENOUGH_UNITS || !parallel;
        if (!whole_units && !along_rows) {
            channels = shape.C;
            units = 1;
        }
        width = along_rows ? 0 : std::min(channels, shape.C) * shape.S;
        const Index row = along_rows ? bytes : shape.columns() * bytes;
        length = whole_units
            ? std::max(total, Index(1))
            : std::max(PIECE / row, along_rows ? BLOCK : BLOCK_ROWS);
        pieces = std::max((total + length - 1) / length, Index(1));
    }

    Index begin(Index piece) const { return piece * length; }
    Index end(Index piece) const {
        return std::min(total, (piece + 1) * length);
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

template <typename Job> void run(Job& job) {
    if (!job.plan.parallel) return take_part(job);
    BNLASAGNE_PRAGMA(omp parallel)
    take_part(job);
}

/* What the forward pass tells the backward pass, for each channel. */
struct Statistics {
    double *mean, *std, *inverse;
    Statistics(double* memory, Index C)
        : mean(memory), std(memory + C), inverse(memory + 2 * C) {}
};

/* Repeats each channel's constant for its S columns. */
template <typename T>
void spread(const T* from, Index columns, Index S, T* to) {
    for (Index j = 0; j < columns; j += S)
        std::fill(to + j, to + j + S, from[j / S]);
}

/* What jobs have in common. Constants are those of Affine or Gradient, in
 * order, for each channel. */
template <typename T> struct Job {
    typedef Workspace<T> Work;
    const Shape shape;
    const Passes passes;
    const Plan plan;
    double count;  // values per channel, in the whole batch
    Statistics statistics;
    Table<double> found;  // per piece, then as merged
    Table<T> constants;

    Job(const Shape& shape, double* memory, int constants, Passes passes)
        : shape(shape), passes(passes), plan(shape, sizeof(T)),
          count(static_cast<double>(shape.count())),
          statistics(memory, shape.C), found(2 * plan.pieces, shape.C),
          constants(constants, shape.C) {}

    /* What was found, of another batch that this one is a part of, or to be
     * told. */
    void set_found(const double* first, const double* second) {
        std::copy(first, first + shape.C, found[0]);
        std::copy(second, second + shape.C, found[1]);
    }
    void get_found(double* first, double* second) const {
        std::copy(found[0], found[0] + shape.C, first);
        std::copy(found[1], found[1] + shape.C, second);
    }

    Affine<T> affine(Index c) const {
        Affine<T> made = {constants[0][c], constants[1][c], constants[2][c]};
        return made;
    }

    Gradient<T> gradient(Index c) const {
        Gradient<T> made = {affine(c), constants[3][c], constants[4][c],
                            constants[5][c], constants[6][c]};
        return made;
    }

    /* Sets constants 0 to 2, those of Affine. */
    void set_affine(Index begin, Index end, const T* gamma, const T* beta) {
        T *centre = constants[0], *scale = constants[1];
        T* shift = constants[2];
        const double *mean = statistics.mean, *inverse = statistics.inverse;
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            const double factor = gamma[c] * inverse[c];
            const T near = static_cast<T>(mean[c]);
            // An infinite mean leaves no number as the rest.
            const double rest = mean[c] - static_cast<double>(near);
            centre[c] = near;
            scale[c] = static_cast<T>(factor);
            shift[c] = static_cast<T>(beta[c] - rest * factor);
        }
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

template <typename T, bool RECTIFY> struct Forward : Job<T> {
    typedef typename Job<T>::Work Work;
    using Job<T>::shape;
    using Job<T>::plan;
    using Job<T>::statistics;
    using Job<T>::found;
    const T *x, *gamma, *beta;
    double epsilon;
    T *y, *mean, *std;

    Forward(const Shape& shape, const T* x, const T* gamma, const T* beta,
            double epsilon, T* y, T* mean, T* std, double* memory,
            Passes passes = BOTH)
        : Job<T>(shape, memory, 3, passes), x(x), gamma(gamma), beta(beta),
          epsilon(epsilon), y(y), mean(mean), std(std) {}

    void first(Index unit, Index piece, const Work& work) {
        double *means = found[2 * piece], *m2 = found[2 * piece + 1];
        if (plan.along_rows)
            return row_moments(x, shape, unit, plan.begin(piece),
                               plan.end(piece), means + unit, m2 + unit);
        const Tile tile = plan.tile(unit, piece, shape);
        const Index channel = unit * plan.channels;
        const bool merge = shape.S > 1;
        double* to = merge ? work.results[0] : means + channel;
        double* to_m2 = merge ? work.results[1] : m2 + channel;
        column_moments(x, shape.columns(), tile, work, to, to_m2);
        if (merge)
            merge_columns(tile, to, to_m2, means + channel, m2 + channel);
        for (Index c = channel; c < channel + tile.width / shape.S; ++c)
            if (!std::isfinite(m2[c]))
                wide_moments(x, shape, c, tile.begin * shape.S,
                             tile.end * shape.S, means + c, m2 + c);
    }

    /* Moments of channels from those of their columns, of as many values. */
    void merge_columns(const Tile& tile, const double* from,
                       const double* from_m2, double* to, double* to_m2) {
        const Index S = shape.S, n = tile.end - tile.begin;
        for (Index c = 0; c < tile.width / S; ++c) {
            double sum = 0, m2 = 0, squares = 0;
            for (Index j = c * S; j < c * S + S; ++j) {
                sum += from[j];
                m2 += from_m2[j];
            }
            to[c] = sum / static_cast<double>(S);
            for (Index j = c * S; j < c * S + S; ++j)
                squares += (from[j] - to[c]) * (from[j] - to[c]);
            to_m2[c] = m2 + static_cast<double>(n) * squares;
        }
    }

    void settle(Index begin, Index end) {
        const double *means = found[0], *m2 = found[1];
        const double count = this->count;
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            const double deviation = std::sqrt(m2[c] / count);
            statistics.mean[c] = means[c];
            statistics.std[c] = deviation;
            statistics.inverse[c] = 1 / (deviation + epsilon);
            mean[c] = static_cast<T>(means[c]);
            std[c] = static_cast<T>(deviation);
        }
        this->set_affine(begin, end, gamma, beta);
    }

    /* Merges the moments of all pieces into those of the first. */
    void merge(Index begin, Index end) {
        double *means = found[0], *m2 = found[1];
        double count = static_cast<double>(plan.end(0));
        for (Index piece = 1; piece < plan.pieces; ++piece) {
            const double *other = found[2 * piece];
            const double *other_m2 = found[2 * piece + 1];
            double n = static_cast<double>(plan.end(piece)
                                           - plan.begin(piece));
            const double part = n / (count + n);
            const double both = count * part * (plan.along_rows ? 1 : shape.S);
            BNLASAGNE_INDEPENDENT
            for (Index c = begin; c < end; ++c) {
                const double delta = other[c] - means[c];
                means[c] += delta * part;
                m2[c] += other_m2[c] + delta * delta * both;
            }
            count += n;
        }
    }

    void second(Index unit, Index piece, const Work& work) {
        if (plan.along_rows)
            return row_normalize<T, RECTIFY>(
                x, y, shape, unit, plan.begin(piece), plan.end(piece),
                this->affine(unit));
        const Tile tile = plan.tile(unit, piece, shape);
        const T* constants[3];
        this->point(constants, 3, tile, work);
        column_normalize<T, RECTIFY>(x, y, shape.columns(), tile, constants);
    }
};

template <typename T, bool RECTIFY> struct Backward : Job<T> {
    typedef typename Job<T>::Work Work;
    using Job<T>::shape;
    using Job<T>::plan;
    using Job<T>::statistics;
    using Job<T>::found;
    const T *x, *gamma, *dy;
    T *dx, *dgamma, *dbeta;

    Backward(const Shape& shape, const T* x, const T* gamma, const T* beta,
             const T* dy, double* memory, T* dx, T* dgamma, T* dbeta,
             Passes passes = BOTH)
        : Job<T>(shape, memory, 7, passes), x(x), gamma(gamma), dy(dy),
          dx(dx), dgamma(dgamma), dbeta(dbeta) {
        this->set_affine(0, shape.C, gamma, beta);
    }

    void first(Index unit, Index piece, const Work& work) {
        double *sum = found[2 * piece], *product = found[2 * piece + 1];
        if (plan.along_rows) {
            TwoSums sums = row_gradient_sums<T, RECTIFY>(
                x, dy, shape, unit, plan.begin(piece), plan.end(piece),
                this->affine(unit));
            sum[unit] = sums.first;
            product[unit] = sums.second;
            return;
        }
        const Tile tile = plan.tile(unit, piece, shape);
        const T* constants[3];
        this->point(constants, 3, tile, work);
        const Index channel = unit * plan.channels;
        const bool merge = shape.S > 1;
        double* to = merge ? work.results[0] : sum + channel;
        double* to_product = merge ? work.results[1] : product + channel;
        column_gradient_sums<T, RECTIFY>(x, dy, shape.columns(), tile,
                                         constants, work, to, to_product);
        if (merge) {
            add_columns(tile, to, sum + channel);
            add_columns(tile, to_product, product + channel);
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

    /* Adds the sums of all pieces to those of the first. */
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
        set_param_gradients(begin, end);
    }

    /* Sets the gradients of the parameters, by this process's values. */
    void set_param_gradients(Index begin, Index end) {
        const double *sums = found[0], *products = found[1];
        const bool empty = shape.count() == 0;
        const T* centre = this->constants[0];
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            const double rest = statistics.mean[c]
                                - static_cast<double>(centre[c]);
            const double product = products[c] - rest * sums[c];
            dgamma[c] = static_cast<T>(
                empty ? 0 : product * statistics.inverse[c]);
            dbeta[c] = static_cast<T>(sums[c]);
        }
    }

    /* Sets constants 3 to 6. */
    void settle(Index begin, Index end) {
        const double *sums = found[0], *products = found[1];
        const double count = this->count;
        const T* centre = this->constants[0];
        T *mean = this->constants[3], *a = this->constants[4];
        T *b = this->constants[5], *c_ = this->constants[6];
        BNLASAGNE_INDEPENDENT
        for (Index c = begin; c < end; ++c) {
            const double inverse = statistics.inverse[c];
            const double std = statistics.std[c];
            const double rest = statistics.mean[c]
                                - static_cast<double>(centre[c]);
            const double product = products[c] - rest * sums[c];
            const double factor = gamma[c] * inverse;
            // The standard deviation has no gradient where it is zero.
            const double slope = std == 0
                ? 0 : -factor * inverse * product / (count * std);
            const double average = sums[c] / count;
            const T near = static_cast<T>(average);
            mean[c] = near;
            a[c] = static_cast<T>(factor);
            b[c] = static_cast<T>(slope);
            c_[c] = static_cast<T>(
                -factor * (average - static_cast<double>(near))
                - slope * rest);
        }
    }

    void second(Index unit, Index piece, const Work& work) {
        if (plan.along_rows)
            return row_gradient<T, RECTIFY>(
                x, dy, dx, shape, unit, plan.begin(piece), plan.end(piece),
                this->gradient(unit));
        const Tile tile = plan.tile(unit, piece, shape);
        const T* constants[7];
        this->point(constants, 7, tile, work);
        column_gradient<T, RECTIFY>(x, dy, dx, shape.columns(), tile,
                                    constants);
    }
};

/* ---- What the Ops call ------------------------------------------------- */

/* An empty S or C would have no columns to walk. */
inline Shape walkable(Shape shape) {
    if (shape.C == 0 || shape.S == 0) shape.M = 0, shape.S = 1;
    return shape;
}

template <typename T, bool RECTIFY>
void forward(Shape shape, const T* x, const T* gamma, const T* beta,
             double epsilon, T* y, T* mean, T* std, double* statistics) {
    Forward<T, RECTIFY> job(walkable(shape), x, gamma, beta, epsilon, y, mean,
                            std, statistics);
    run(job);
}

template <typename T, bool RECTIFY>
void backward(Shape shape, const T* x, const T* gamma, const T* beta,
              const T* dy, double* statistics, T* dx, T* dgamma, T* dbeta) {
    Backward<T, RECTIFY> job(walkable(shape), x, gamma, beta, dy, statistics,
                             dx, dgamma, dbeta);
    run(job);
}

/* The same in parts, for a batch that several processes share. Moments are
 * those of a batch: [count, mean of each channel, sum of squared deviations of
 * each channel]. */

template <typename T>
void find_moments(Shape shape, const T* x, double* moments) {
    shape = walkable(shape);
    std::unique_ptr<double[]> statistics(new double[3 * shape.C]);
    Forward<T, false> job(shape, x, NULL, NULL, 0, NULL, NULL, NULL,
                          statistics.get(), FIRST);
    run(job);
    moments[0] = job.count;
    job.get_found(moments + 1, moments + 1 + shape.C);
}

template <typename T, bool RECTIFY>
void forward_by(Shape shape, const T* x, const T* gamma, const T* beta,
                double epsilon, const double* moments, T* y) {
    shape = walkable(shape);
    const Index C = shape.C;
    std::unique_ptr<double[]> statistics(new double[3 * C]);
    std::unique_ptr<T[]> rounded(new T[2 * C]);
    T *mean = rounded.get(), *std = mean + C;
    Forward<T, RECTIFY> job(shape, x, gamma, beta, epsilon, y, mean, std,
                            statistics.get(), SECOND);
    job.count = moments[0];
    job.set_found(moments + 1, moments + 1 + C);
    run(job);
}

/* The statistics that the gradient wants to know. */
inline void set_statistics(Statistics to, Index C, const double* moments,
                           double epsilon) {
    for (Index c = 0; c < C; ++c) {
        to.mean[c] = moments[1 + c];
        to.std[c] = std::sqrt(moments[1 + C + c] / moments[0]);
        to.inverse[c] = 1 / (to.std[c] + epsilon);
    }
}

/* Sums are, for each channel, that of the gradient that reaches the normalized
 * values, and then that of its product with their deviations. */
template <typename T, bool RECTIFY>
void find_gradient_sums(Shape shape, const T* x, const T* gamma, const T* beta,
                        double epsilon, const T* dy, const double* moments,
                        double* sums, T* dgamma, T* dbeta) {
    shape = walkable(shape);
    const Index C = shape.C;
    std::unique_ptr<double[]> statistics(new double[3 * C]);
    set_statistics(Statistics(statistics.get(), C), C, moments, epsilon);
    Backward<T, RECTIFY> job(shape, x, gamma, beta, dy, statistics.get(),
                             NULL, dgamma, dbeta, FIRST);
    run(job);
    job.get_found(sums, sums + C);
}

template <typename T, bool RECTIFY>
void backward_by(Shape shape, const T* x, const T* gamma, const T* beta,
                 double epsilon, const T* dy, const double* moments,
                 const double* sums, T* dx) {
    shape = walkable(shape);
    const Index C = shape.C;
    std::unique_ptr<double[]> statistics(new double[3 * C]);
    set_statistics(Statistics(statistics.get(), C), C, moments, epsilon);
    Backward<T, RECTIFY> job(shape, x, gamma, beta, dy, statistics.get(), dx,
                             NULL, NULL, SECOND);
    job.count = moments[0];
    job.set_found(sums, sums + C);
    run(job);
}

/* Normalizes by given statistics, in the order of the memory. */
template <typename T, bool RECTIFY>
void apply(Shape shape, const T* x, const T* mean, const T* std,
           const T* gamma, const T* beta, double epsilon, T* y) {
    shape = walkable(shape);
    const Index C = shape.C, S = shape.S, width = shape.columns();
    Table<T> constants(3, C);
    std::copy(mean, mean + C, constants[0]);
    std::copy(beta, beta + C, constants[2]);
    T* scale = constants[1];
    BNLASAGNE_INDEPENDENT
    for (Index c = 0; c < C; ++c)
        scale[c] = static_cast<T>(gamma[c] / (std[c] + epsilon));
    const bool parallel = shape.size() * Index(sizeof(T)) > SMALL;
    (void)parallel;
    if (S >= Vector<T>::size) {
        BNLASAGNE_PRAGMA(omp parallel for schedule(static) if (parallel))
        for (Index row = 0; row < shape.M * C; ++row) {
            const Index c = row % C;
            const Affine<T> affine = {constants[0][c], scale[c],
                                      constants[2][c]};
            normalize_run<T, RECTIFY>(x + row * S, y + row * S, S, affine);
        }
        return;
    }
    Table<T> columns(3, S == 1 ? 0 : width);
    const T* all[3];
    for (int k = 0; k < 3; ++k) {
        if (S > 1) spread(constants[k], width, S, columns[k]);
        all[k] = S > 1 ? columns[k] : constants[k];
    }
    const Index groups = (shape.M + APPLY_ROWS - 1) / APPLY_ROWS;
    BNLASAGNE_PRAGMA(omp parallel for schedule(static) if (parallel))
    for (Index i = 0; i < groups; ++i) {
        const Tile tile = {0, width, i * APPLY_ROWS,
                           std::min((i + 1) * APPLY_ROWS, shape.M)};
        column_normalize<T, RECTIFY>(x, y, width, tile, all);
    }
}

}  // namespace bnlasagne

#endif
