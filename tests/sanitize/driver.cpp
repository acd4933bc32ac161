/* Run the kernels on random batches, and compare with long double.
 *
 *     driver SEED FIRST COUNT THREADS
 *
 * runs so many cases from a number on. Each has a seed of its own, so that one
 * that fails can be run alone. The exit status is 1 if a case fails, or gives
 * other bits on several threads than on one. The sources of the kernels stand
 * in front of this file.
 */
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

extern "C" void omp_set_num_threads(int);

using namespace bnlasagne;
typedef long double Exact;

/* ---- Random cases ------------------------------------------------------- */

struct Random {
    std::mt19937_64 bits;
    Random(unsigned seed, unsigned number) {
        std::seed_seq both{seed, number};
        bits.seed(both);
    }
    /* From 0 to, and without, n. */
    Index below(Index n) {
        return static_cast<Index>(bits() % static_cast<std::uint64_t>(n));
    }
    bool one_in(Index n) { return below(n) == 0; }
    double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    double normal() { return std::normal_distribution<double>()(bits); }
    template <typename V> V of(std::initializer_list<V> values) {
        return values.begin()[below(static_cast<Index>(values.size()))];
    }
    /* Ten to a power within these. */
    double scale(double least, double most) {
        return one_in(2) ? 1 : std::pow(10, least + unit() * (most - least));
    }
    /* A size of at most so many; often next to where kernels change ways. */
    Index size(Index most) {
        if (most < 1) return 0;
        const Index edge = of<Index>({1, 2, 4, 8, 16, 32, 64, 128, 256, 512,
                                      2048, 4096, 16384});
        Index drawn = one_in(3) ? below(most) + 1
            : one_in(2) ? below(std::min(most, Index(12))) + 1
            : edge + below(3) - 1;
        if (one_in(50)) drawn = 0;
        return std::min(drawn, most);
    }
};

#ifdef __SANITIZE_ADDRESS__

/* The sanitizer guards both ends. */
struct Memory {
    std::unique_ptr<char[]> bytes;
    Memory(std::size_t size, std::size_t spare)
        : bytes(new char[spare + size]), begin(bytes.get() + spare) {}
    char* begin;
};

#else

/* Pages with one behind them that ends the program if it is touched. */
struct Memory {
    struct Unmap {
        std::size_t size;
        void operator()(char* pages) const { munmap(pages, size); }
    };
    std::unique_ptr<char, Unmap> pages;
    char* begin;
    Memory(std::size_t size, std::size_t spare) {
        const std::size_t page = sysconf(_SC_PAGESIZE);
        const std::size_t own = (size + spare + page - 1) / page * page;
        void* const made = mmap(NULL, own + page, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED) std::abort();
        pages = std::unique_ptr<char, Unmap>(static_cast<char*>(made),
                                             Unmap{own + page});
        mprotect(pages.get() + own, page, PROT_NONE);
        begin = pages.get() + own - spare - size;
    }
};

#endif

/* An array that may start between two vectors. Without an offset, it has no
 * value to spare at its end. It is filled with NaN: each value of an output has
 * to be written. */
template <typename V> struct Array {
    Memory memory;
    V* data;
    Index n;
    Array(Index n, Index offset = 0)
        : memory(n * sizeof(V), offset * sizeof(V)),
          data(reinterpret_cast<V*>(memory.begin)), n(n) {
        std::memset(static_cast<void*>(data), 255, n * sizeof(V));
    }
    V& operator[](Index i) const { return data[i]; }
    bool same_bits(const Array& other) const {
        return n == 0 || !std::memcmp(data, other.data, n * sizeof(V));
    }
};

enum Masks { NONE, ONE, ROWS, PLACES, BOTH_WAYS };

