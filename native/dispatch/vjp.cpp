#include "dispatch/vjp.hpp"

#include <algorithm>

#include "dispatch/limits.hpp"
#include "parallel/fpmode.hpp"
#include "parallel/pool.hpp"

namespace normx {
int find_vjp(std::string_view function) {
  const auto found = std::find(std::begin(vjp_functions), std::end(vjp_functions), function);
  return found == std::end(vjp_functions) ? -1 : static_cast<int>(found - std::begin(vjp_functions));
}

// One thread of a busy 2-core Zen 5, floats, into a ready dx, medians of 60 interleaved runs in µs, beside torch's kernel for
// the same and np.copyto, which moves two thirds as much:
//
//   rows           softmax   torch   log_softmax    copy
//   64 × 1024          8.7    12.4          12.3     5.1
//   64 × 4096           36      38            52      18
//   1024 × 4096       1166    1593          1236     885
//   256 × 50257       5142    5359          5352    2638
//
// 64 × 4096 is at what L3 gives. Past the caches: 1166, and 1576 through them.
const Target& run_vjp(int function, bool doubles, VjpTask t, std::int64_t rows) {
  const std::int64_t row_bytes = t.n * (doubles ? 8 : 4);
  t.streams = 3 * rows * row_bytes >= stream_bytes && row_bytes >= stream_row_bytes;
  const DefaultMode mode;
  const Target& target = current_target();
  const RunVjp run = target.vjps[function][doubles];
  if (rows * t.n < parallel_from) {
    run(t, 0, rows);
  } else {
    parallel_for(rows, grain_of(rows, t.n), [&](std::int64_t first, std::int64_t last, char*) { run(t, first, last); });
  }
  return target;
}

}  // namespace normx
