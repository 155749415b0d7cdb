// The scalar target: one lane to a register, plain C++ arithmetic. The vocabulary is explained in vec.hpp.
#pragma once

#include <cstdint>

#include "simd/half.hpp"
#include "simd/vec_begin.hpp"
// Sixteen lanes unrolled into every fold would make this target larger than all the others together.
#define NX_UNROLL_REGS _Pragma("GCC unroll 1")

namespace normx::NX_ISA {
namespace {

#include "simd/half_soft.inl.hpp"

constexpr bool has_fma = false;
constexpr int group = 1;

template <class T> struct reg {
  static constexpr int lanes = 1;
  T v;

  NX_INLINE static reg all(T s) { return {s}; }
  NX_INLINE static reg load(const void* p) {
    reg x;
    __builtin_memcpy(&x.v, p, sizeof(T));
    return x;
  }
  NX_INLINE static reg flags(const void* p) { return {static_cast<T>(*static_cast<const char*>(p) != 0)}; }
  NX_INLINE static reg load_n(const void* p, int n, T fill) { return n > 0 ? load(p) : all(fill); }
  NX_INLINE void store(void* p) const { __builtin_memcpy(p, &v, sizeof(T)); }
  NX_INLINE void store_n(void* p, int n) const {
    if (n > 0) store(p);
  }
};

template <class T> NX_INLINE reg<T> operator+(reg<T> a, reg<T> b) { return {a.v + b.v}; }
template <class T> NX_INLINE reg<T> operator-(reg<T> a, reg<T> b) { return {a.v - b.v}; }
template <class T> NX_INLINE reg<T> operator*(reg<T> a, reg<T> b) { return {a.v * b.v}; }
template <class T> NX_INLINE reg<T> operator/(reg<T> a, reg<T> b) { return {a.v / b.v}; }
template <class T> NX_INLINE reg<T> fma(reg<T> a, reg<T> b, reg<T> c) { return a * b + c; }
template <class T> NX_INLINE reg<T> clamp_low(reg<T> x, reg<T> low) { return {x.v < low.v ? low.v : x.v}; }
template <class T> NX_INLINE reg<T> max_skip_nan(reg<T> most, reg<T> x) { return {x.v > most.v ? x.v : most.v}; }
template <class T> NX_INLINE reg<T> select_eq(reg<T> a, reg<T> b, reg<T> yes, reg<T> no) { return a.v == b.v ? yes : no; }
template <class T> NX_INLINE reg<T> select_lt(reg<T> a, reg<T> b, reg<T> yes, reg<T> no) { return a.v < b.v ? yes : no; }
NX_INLINE reg<float> rint(reg<float> x) { return {__builtin_rintf(x.v)}; }
NX_INLINE reg<double> rint(reg<double> x) { return {__builtin_rint(x.v)}; }

template <class T> NX_INLINE T reduce_max(reg<T> x) { return x.v; }
template <class T> NX_INLINE void stream(void* p, reg<T> x) { x.store(p); }
NX_INLINE void stream_fence() {}
template <class T> NX_INLINE T reduce_add(reg<T> x) { return x.v; }
NX_INLINE reg<float> ldexp(reg<float> p, reg<float> k) {
  const float power = clamp_low(k, reg<float>::all(-190)).v + (0x1.8p23f + 191);
  return {p.v * float_of_bits(bits_of_float(power) << 23) * 0x1p-64f};
}
NX_INLINE reg<double> ldexp(reg<double> p, reg<double> k) {
  const double power = clamp_low(k, reg<double>::all(-1534)).v + (0x1.8p52 + 1535);
  std::uint64_t bits;
  __builtin_memcpy(&bits, &power, sizeof bits);
  bits <<= 52;
  double scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return {p.v * scale * 0x1p-512};
}

template <class H> NX_INLINE reg<float> load_half(const void* p) {
  H h;
  __builtin_memcpy(&h, p, sizeof h);
  return {soft_widen(h)};
}
template <class H> NX_INLINE void store_half(void* p, reg<float> x) {
  const H h = soft_narrow(x.v, H{});
  __builtin_memcpy(p, &h, sizeof h);
}

}  // namespace
}  // namespace normx::NX_ISA
