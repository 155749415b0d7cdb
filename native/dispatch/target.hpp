// The instruction sets, and the one in use. Chosen once, at first use: the best one of this machine, or the one that
// NORMX_CPU_TARGET names. May be changed at any time; calls under way finish on the one they started with.
#pragma once

#include <span>
#include <string_view>

#include "kernels/rows.hpp"
#include "kernels/task.hpp"
#include "kernels/topk.hpp"
#include "kernels/vjp.hpp"

namespace normx {

struct Target {
  const char* name;
  int order;
  unsigned needs;
  const Kernel* table;  // null where this build does not have it, like the other four
  const Program* programs;
  const RunRows* run_rows;
  const RunTopK* topk;     // by storage type
  const RunVjp (*vjps)[2];  // in the order of vjp_functions: of floats, of doubles

  bool compiled() const { return table != nullptr; }
  bool supported() const;
};

// In rising order.
std::span<const Target> targets();
// std::runtime_error if NORMX_CPU_TARGET names none that can run here.
const Target& current_target();
// std::runtime_error that names the compiled and the supported ones.
void set_target(std::string_view name);

// The lines of kernels.def: the same in every target's table, at the same place.
struct KernelName {
  std::string_view op, dtype, algorithm;
};
std::span<const KernelName> kernel_names();
// -1 if there is none.
int find_kernel(std::string_view op, std::string_view dtype, std::string_view algorithm);

// The lines of programs.def, in the same way. What a program is like, it is on every target.
std::span<const Program> programs();
int find_program(std::string_view name);

}  // namespace normx