template <typename T> struct Case {
    Batch batch;
    Index size, example_values;  // of virtual batches; 0 without
    double epsilon, offset;
    Array<T> x, dy, gamma, beta;
    Array<unsigned char> counts;
    Index nan_channel;  // or -1

    static Shape draw_shape(Random& random) {
        // Some are worth several threads.
        Index budget = random.one_in(30) ? 200000
            : random.one_in(6) ? 20000 : 1500;
        Shape shape = {1, 1, 1};
        Index* sizes[] = {&shape.M, &shape.C, &shape.S};
        std::shuffle(sizes, sizes + 3, random.bits);
        for (Index* size : sizes) {
            *size = random.one_in(5) ? 1 : random.size(budget);
            budget /= std::max(*size, Index(1));
        }
        return shape;
    }

    static Batch draw_batch(Random& random, Index& size, Index& values) {
        Batch made = {draw_shape(random), {NULL, false, false}, 1, 0, 1};
        size = 0;
        // Without rows, examples may only be along S if there is one channel.
        const bool in_m = made.shape.M != 1;
        if (!in_m && made.shape.C != 1) return made;
        Index& along = in_m ? made.shape.M : made.shape.S;
        const Index each = random.of<Index>({1, 1, 2, 3, 7});
        made.examples = along / each;
        along = made.examples * each;
        values = each * (in_m ? made.shape.S : 1);
        if (in_m && made.shape.M == 1) return made;
        if (random.one_in(3)) {
            size = random.one_in(3) ? made.examples + random.below(3) - 1
                : random.size(std::max(made.examples, Index(1)));
            size = std::max(size, Index(1));
            made.cut(size, values);
        }
        return made;
    }

    Case(Random& random, bool masked)
        : batch(draw_batch(random, size, example_values)),
          x(batch.shape.size(), random.below(5)), dy(x.n, random.below(5)),
          gamma(batch.shape.C), beta(batch.shape.C), counts(0),
          nan_channel(-1) {
        if (masked) draw_mask(random);
        draw_values(random);
    }

    void draw_mask(Random& random) {
        const Masks kind = random.of({ONE, ROWS, PLACES, BOTH_WAYS});
        const Shape& shape = batch.shape;
        batch.mask.along_m = kind == ROWS || kind == BOTH_WAYS;
        batch.mask.along_s = kind == PLACES || kind == BOTH_WAYS;
        const Index M = batch.mask.along_m ? shape.M : 1;
        const Index S = batch.mask.along_s ? shape.S : 1;
        const double share = random.of({0., 0.05, 0.5, 0.95, 1.});
        // Padding at the end, or at the start, or anywhere.
        const bool lengths = random.one_in(2), at_start = random.one_in(2);
        counts = Array<unsigned char>(M * S);
        for (Index m = 0; m < M; ++m) {
            const Index length = random.below(S + 1);
            for (Index s = 0; s < S; ++s)
                counts[m * S + s] = lengths && S > 1
                    ? (s < length) != at_start : random.unit() < share;
        }
        batch.mask.counts = counts.data;
    }

    bool is_counted(Index m, Index s) const {
        const Mask& mask = batch.mask;
        const Index S = mask.along_s ? batch.shape.S : 1;
        return !mask.counts || mask.counts[(mask.along_m ? m * S : 0)
                                           + (mask.along_s ? s : 0)];
    }

    void draw_values(Random& random) {
        const Shape& shape = batch.shape;
        const double most = sizeof(T) == 4 ? 30 : 120;
        const double scale = random.scale(-most, most);
        const double slope = random.scale(-8, 8);
        offset = random.of({0., 1., 100., 1e4}) * scale;
        epsilon = random.of({0.01, 1e-5, 0.01 * scale, scale});
        const bool constant = random.one_in(20), outlier = random.one_in(10);
        for (Index c = 0; c < shape.C; ++c) {
            gamma[c] = static_cast<T>(random.normal());
            beta[c] = static_cast<T>(random.normal());
            const double own = scale * (1 + c % 3);
            const double centre = offset * random.normal();
            for (Index m = 0; m < shape.M; ++m)
                for (Index s = 0; s < shape.S; ++s) {
                    const Index i = (m * shape.C + c) * shape.S + s;
                    x[i] = static_cast<T>(
                        centre + own * (constant ? 1 : random.normal()));
                    dy[i] = static_cast<T>(slope * random.normal());
                    if (!is_counted(m, s)) spoil(random, i);
                }
        }
        if (outlier && x.n) x[random.below(x.n)] *= T(1e4);
        if (constant && x.n && random.one_in(2)) nudge(x[random.below(x.n)]);
        if (random.one_in(20) && x.n) spoil_channel(random);
    }

    static void nudge(T& value) { value = std::nextafter(value, T(0)); }

    /* What does not count may be anything. */
    void spoil(Random& random, Index i) {
        const T nan = std::numeric_limits<T>::quiet_NaN();
        const T inf = std::numeric_limits<T>::infinity();
        x[i] = random.of({nan, inf, -inf, x[i], T(0)});
        dy[i] = random.of({nan, inf, -inf, dy[i], T(0)});
    }

    void spoil_channel(Random& random) {
        const Index i = random.below(x.n), S = batch.shape.S;
        if (!is_counted(i / batch.shape.columns(), i % S)) return;
        x[i] = std::numeric_limits<T>::quiet_NaN();
        nan_channel = i / S % batch.shape.C;
    }
};

