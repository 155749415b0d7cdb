#include "parallel/pool.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "environment.hpp"
#include "kernels/task.hpp"

namespace normx {
namespace {

struct Job {
  Body body;
  const void* context;
  std::int64_t units, grain;
  std::atomic<std::int64_t> next{0};

  void work(char* scratch) {
    for (;;) {
      const std::int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
      if (first >= units) return;
      body(context, first, std::min(first + grain, units), scratch);
    }
  }
};

// How long a thread stays awake for what is likely to happen soon: for workers the next call, for the caller the end of the
// workers' last pieces. To wake a sleeper took 30 µs on a virtual Granite Rapids, and with that calls of 64 to 256 rows of 1024
// floats took 1.2 to 1.8 times as long on two threads as on one. Expected of staying awake: 1.3 to 1.8 times as fast as one.
// Two threads over one there, in calls that follow each other (and in calls 100 µs apart, by when the workers sleep):
//
//   rows          64           128          256          512          1024
//   sleeping      0.62 (0.60)  0.60 (0.77)  0.83 (1.45)  1.13 (1.63)  1.43 (1.44)
//   awake 50 µs   1.44 (0.62)  1.45 (0.93)  1.44 (1.16)  1.89 (1.49)  1.93 (1.76)
constexpr std::chrono::microseconds patience{50};

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class F> void stay_awake_until(F&& happened) {
  const auto end = std::chrono::steady_clock::now() + patience;
  do {
    for (int i = 0; i < 16; ++i) {
      if (happened()) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
}

class Pool {
 public:
  // The calling thread and at most `helpers` workers. False if the workers are busy with another call.
  bool run(Job& job, int helpers) {
    const std::unique_lock busy(caller, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    {
      const std::lock_guard lock(mutex);
      while (workers < helpers && start_worker()) ++workers;
      current = &job;
      seats = std::min(helpers, workers);
    }
    wake.notify_all();
    job.work(scratch());
    std::unique_lock lock(mutex);
    seats = 0;  // who wakes up from now on has come too late, and sleeps again
    if (active > 0) {
      lock.unlock();
      stay_awake_until([&] { return active == 0; });
      lock.lock();
    }
    done.wait(lock, [&] { return active == 0; });
    return true;
  }

 private:
  bool start_worker() {
    try {
      std::thread([this] { serve(); }).detach();
      return true;
    } catch (const std::system_error&) {  // no more threads to be had: the call goes on with fewer
      return false;
    }
  }

  void serve() {
    char* mine;
    try {
      mine = scratch();
    } catch (const std::bad_alloc&) {
      return;
    }
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return seats > 0; });
      Job& job = *current;
      --seats;
      ++active;
      lock.unlock();
      job.work(mine);
      lock.lock();
      if (--active == 0) done.notify_one();
      lock.unlock();
      stay_awake_until([&] { return seats > 0; });
      lock.lock();
    }
  }

  std::mutex caller, mutex;
  std::condition_variable wake, done;
  Job* current = nullptr;
  int workers = 0;
  // Changed with the mutex held, looked at without it too.
  std::atomic<int> seats{0}, active{0};
};

std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  if (Pool* p = pool.load(std::memory_order_acquire)) return *p;
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });  // the child has no workers
  (void)registered;
  Pool* fresh = new Pool;
  Pool* expected = nullptr;
  if (pool.compare_exchange_strong(expected, fresh)) return *fresh;
  delete fresh;
  return *expected;
}

int default_threads() {
  if (const int k = environment_number("NORMX_NUM_THREADS", 1, 0)) return k;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::atomic<int> threads{0};  // 0: not chosen yet

}  // namespace

int num_threads() {
  int k = threads.load(std::memory_order_relaxed);
  if (!k) {
    k = default_threads();
    threads.store(k, std::memory_order_relaxed);
  }
  return k;
}

void set_num_threads(int k) {
  if (k < 1) throw std::invalid_argument("set_num_threads: at least 1 thread was wanted, not " + std::to_string(k));
  threads.store(k, std::memory_order_relaxed);
}

char* scratch() {
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<char, Free> mine;
  if (!mine) mine.reset(static_cast<char*>(::operator new(scratch_bytes, std::align_val_t{64})));
  return mine.get();
}

void parallel_for(std::int64_t units, std::int64_t grain, Body body, const void* context) {
  const std::int64_t pieces = (units + grain - 1) / grain;
  const int helpers = static_cast<int>(std::min<std::int64_t>(num_threads(), pieces)) - 1;
  char* const mine = scratch();
  if (helpers > 0) {
    Job job{body, context, units, grain};
    if (the_pool().run(job, helpers)) return;
  }
  body(context, 0, units, mine);
}

}  // namespace normx

// How threadpoolctl knows this library from others whose files have the same name.
extern "C" __attribute__((visibility("default"))) const char normx_thread_pool[] = "parallel/pool.hpp";
