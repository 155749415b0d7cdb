#include "dispatch/topk.hpp"

#include <stdexcept>

#include "dispatch/limits.hpp"
#include "parallel/fpmode.hpp"
#include "parallel/pool.hpp"

namespace normx {
const Target& softmax_topk(Storage storage, std::span<const std::ptrdiff_t> shape, std::int64_t k, const TopKOperands& o) {
  if (shape.empty() || shape.size() > max_axes) throw std::invalid_argument("1 to 64 axes were wanted");
  const std::int64_t n = shape.back();
  if (k < 1 || k > most_k || k > n) throw std::invalid_argument("k: 1 to 64, and not more than the length of a row, was wanted");
  Axis axes[max_axes];
  std::int64_t rows = 1;
  for (std::size_t a = 0; a < shape.size(); ++a) {
    axes[a] = {shape[a], o.x_strides[a], 0, 0};
    rows *= a + 1 < shape.size() ? shape[a] : 1;
  }
  const int outer = static_cast<int>(shape.size()) - 1;
  const TopKTask t{{o.x, o.values, nullptr, n, rows, 0, 0, outer, 1, Empty::zero, false, false, axes}, k, o.indices};
  const DefaultMode mode;
  const Target& target = current_target();
  const RunTopK run = target.topk[static_cast<std::size_t>(storage)];
  if (rows * n < parallel_from) {
    if (rows) run(t, 0, rows, scratch());
  } else {
    parallel_for(rows, grain_of(rows, n), [&](std::int64_t first, std::int64_t last, char* scratch) { run(t, first, last, scratch); });
  }
  return target;
}

}  // namespace normx