/* ---- What is expected --------------------------------------------------- */

/* Virtual batches: of so many examples, from the first on. A rest that is too
 * small for statistics belongs to the last. */
template <typename T>
std::vector<Index> ends_of(const Case<T>& made) {
    std::vector<Index> ends;
    const Index examples = made.batch.examples;
    for (Index end = made.size; made.size && end < examples; end += made.size)
        if ((examples - end) * std::max(made.example_values, Index(1))
            >= LEAST_VALUES)
            ends.push_back(end);
    ends.push_back(examples);
    return ends;
}

/* The places of a channel's values that count, of some examples. */
template <typename T>
std::vector<Index> places(const Case<T>& made, Index c, Index begin,
                          Index end) {
    const Shape& shape = made.batch.shape;
    const bool in_m = shape.M != 1;
    const Index own = (in_m ? shape.M : shape.S)
                      / std::max(made.batch.examples, Index(1));
    const bool cut = made.size > 0;
    const Index m0 = cut && in_m ? begin * own : 0;
    const Index m1 = cut && in_m ? end * own : shape.M;
    const Index s0 = cut && !in_m ? begin * own : 0;
    const Index s1 = cut && !in_m ? end * own : shape.S;
    std::vector<Index> found;
    for (Index m = m0; m < m1; ++m)
        for (Index s = s0; s < s1; ++s)
            if (made.is_counted(m, s))
                found.push_back((m * shape.C + c) * shape.S + s);
    return found;
}

/* Units of the last place that sums in a type may be wrong by: they go through
 * some hundred values in one register. */
const Exact ULPS = 128;

/* `spread` is what an error of the mean is measured by. The kernels know the mean
 * in double only. */
struct Moments { Exact mean, std, spread; };
template <typename T>
Moments moments_of(const T* x, const std::vector<Index>& at) {
    const Exact n = static_cast<Exact>(std::max(at.size(), std::size_t(1)));
    Exact sum = 0, squares = 0;
    const Exact near = at.empty() ? 0 : x[at[0]];
    for (Index i : at) sum += x[i] - near;
    const Exact mean = near + sum / n;
    for (Index i : at) squares += (x[i] - mean) * (x[i] - mean);
    const Exact std = sqrtl(squares / n);
    const Moments made = {
        mean, std, std + (sizeof(T) == 8 ? fabsl(mean) / 2 : 0)};
    return made;
}

/* ---- Comparing ---------------------------------------------------------- */

struct Judge {
    const char* where;
    std::string wrong;
    Exact worst;

    /* `size` is the sum of the sizes of what a value was computed from. */
    template <typename T>
    void close(const char* what, Index i, T found, Exact expected,
               Exact size) {
        typedef std::numeric_limits<T> Limits;
        const Exact bound = ULPS * Limits::epsilon() * size + Limits::min();
        if (!(fabsl(expected) + bound < Limits::max())) return;
        const Exact off = fabsl(found - expected);
        worst = std::max(worst, off / bound);
        if (off <= bound) return;
        char text[300];
        std::snprintf(text, sizeof(text),
                      "%s: %s[%td] is %.9Lg, must be %.9Lg within %.3Lg",
                      where, what, i, static_cast<Exact>(found), expected,
                      bound);
        say(text);
    }
    void require(const char* what, Index i, bool is_so) {
        if (is_so) return;
        char text[300];
        std::snprintf(text, sizeof(text), "%s: %s[%td]", where, what, i);
        say(text);
    }
    void say(const char* text) { if (wrong.empty()) wrong = text; }
};

template <typename T> struct Outputs {
    Index V, C;
    Array<T> y, mean, std, dx, dgamma, dbeta;
    Array<double> statistics;
    Array<std::int64_t> counts;
    Outputs(const Batch& batch, Index offset)
        : V(batch.number), C(batch.shape.C), y(batch.shape.size(), offset),
          mean(V * C), std(V * C), dx(y.n, offset), dgamma(C), dbeta(C),
          statistics(2 * V * C), counts(V) {}
    bool same_bits(const Outputs& other) const {
        return y.same_bits(other.y) && mean.same_bits(other.mean)
            && std.same_bits(other.std) && dx.same_bits(other.dx)
            && dgamma.same_bits(other.dgamma) && dbeta.same_bits(other.dbeta)
            && counts.same_bits(other.counts);
    }
};

