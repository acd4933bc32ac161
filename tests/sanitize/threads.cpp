/* A stand-in for GCC's libgomp, whose waiting the ThreadSanitizer cannot see.
 *
 * It has what GCC calls for the loops of the kernels, on std::thread. Threads
 * start and end with each parallel region.
 */
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

int wanted = 1;

struct Team {
    const int size;
    std::mutex mutex;
    std::condition_variable all_here;
    int waiting = 0, meetings = 0;
    // Of the loop, or of the region for one thread, that the team shares.
    long next = 0, end = 0, chunk = 0, left = 0;
    bool is_open = false;

    explicit Team(int size) : size(size) {}

    void meet() {
        std::unique_lock<std::mutex> lock(mutex);
        const int meeting = meetings;
        if (++waiting == size) {
            waiting = 0;
            ++meetings;
            all_here.notify_all();
        }
        all_here.wait(lock, [&] { return meetings != meeting; });
    }
};

Team alone(1);
thread_local Team* team = &alone;
thread_local int number = 0;

}  // namespace

extern "C" {

void omp_set_num_threads(int threads) { wanted = threads; }
int omp_get_num_threads() { return team->size; }
int omp_get_thread_num() { return number; }

void GOMP_parallel(void (*work)(void*), void* data, unsigned threads,
                   unsigned) {
    Team* const outer = team;
    const int outer_number = number;
    // A region inside of another has one thread.
    Team own(threads ? threads : outer->size > 1 ? 1 : wanted);
    const auto take_part = [&](int i) {
        team = &own;
        number = i;
        work(data);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < own.size; ++i) others.emplace_back(take_part, i);
    take_part(0);
    for (std::thread& other : others) other.join();
    team = outer;
    number = outer_number;
}

void GOMP_barrier() { team->meet(); }

bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* end) {
    std::lock_guard<std::mutex> lock(team->mutex);
    if (team->next >= team->end) return false;
    *begin = team->next;
    *end = team->next = std::min(team->next + team->chunk, team->end);
    return true;
}

/* The last thread that leaves a loop lets the next one begin. */
bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long step,
                                          long chunk, long* from, long* to) {
    {
        std::lock_guard<std::mutex> lock(team->mutex);
        if (!team->is_open) {
            team->next = begin;
            team->end = end;
            team->chunk = chunk * step;
            team->is_open = true;
        }
    }
    return GOMP_loop_nonmonotonic_dynamic_next(from, to);
}

void GOMP_loop_end_nowait() {
    std::lock_guard<std::mutex> lock(team->mutex);
    if (++team->left == team->size) {
        team->left = 0;
        team->is_open = false;
    }
}

void GOMP_loop_end() {
    GOMP_loop_end_nowait();
    team->meet();
}

bool GOMP_single_start() {
    std::lock_guard<std::mutex> lock(team->mutex);
    const bool is_first = !team->is_open;
    team->is_open = true;
    if (++team->left == team->size) {
        team->left = 0;
        team->is_open = false;
    }
    return is_first;
}

}  // extern "C"
