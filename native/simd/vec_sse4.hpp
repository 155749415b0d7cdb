// x86-64-v2: SSE 4.2. No FMA, no f16 conversion. The vocabulary is explained in vec.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/half.hpp"
#include "simd/vec_begin.hpp"
#define NX_UNROLL_REGS _Pragma("GCC unroll 8")

namespace normx::NX_ISA {
namespace {

#include "simd/half_soft.inl.hpp"

constexpr bool has_fma = false;
constexpr int group = 1;

template <class T> struct reg;

template <> struct reg<float> {
  static constexpr int lanes = 4;
  __m128 v;

  NX_INLINE static reg all(float s) { return {_mm_set1_ps(s)}; }
  NX_INLINE static reg load(const void* p) { return {_mm_loadu_ps(static_cast<const float*>(p))}; }
  NX_INLINE static reg flags(const void* p) {
    std::int32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const __m128i wide = _mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes));
    return {_mm_andnot_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(wide, _mm_setzero_si128())), _mm_set1_ps(1))};
  }
  NX_INLINE static reg load_n(const void* p, int n, float fill) {
    alignas(16) float part[lanes] = {fill, fill, fill, fill};
    if (n > 0) __builtin_memcpy(part, p, sizeof(float) * static_cast<unsigned>(n < lanes ? n : lanes));
    return load(part);
  }
  NX_INLINE void store(void* p) const { _mm_storeu_ps(static_cast<float*>(p), v); }
  NX_INLINE void store_n(void* p, int n) const {
    alignas(16) float part[lanes];
    store(part);
    if (n > 0) __builtin_memcpy(p, part, sizeof(float) * static_cast<unsigned>(n < lanes ? n : lanes));
  }
};

template <> struct reg<double> {
  static constexpr int lanes = 2;
  __m128d v;

  NX_INLINE static reg all(double s) { return {_mm_set1_pd(s)}; }
  NX_INLINE static reg load(const void* p) { return {_mm_loadu_pd(static_cast<const double*>(p))}; }
  NX_INLINE static reg flags(const void* p) {
    std::int16_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const __m128i wide = _mm_cvtepi8_epi64(_mm_cvtsi32_si128(bytes));
    return {_mm_andnot_pd(_mm_castsi128_pd(_mm_cmpeq_epi64(wide, _mm_setzero_si128())), _mm_set1_pd(1))};
  }
  NX_INLINE static reg load_n(const void* p, int n, double fill) {
    return n >= lanes ? load(p) : n > 0 ? reg{_mm_loadl_pd(_mm_set1_pd(fill), static_cast<const double*>(p))} : all(fill);
  }
  NX_INLINE void store(void* p) const { _mm_storeu_pd(static_cast<double*>(p), v); }
  NX_INLINE void store_n(void* p, int n) const {
    if (n >= lanes) store(p);
    if (n == 1) _mm_storel_pd(static_cast<double*>(p), v);
  }
};