/* Checks outputs of a case, channel by channel. */
template <typename T, bool RECTIFY> struct Expected {
    const Case<T>& made;
    const Outputs<T>& out;
    Judge& judge;

    void check() {
        const std::vector<Index> ends = ends_of(made);
        judge.require("number of virtual batches", 0,
                      static_cast<Index>(ends.size()) == out.V);
        if (!judge.wrong.empty()) return;
        for (Index c = 0; c < out.C; ++c)
            if (c != made.nan_channel) check_channel(c, ends);
            else check_nan(c);
        check_rest();
    }

    void check_channel(Index c, const std::vector<Index>& ends) {
        Exact sum = 0, product = 0, sizes = 0, product_sizes = 0;
        for (Index v = 0; v < out.V; ++v) {
            const std::vector<Index> at = places(
                made, c, v ? ends[v - 1] : 0, ends[v]);
            judge.require("count", v, out.counts[v]
                          == static_cast<std::int64_t>(at.size()));
            const Moments own = moments_of(made.x.data, at);
            // Nothing has no mean, unless a mask says so.
            if (!at.empty() || made.batch.mask.counts)
                check_statistics(v * out.C + c, own);
            else
                judge.require("mean must be NaN", c, std::isnan(out.mean[c]));
            check_forward(c, at, own);
            check_backward(c, at, own);
            for (Index i : at) {
                const Exact g = reaching(i);
                const Exact z = deviation(i, own) / (own.std + made.epsilon);
                sum += g, sizes += fabsl(g);
                product += g * z;
                product_sizes += fabsl(g) * (fabsl(z) + own.spread
                                             / (own.std + made.epsilon));
            }
        }
        judge.close("dbeta", c, out.dbeta[c], sum, sizes);
        judge.close("dgamma", c, out.dgamma[c], product, product_sizes);
    }

    Exact deviation(Index i, const Moments& own) const {
        return made.x[i] - own.mean;
    }

    /* The rectifier's gradient is that of the very output. */
    Exact reaching(Index i) const {
        return !RECTIFY || out.y[i] > 0 ? made.dy[i] : 0;
    }

    void check_statistics(Index at, const Moments& own) {
        judge.close("mean", at, out.mean[at], own.mean,
                    own.spread + fabsl(own.mean) / ULPS);
        judge.close("std", at, out.std[at], own.std, own.spread);
    }

    void check_forward(Index c, const std::vector<Index>& at,
                       const Moments& own) {
        const Exact factor = made.gamma[c] / (own.std + made.epsilon);
        for (Index i : at) {
            const Exact y = deviation(i, own) * factor + made.beta[c];
            judge.close("y", i, out.y[i], RECTIFY && y < 0 ? 0 : y,
                        fabsl(factor) * (fabsl(deviation(i, own)) + own.spread)
                        + fabsl(Exact(made.beta[c])));
        }
    }

    void check_backward(Index c, const std::vector<Index>& at,
                        const Moments& own) {
        const Exact n = static_cast<Exact>(at.size());
        const Exact factor = made.gamma[c] / (own.std + made.epsilon);
        Exact mean = 0, slope = 0, size = 0, slope_size = 0;
        for (Index i : at) {
            mean += reaching(i) / n;
            size += fabsl(reaching(i)) / n;
            slope += reaching(i) * deviation(i, own) / n;
            slope_size += fabsl(reaching(i))
                          * (fabsl(deviation(i, own)) + own.spread) / n;
        }
        const Exact by = own.std > 0
            ? 1 / (own.std * (own.std + made.epsilon)) : 0;
        for (Index i : at) {
            const Exact away = deviation(i, own), g = reaching(i);
            judge.close("dx", i, out.dx[i],
                        factor * (g - mean - away * slope * by),
                        fabsl(factor) * (fabsl(g) + size
                            + (fabsl(away) + own.spread) * slope_size * by));
        }
    }

    void check_nan(Index c) {
        const Shape& shape = made.batch.shape;
        for (Index i = c * shape.S; i < out.y.n; i += shape.columns())
            for (Index s = 0; s < shape.S; ++s)
                if (std::isnan(made.x[i + s])
                    && made.is_counted(i / shape.columns(), s))
                    judge.require("NaN must stay in y", i + s,
                                  std::isnan(out.y[i + s]));
    }

    /* What does not count is zero. */
    void check_rest() {
        const Shape& shape = made.batch.shape;
        for (Index i = 0; i < out.y.n; ++i)
            if (!made.is_counted(i / shape.columns(), i % shape.S)) {
                judge.require("y must be 0 where the mask is", i,
                              out.y[i] == 0);
                judge.require("dx must be 0 where the mask is", i,
                              out.dx[i] == 0);
            }
    }
};

