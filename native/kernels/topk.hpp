// What dispatch and the kernel of softmax_topk say to each other.
#pragma once

#include <cstdint>

#include "kernels/task.hpp"

namespace normx {

// Of each row the k largest weights, largest first, equal scores in the order of their indices. `rows` has no reduced axis but
// the last one; rows.y and `indices` take k of each row, one row after another in C order.
struct TopKTask {
  Task rows;
  std::int64_t k;  // at least 1, at most most_k and the length of a row
  std::int64_t* indices;
};

// An insertion into the sorted k costs up to k moves.
constexpr std::int64_t most_k = 64;

using RunTopK = void (*)(const TopKTask&, std::int64_t first_row, std::int64_t last_row, char* scratch);

}  // namespace normx
