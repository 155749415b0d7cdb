// As much of Metal's standard library as the kernels use, for a host compiler that checks their syntax and types.
#include <cmath>
#include <cstdint>

#define device
#define thread
#define threadgroup
#define constant const
using ushort = unsigned short;
using half = float;
struct bfloat16_t {
  float value;
  bfloat16_t() = default;
  explicit bfloat16_t(float f) : value(f) {}
  explicit operator float() const { return value; }
};
struct uint3 {
  unsigned x, y, z;
};
template <class To, class From>
To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
namespace metal {
enum class mem_flags { mem_threadgroup };
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float rint(float x) { return std::rint(x); }
inline float fabs(float x) { return std::fabs(x); }
inline int ilogb(float x) { return std::ilogb(x); }
inline float simd_shuffle_xor(float v, ushort) { return v; }
inline bool simd_any(bool v) { return v; }
namespace precise {
inline float log(float x) { return std::log(x); }
inline float tanh(float x) { return std::tanh(x); }
inline float sqrt(float x) { return std::sqrt(x); }
inline float pow(float x, float y) { return std::pow(x, y); }
}  // namespace precise
}  // namespace metal
inline void threadgroup_barrier(metal::mem_flags) {}