/* ---- Running the kernels ------------------------------------------------ */

template <typename T, bool RECTIFY, bool MASKED> struct Runner {
    const Case<T>& made;
    Judge& judge;
    Index offset;

    const Batch& batch() const { return made.batch; }

    Outputs<T> train() {
        Outputs<T> out(batch(), offset);
        forward<T, RECTIFY, MASKED>(
            batch(), made.x.data, made.gamma.data, made.beta.data,
            made.epsilon, out.y.data, out.mean.data, out.std.data,
            out.statistics.data, out.counts.data);
        backward<T, RECTIFY, MASKED>(
            batch(), made.x.data, made.gamma.data, made.beta.data,
            made.epsilon, made.dy.data, out.statistics.data, out.dx.data,
            out.dgamma.data, out.dbeta.data);
        return out;
    }

    /* The first pass alone finds the same statistics. */
    void find(Outputs<T>& out, const Outputs<T>& trained) {
        const Index C = out.C, each = 1 + 2 * C;
        Array<double> moments(out.V * each);
        find_statistics<T, MASKED>(
            batch(), made.x.data, out.mean.data, out.std.data,
            out.statistics.data, moments.data, out.counts.data);
        for (Index v = 0; v < out.V; ++v) {
            const double* own = moments.data + v * each;
            judge.require("count", v, out.counts[v] == trained.counts[v]);
            judge.require("count among the moments", v, !C
                || own[0] == static_cast<double>(out.counts[v]));
            for (Index c = 0; c < C; ++c) {
                if (c == made.nan_channel || !own[0]) continue;
                const Index i = v * C + c;
                judge.require("mean", i, out.mean[i] == trained.mean[i]);
                judge.require("std", i, out.std[i] == trained.std[i]);
                judge.close("m2", i, static_cast<T>(std::sqrt(
                                own[1 + C + c] / own[0])),
                            out.std[i], out.std[i]);
                judge.close("mean of moments", i, static_cast<T>(own[1 + c]),
                            out.mean[i], fabsl(Exact(out.mean[i])));
            }
        }
    }

    /* The same in two passes, as ranks do it: here, two of the same batch. */
    Outputs<T> train_in_passes(const Outputs<T>& trained) {
        Outputs<T> out(batch(), offset);
        find(out, trained);
        if (out.V != 1) return out;
        Array<double> sums(1 + 2 * out.C);
        forward_by<T, RECTIFY, MASKED>(
            batch(), made.x.data, made.gamma.data, made.beta.data,
            made.epsilon, out.statistics.data, out.y.data);
        find_gradient_sums<T, RECTIFY, MASKED>(
            batch(), made.x.data, made.gamma.data, made.beta.data,
            made.epsilon, made.dy.data, out.statistics.data, sums.data,
            out.dgamma.data, out.dbeta.data);
        for (Index i = 0; i < sums.n; ++i) sums[i] *= 2;
        backward_by<T, RECTIFY, MASKED>(
            batch(), made.x.data, made.gamma.data, made.beta.data,
            made.epsilon, made.dy.data, out.statistics.data, sums.data,
            out.dx.data);
        return out;
    }

    void check_apply(const Outputs<T>& trained) {
        Array<T> y(trained.y.n, offset);
        const Shape& shape = batch().shape;
        apply<T, RECTIFY, MASKED>(
            batch(), made.x.data, trained.mean.data, trained.std.data,
            made.gamma.data, made.beta.data, made.epsilon, y.data);
        for (Index i = 0; i < y.n; ++i) {
            const Index c = i / shape.S % shape.C;
            if (!made.is_counted(i / shape.columns(), i % shape.S)) {
                judge.require("y by averages must be 0", i, y[i] == 0);
                continue;
            }
            if (c == made.nan_channel) continue;
            const Exact factor = made.gamma[c]
                / (Exact(trained.std[c]) + made.epsilon);
            const Exact part = factor * (Exact(made.x[i]) - trained.mean[c]);
            const Exact sum = part + made.beta[c];
            judge.close("y by averages", i, y[i],
                        RECTIFY && sum < 0 ? 0 : sum,
                        fabsl(part) + fabsl(Exact(made.beta[c])));
        }
    }

    /* Statistics that are not finite move no average. */
    void check_average(const Outputs<T>& trained, Random& random) {
        const double alpha = random.of({0., 0.1, 0.5, 1.});
        const Index all = trained.V * trained.C;
        std::vector<T> found[2] = {
            std::vector<T>(trained.mean.data, trained.mean.data + all),
            std::vector<T>(trained.std.data, trained.std.data + all)};
        typedef std::numeric_limits<T> Limits;
        if (all && random.one_in(4))
            found[random.below(2)][random.below(all)] = random.of(
                {Limits::infinity(), -Limits::infinity(),
                 Limits::quiet_NaN(), Limits::max()});
        Array<T> average(trained.C), moved(trained.C);
        for (Index c = 0; c < trained.C; ++c) average[c] = T(1 + c);
        const T* both[] = {found[0].data(), found[1].data()};
        move_average<T>(average.data, trained.counts.data, trained.V, both, 2,
                        alpha, trained.C, moved.data);
        std::vector<Exact> expected(average.data, average.data + trained.C);
        std::vector<Exact> sizes(expected);
        for (Index v = 0; v < trained.V; ++v) {
            bool usable = trained.counts[v] >= LEAST_VALUES;
            for (Index c = v * trained.C; c < (v + 1) * trained.C; ++c)
                usable &= std::isfinite(found[0][c])
                          && std::isfinite(found[1][c]);
            for (Index c = 0; usable && c < trained.C; ++c) {
                const Exact next = found[0][v * trained.C + c];
                expected[c] = (1 - Exact(alpha)) * expected[c] + alpha * next;
                sizes[c] = std::max(sizes[c], fabsl(next));
            }
        }
        for (Index c = 0; c < trained.C; ++c)
            judge.close("average", c, moved[c], expected[c], sizes[c]);
    }

    void run(int threads, Random& random) {
        omp_set_num_threads(1);
        const Outputs<T> trained = train();
        omp_set_num_threads(threads);
        judge.require("bits on several threads", threads,
                      train().same_bits(trained));
        judge.where = "in one pass";
        Expected<T, RECTIFY>{made, trained, judge}.check();
        check_average(trained, random);
        judge.where = "in passes";
        const Outputs<T> other = train_in_passes(trained);
        if (trained.V != 1) return;
        Expected<T, RECTIFY>{made, other, judge}.check();
        judge.where = "by averages";
        check_apply(trained);
    }
};

