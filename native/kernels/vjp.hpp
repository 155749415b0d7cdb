// What dispatch and the kernels of gradients say to each other.
#pragma once

#include <cstdint>

namespace normx {

// The functions whose gradient their result tells, or the score alone, and the order of a target's table.
constexpr const char* vjp_functions[] = {"softmax", "softmin", "log_softmax", "sigmoid"};
constexpr int vjp_function_count = sizeof vjp_functions / sizeof *vjp_functions;

// Rows of n elements, one after another, of float or double.
struct VjpTask {
  const char* x;
  const char* y;
  const char* dy;
  char* dx;
  std::int64_t n;
  bool streams;  // dx is so large that it had better not pass through the caches
};

using RunVjp = void (*)(const VjpTask&, std::int64_t first_row, std::int64_t last_row);

}  // namespace normx
