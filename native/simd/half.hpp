// The two 16-bit storage formats. Only bits here: every target brings its own conversion to float and back.
#pragma once

#include <cstdint>

namespace normx {

struct f16 {
  std::uint16_t bits;
};
struct bf16 {
  std::uint16_t bits;
};
using f32 = float;
using f64 = double;

// The type in which rows of a storage type are computed.
template <class S> struct ComputeOf {
  using type = float;
};
template <> struct ComputeOf<f64> {
  using type = double;
};
template <class S> using Compute = typename ComputeOf<S>::type;

}  // namespace normx
