#include "dispatch/target.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch/cpu.hpp"

namespace normx {

// Defined by the files of targets/ where `compiled` is 1.
#define NX_TABLES_0(name) nullptr, nullptr, nullptr, nullptr, nullptr
#define NX_TABLES_1(name) table_##name, programs_##name, &run_rows_##name, topk_##name, vjps_##name
#define NX_TARGET(name, order, compiled, needs) \
  extern const Kernel table_##name[];           \
  extern const Program programs_##name[];       \
  extern const RunRows run_rows_##name;         \
  extern const RunTopK topk_##name[];           \
  extern const RunVjp vjps_##name[][2];
#include "isa_list.inc"
#undef NX_TARGET

namespace {

constexpr KernelName names[] = {
#define NX_KERNEL(op, S, algorithm) {#op, #S, #algorithm},
#include "kernels/kernels.def"
#undef NX_KERNEL
};

constexpr std::size_t program_count = 0
#define NX_PROGRAM(name, parameters, constants) +1
#include "kernels/programs.def"
#undef NX_PROGRAM
    ;

std::atomic<const Target*> current{nullptr};

const Target& find_target(std::string_view name, std::string_view asked_by) {
  std::string compiled, supported;
  for (const Target& t : targets()) {
    if (t.name == name && t.compiled() && t.supported()) return t;
    if (t.compiled()) compiled += std::string(compiled.empty() ? "" : ", ") + t.name;
    if (t.compiled() && t.supported()) supported += std::string(supported.empty() ? "" : ", ") + t.name;
  }
  throw std::runtime_error(std::string(asked_by) + ": no CPU target '" + std::string(name) + "' can run here; compiled: " + compiled +
                           "; supported by this machine: " + supported);
}

}  // namespace

bool Target::supported() const {
  static const unsigned features = cpu_features();
  return compiled() && (features & needs) == needs;
}

std::span<const Target> targets() {
  // Never destroyed: threads may be computing when the process ends.
  static const std::vector<Target>& all = *[] {
    auto* const made = new std::vector<Target>{
#define NX_TARGET(name, order, compiled, needs) {#name, order, needs, NX_TABLES_##compiled(name)},
#include "isa_list.inc"
#undef NX_TARGET
    };
    std::stable_sort(made->begin(), made->end(), [](const Target& a, const Target& b) { return a.order < b.order; });
    return made;
  }();
  return all;
}

const Target& current_target() {
  if (const Target* chosen = current.load(std::memory_order_acquire)) return *chosen;
  const char* forced = std::getenv("NORMX_CPU_TARGET");
  const Target* best = nullptr;
  if (forced && *forced) {
    best = &find_target(forced, "NORMX_CPU_TARGET");
  } else {
    for (const Target& t : targets()) best = t.compiled() && t.supported() ? &t : best;
  }
  current.store(best, std::memory_order_release);
  return *best;
}

void set_target(std::string_view name) { current.store(&find_target(name, "set_target"), std::memory_order_release); }

std::span<const KernelName> kernel_names() { return names; }

int find_kernel(std::string_view op, std::string_view dtype, std::string_view algorithm) {
  for (std::size_t i = 0; i < std::size(names); ++i) {
    if (names[i].op == op && names[i].dtype == dtype && names[i].algorithm == algorithm) return static_cast<int>(i);
  }
  return -1;
}

std::span<const Program> programs() {
  const auto compiled = std::find_if(targets().begin(), targets().end(), [](const Target& t) { return t.compiled(); });
  return {compiled->programs, program_count};
}

int find_program(std::string_view name) {
  for (std::size_t i = 0; i < program_count; ++i) {
    if (programs()[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace normx
