// Threads for independent pieces of work: std::thread, no OpenMP, so that no second OpenMP runtime enters the process.
//
// Workers start at first need, and sleep when there has been nothing to do for a moment. The caller works too. A second caller
// that finds the workers busy does all of its work itself. After a fork the child starts workers of its own. At exit the sleeping
// workers are left behind: nothing they could touch is ever destroyed.
#pragma once

#include <cstdint>

namespace normx {

int num_threads();            // std::runtime_error if NORMX_NUM_THREADS, read at first use, is not a number ≥ 1
void set_num_threads(int k);  // std::invalid_argument below 1

// This thread's scratch: scratch_bytes, aligned to a cache line. May throw std::bad_alloc at a thread's first use.
char* scratch();

// body(context, first, last, scratch) for disjoint ranges that cover 0 .. units, `grain` units or fewer at a time.
using Body = void (*)(const void* context, std::int64_t first, std::int64_t last, char* scratch) noexcept;
void parallel_for(std::int64_t units, std::int64_t grain, Body body, const void* context);

template <class F> void parallel_for(std::int64_t units, std::int64_t grain, const F& f) {
  parallel_for(units, grain, [](const void* context, std::int64_t first, std::int64_t last, char* scratch) noexcept {
    (*static_cast<const F*>(context))(first, last, scratch);
  }, &f);
}

}  // namespace normx