NX_INLINE reg<float> operator+(reg<float> a, reg<float> b) { return {_mm_add_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator-(reg<float> a, reg<float> b) { return {_mm_sub_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator*(reg<float> a, reg<float> b) { return {_mm_mul_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator/(reg<float> a, reg<float> b) { return {_mm_div_ps(a.v, b.v)}; }
NX_INLINE reg<float> clamp_low(reg<float> x, reg<float> low) { return {_mm_max_ps(low.v, x.v)}; }
NX_INLINE reg<float> max_skip_nan(reg<float> most, reg<float> x) { return {_mm_max_ps(x.v, most.v)}; }
NX_INLINE reg<float> select_eq(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {_mm_blendv_ps(no.v, yes.v, _mm_cmpeq_ps(a.v, b.v))};
}
NX_INLINE reg<float> select_lt(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {_mm_blendv_ps(no.v, yes.v, _mm_cmplt_ps(a.v, b.v))};
}
NX_INLINE reg<float> rint(reg<float> x) { return {_mm_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
NX_INLINE reg<float> ldexp(reg<float> p, reg<float> k) {
  const __m128 power = _mm_add_ps(clamp_low(k, reg<float>::all(-190)).v, _mm_set1_ps(0x1.8p23f + 191));
  const __m128 scale = _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(power), 23));
  return {_mm_mul_ps(_mm_mul_ps(p.v, scale), _mm_set1_ps(0x1p-64f))};
}

NX_INLINE reg<double> operator+(reg<double> a, reg<double> b) { return {_mm_add_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator-(reg<double> a, reg<double> b) { return {_mm_sub_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator*(reg<double> a, reg<double> b) { return {_mm_mul_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator/(reg<double> a, reg<double> b) { return {_mm_div_pd(a.v, b.v)}; }
NX_INLINE reg<double> clamp_low(reg<double> x, reg<double> low) { return {_mm_max_pd(low.v, x.v)}; }
NX_INLINE reg<double> max_skip_nan(reg<double> most, reg<double> x) { return {_mm_max_pd(x.v, most.v)}; }
NX_INLINE reg<double> select_eq(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {_mm_blendv_pd(no.v, yes.v, _mm_cmpeq_pd(a.v, b.v))};
}
NX_INLINE reg<double> select_lt(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {_mm_blendv_pd(no.v, yes.v, _mm_cmplt_pd(a.v, b.v))};
}
NX_INLINE reg<double> rint(reg<double> x) { return {_mm_round_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
NX_INLINE reg<double> ldexp(reg<double> p, reg<double> k) {
  const __m128d power = _mm_add_pd(clamp_low(k, reg<double>::all(-1534)).v, _mm_set1_pd(0x1.8p52 + 1535));
  const __m128d scale = _mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(power), 52));
  return {_mm_mul_pd(_mm_mul_pd(p.v, scale), _mm_set1_pd(0x1p-512))};
}

template <class T> NX_INLINE reg<T> fma(reg<T> a, reg<T> b, reg<T> c) { return a * b + c; }

NX_INLINE float reduce_max(reg<float> x) {
  const __m128 pair = _mm_max_ps(x.v, _mm_movehl_ps(x.v, x.v));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
NX_INLINE double reduce_max(reg<double> x) { return _mm_cvtsd_f64(_mm_max_sd(x.v, _mm_unpackhi_pd(x.v, x.v))); }

NX_INLINE double reduce_add(reg<double> x) { return _mm_cvtsd_f64(_mm_add_sd(x.v, _mm_unpackhi_pd(x.v, x.v))); }
NX_INLINE void stream(void* p, reg<float> x) { _mm_stream_ps(static_cast<float*>(p), x.v); }
NX_INLINE void stream(void* p, reg<double> x) { _mm_stream_pd(static_cast<double*>(p), x.v); }
NX_INLINE void stream_fence() { _mm_sfence(); }

NX_INLINE reg<double> lower(reg<float> x) { return {_mm_cvtps_pd(x.v)}; }
NX_INLINE reg<double> upper(reg<float> x) { return {_mm_cvtps_pd(_mm_movehl_ps(x.v, x.v))}; }

template <class H> NX_INLINE reg<float> load_half(const void* p) {
  H h[4];
  __builtin_memcpy(h, p, sizeof h);
  return {_mm_setr_ps(soft_widen(h[0]), soft_widen(h[1]), soft_widen(h[2]), soft_widen(h[3]))};
}
template <class H> NX_INLINE void store_half(void* p, reg<float> x) {
  float f[4];
  x.store(f);
  const H h[4] = {soft_narrow(f[0], H{}), soft_narrow(f[1], H{}), soft_narrow(f[2], H{}), soft_narrow(f[3], H{})};
  __builtin_memcpy(p, h, sizeof h);
}

}  // namespace
}  // namespace normx::NX_ISA