template <typename T, bool RECTIFY, bool MASKED>
void run_case(Random& random, int threads, Judge& judge) {
    const Case<T> made(random, MASKED);
    const Batch& batch = made.batch;
    Runner<T, RECTIFY, MASKED>{made, judge, random.below(5)}.run(threads,
                                                                 random);
    if (judge.wrong.empty()) return;
    char text[300];
    std::snprintf(
        text, sizeof(text),
        "\n  %s%s, [%td][%td][%td], mask %d %d, %td examples, "
        "virtual batches of %td, epsilon %g, offset %g, channel of NaN %td",
        sizeof(T) == 4 ? "float" : "double", RECTIFY ? ", rectified" : "",
        batch.shape.M, batch.shape.C, batch.shape.S, batch.mask.along_m,
        batch.mask.along_s, batch.examples, made.size, made.epsilon,
        made.offset, made.nan_channel);
    judge.wrong += text;
}

int main(int, char** arguments) {
    const unsigned seed = std::strtoul(arguments[1], NULL, 10);
    const unsigned first = std::strtoul(arguments[2], NULL, 10);
    const unsigned count = std::strtoul(arguments[3], NULL, 10);
    const int most = std::atoi(arguments[4]);
    void (*const runs[])(Random&, int, Judge&) = {
        run_case<float, false, false>, run_case<float, true, false>,
        run_case<float, false, true>, run_case<float, true, true>,
        run_case<double, false, false>, run_case<double, true, false>,
        run_case<double, false, true>, run_case<double, true, true>};
    home = getpid();
    Exact worst = 0;
    for (unsigned number = first; number < first + count; ++number) {
        Random random(seed, number);
        Judge judge = {"", "", 0};
        const int threads = 1 + static_cast<int>(random.below(most));
        runs[random.below(8)](random, threads, judge);
        worst = std::max(worst, judge.worst);
        if (judge.wrong.empty()) continue;
        std::printf("Seed %u, case %u, %d threads: %s\n", seed, number,
                    threads, judge.wrong.c_str());
        return 1;
    }
    std::printf("%u cases passed; the largest error was %.2Lf of the bound\n",
                count, worst);
    return 0;
}
