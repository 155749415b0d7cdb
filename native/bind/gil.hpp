// When the interpreter is left to other threads.
#pragma once

#include <Python.h>
#include <unistd.h>

#include <cstdint>

namespace normx {

// A call of fewer elements is over sooner than the GIL could be handed to another thread and back.
constexpr std::int64_t release_from = std::int64_t{1} << 14;

// Without the GIL for a while, if `wanted`. Where the interpreter ends meanwhile, taking the GIL ends the thread (Python 3.13 and
// before): by unwinding its stack, which nb::gil_scoped_release and all of nanobind answer with std::terminate. This thread
// waits for the end of the process instead, as it does in Python 3.14.
class GilReleased {
 public:
  explicit GilReleased(bool wanted) : state_(wanted ? PyEval_SaveThread() : nullptr) {}
  GilReleased(const GilReleased&) = delete;
  ~GilReleased() {
    if (!state_) return;
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

 private:
  PyThreadState* const state_;
};

}  // namespace normx
