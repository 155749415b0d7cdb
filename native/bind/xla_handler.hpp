// The kernels as XLA calls them, from compiled programs: no Python, no GIL.
#pragma once

#include <cstdint>

#include "bind/xla_ffi.hpp"

namespace normx {

// A handler for the stage `execute`. Its attributes name the kernel and what each buffer is:
//
//   kind       op, program or vjp: of kernels.def, of programs.def, or a gradient from results
//   kernel     its name
//   operands   names of the arguments, separated by blanks: x where g temperature sink p0 p1 p2 p3
//   results    names of the results, likewise: y flag dtemperature dsink dp0 dp1 dp2 dp3
//              of a vjp: x y dy, and dx
//   axes       the reduced ones, in rising order
//   numbers    of a row program: the softcap, 0 standing for none, and its constants
//   backward, gives_up_empty    of a row program
//   empty      of an op: zero, nan or uniform
//   algorithm  of an op
//
// All buffers are in row-major order and have the same number of axes, sinks one more at the end; axes of size 1 broadcast.
// Values per row are float64 or float32.
xla::Error* xla_handler(xla::CallFrame* frame);

// How many times it computed something, in this process: proof that a compiled program called it.
std::int64_t xla_calls();

}  // namespace normx
