// aarch64: NEON, which always has FMA and the f16 conversion. The vocabulary is explained in vec.hpp.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "simd/half.hpp"
#include "simd/vec_begin.hpp"
#define NX_UNROLL_REGS _Pragma("GCC unroll 8")

namespace normx::NX_ISA {
namespace {

constexpr bool has_fma = true;
constexpr int group = 2;

template <class T> struct reg;

template <> struct reg<float> {
  static constexpr int lanes = 4;
  float32x4_t v;

  NX_INLINE static reg all(float s) { return {vdupq_n_f32(s)}; }
  NX_INLINE static reg load(const void* p) { return {vreinterpretq_f32_u8(vld1q_u8(static_cast<const std::uint8_t*>(p)))}; }
  NX_INLINE static reg flags(const void* p) {
    std::uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const uint32x4_t wide = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))));
    return {vreinterpretq_f32_u32(vandq_u32(vtstq_u32(wide, wide), vreinterpretq_u32_f32(vdupq_n_f32(1))))};
  }
  NX_INLINE static reg load_n(const void* p, int n, float fill) {
    float part[lanes] = {fill, fill, fill, fill};
    if (n > 0) __builtin_memcpy(part, p, sizeof(float) * static_cast<unsigned>(n < lanes ? n : lanes));
    return load(part);
  }
  NX_INLINE void store(void* p) const { vst1q_u8(static_cast<std::uint8_t*>(p), vreinterpretq_u8_f32(v)); }
  NX_INLINE void store_n(void* p, int n) const {
    float part[lanes];
    store(part);
    if (n > 0) __builtin_memcpy(p, part, sizeof(float) * static_cast<unsigned>(n < lanes ? n : lanes));
  }
};

template <> struct reg<double> {
  static constexpr int lanes = 2;
  float64x2_t v;

  NX_INLINE static reg all(double s) { return {vdupq_n_f64(s)}; }
  NX_INLINE static reg load(const void* p) { return {vreinterpretq_f64_u8(vld1q_u8(static_cast<const std::uint8_t*>(p)))}; }
  NX_INLINE static reg flags(const void* p) {
    const std::uint8_t* const bytes = static_cast<const std::uint8_t*>(p);
    const uint64x2_t wide = {bytes[0], bytes[1]};
    return {vreinterpretq_f64_u64(vandq_u64(vtstq_u64(wide, wide), vreinterpretq_u64_f64(vdupq_n_f64(1))))};
  }
  NX_INLINE static reg load_n(const void* p, int n, double fill) {
    double part[lanes] = {fill, fill};
    if (n > 0) __builtin_memcpy(part, p, sizeof(double) * static_cast<unsigned>(n < lanes ? n : lanes));
    return load(part);
  }
  NX_INLINE void store(void* p) const { vst1q_u8(static_cast<std::uint8_t*>(p), vreinterpretq_u8_f64(v)); }
  NX_INLINE void store_n(void* p, int n) const {
    double part[lanes];
    store(part);
    if (n > 0) __builtin_memcpy(p, part, sizeof(double) * static_cast<unsigned>(n < lanes ? n : lanes));
  }
};

NX_INLINE reg<float> operator+(reg<float> a, reg<float> b) { return {vaddq_f32(a.v, b.v)}; }
NX_INLINE reg<float> operator-(reg<float> a, reg<float> b) { return {vsubq_f32(a.v, b.v)}; }
NX_INLINE reg<float> operator*(reg<float> a, reg<float> b) { return {vmulq_f32(a.v, b.v)}; }
NX_INLINE reg<float> operator/(reg<float> a, reg<float> b) { return {vdivq_f32(a.v, b.v)}; }
NX_INLINE reg<float> fma(reg<float> a, reg<float> b, reg<float> c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
NX_INLINE reg<float> clamp_low(reg<float> x, reg<float> low) { return {vmaxq_f32(x.v, low.v)}; }
NX_INLINE reg<float> max_skip_nan(reg<float> most, reg<float> x) { return {vbslq_f32(vcgtq_f32(x.v, most.v), x.v, most.v)}; }
NX_INLINE reg<float> select_eq(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {vbslq_f32(vceqq_f32(a.v, b.v), yes.v, no.v)};
}
NX_INLINE reg<float> select_lt(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {vbslq_f32(vcltq_f32(a.v, b.v), yes.v, no.v)};
}
NX_INLINE reg<float> rint(reg<float> x) { return {vrndnq_f32(x.v)}; }
NX_INLINE reg<float> ldexp(reg<float> p, reg<float> k) {
  const float32x4_t power = vaddq_f32(clamp_low(k, reg<float>::all(-190)).v, vdupq_n_f32(0x1.8p23f + 191));
  const float32x4_t scale = vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(power), 23));
  return {vmulq_f32(vmulq_f32(p.v, scale), vdupq_n_f32(0x1p-64f))};
}

