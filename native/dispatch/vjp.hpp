// Gradients from results: calls that need no plan.
#pragma once

#include <cstdint>
#include <string_view>

#include "dispatch/target.hpp"
#include "kernels/vjp.hpp"

namespace normx {

// The place of a function in vjp_functions; -1 if there is none.
int find_vjp(std::string_view function);

// Chooses task.streams. Returns the target it ran on.
const Target& run_vjp(int function, bool doubles, VjpTask task, std::int64_t rows);

}  // namespace normx
