// The k largest weights of a softmax: a call that needs no plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dispatch/target.hpp"
#include "kernels/rows.hpp"
#include "kernels/topk.hpp"

namespace normx {

// Rows are the last axis, their elements side by side; strides in bytes. Values and indices take k of each row, one row after
// another in C order.
struct TopKOperands {
  const char* x;
  const std::ptrdiff_t* x_strides;
  char* values;
  std::int64_t* indices;
};

// 1 ≤ k ≤ most_k and the length of a row, which std::invalid_argument says. Returns the target it ran on.
const Target& softmax_topk(Storage storage, std::span<const std::ptrdiff_t> shape, std::int64_t k, const TopKOperands& operands);

}  // namespace normx