NX_INLINE reg<double> operator+(reg<double> a, reg<double> b) { return {vaddq_f64(a.v, b.v)}; }
NX_INLINE reg<double> operator-(reg<double> a, reg<double> b) { return {vsubq_f64(a.v, b.v)}; }
NX_INLINE reg<double> operator*(reg<double> a, reg<double> b) { return {vmulq_f64(a.v, b.v)}; }
NX_INLINE reg<double> operator/(reg<double> a, reg<double> b) { return {vdivq_f64(a.v, b.v)}; }
NX_INLINE reg<double> fma(reg<double> a, reg<double> b, reg<double> c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
NX_INLINE reg<double> clamp_low(reg<double> x, reg<double> low) { return {vmaxq_f64(x.v, low.v)}; }
NX_INLINE reg<double> max_skip_nan(reg<double> most, reg<double> x) { return {vbslq_f64(vcgtq_f64(x.v, most.v), x.v, most.v)}; }
NX_INLINE reg<double> select_eq(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {vbslq_f64(vceqq_f64(a.v, b.v), yes.v, no.v)};
}
NX_INLINE reg<double> select_lt(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {vbslq_f64(vcltq_f64(a.v, b.v), yes.v, no.v)};
}
NX_INLINE reg<double> rint(reg<double> x) { return {vrndnq_f64(x.v)}; }
NX_INLINE reg<double> ldexp(reg<double> p, reg<double> k) {
  const float64x2_t power = vaddq_f64(clamp_low(k, reg<double>::all(-1534)).v, vdupq_n_f64(0x1.8p52 + 1535));
  const float64x2_t scale = vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(power), 52));
  return {vmulq_f64(vmulq_f64(p.v, scale), vdupq_n_f64(0x1p-512))};
}

NX_INLINE float reduce_max(reg<float> x) { return vmaxvq_f32(x.v); }
NX_INLINE double reduce_max(reg<double> x) { return vmaxvq_f64(x.v); }

NX_INLINE double reduce_add(reg<double> x) { return vgetq_lane_f64(x.v, 0) + vgetq_lane_f64(x.v, 1); }
template <class T> NX_INLINE void stream(void* p, reg<T> x) { x.store(p); }
NX_INLINE void stream_fence() {}

NX_INLINE reg<double> lower(reg<float> x) { return {vcvt_f64_f32(vget_low_f32(x.v))}; }
NX_INLINE reg<double> upper(reg<float> x) { return {vcvt_high_f64_f32(x.v)}; }

template <class H> reg<float> load_half(const void* p);
template <class H> void store_half(void* p, reg<float> x);

template <> NX_INLINE reg<float> load_half<f16>(const void* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const std::uint8_t*>(p))))};
}
template <> NX_INLINE void store_half<f16>(void* p, reg<float> x) {
  vst1_u8(static_cast<std::uint8_t*>(p), vreinterpret_u8_f16(vcvt_f16_f32(x.v)));
}
template <> NX_INLINE reg<float> load_half<bf16>(const void* p) {
  const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(static_cast<const std::uint8_t*>(p)));
  return {vreinterpretq_f32_u32(vshll_n_u16(bits, 16))};
}
template <> NX_INLINE void store_half<bf16>(void* p, reg<float> x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t nearest = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));  // adding to a NaN could make it infinite
  const uint32x4_t chosen = vbslq_u32(vceqq_f32(x.v, x.v), nearest, quiet);
  vst1_u8(static_cast<std::uint8_t*>(p), vreinterpret_u8_u16(vshrn_n_u32(chosen, 16)));
}

}  // namespace
}  // namespace normx::NX_ISA
