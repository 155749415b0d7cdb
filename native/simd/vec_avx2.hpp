// x86-64-v3: AVX2, FMA, F16C. The vocabulary is explained in vec.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/half.hpp"
#include "simd/vec_begin.hpp"
#define NX_UNROLL_REGS _Pragma("GCC unroll 8")

namespace normx::NX_ISA {
namespace {

constexpr bool has_fma = true;
constexpr int group = 2;

template <class T> struct reg;

// All ones in the first n 32-bit lanes; n may be anything.
NX_INLINE __m256i first_n(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }

template <> struct reg<float> {
  static constexpr int lanes = 8;
  __m256 v;

  NX_INLINE static reg all(float s) { return {_mm256_set1_ps(s)}; }
  NX_INLINE static reg load(const void* p) { return {_mm256_loadu_ps(static_cast<const float*>(p))}; }
  NX_INLINE static reg flags(const void* p) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
    return {_mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(wide, _mm256_setzero_si256())), _mm256_set1_ps(1))};
  }
  NX_INLINE static reg load_n(const void* p, int n, float fill) {
    const __m256i mask = first_n(n);
    return {_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(static_cast<const float*>(p), mask), _mm256_castsi256_ps(mask))};
  }
  NX_INLINE void store(void* p) const { _mm256_storeu_ps(static_cast<float*>(p), v); }
  NX_INLINE void store_n(void* p, int n) const { _mm256_maskstore_ps(static_cast<float*>(p), first_n(n), v); }
};

template <> struct reg<double> {
  static constexpr int lanes = 4;
  __m256d v;

  NX_INLINE static reg all(double s) { return {_mm256_set1_pd(s)}; }
  NX_INLINE static reg load(const void* p) { return {_mm256_loadu_pd(static_cast<const double*>(p))}; }
  NX_INLINE static reg flags(const void* p) {
    std::int32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const __m256i wide = _mm256_cvtepi8_epi64(_mm_cvtsi32_si128(bytes));
    return {_mm256_andnot_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(wide, _mm256_setzero_si256())), _mm256_set1_pd(1))};
  }
  NX_INLINE static reg load_n(const void* p, int n, double fill) {
    const __m256i mask = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(first_n(n)));
    return {_mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(static_cast<const double*>(p), mask), _mm256_castsi256_pd(mask))};
  }
  NX_INLINE void store(void* p) const { _mm256_storeu_pd(static_cast<double*>(p), v); }
  NX_INLINE void store_n(void* p, int n) const {
    _mm256_maskstore_pd(static_cast<double*>(p), _mm256_cvtepi32_epi64(_mm256_castsi256_si128(first_n(n))), v);
  }
};

NX_INLINE reg<float> operator+(reg<float> a, reg<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator-(reg<float> a, reg<float> b) { return {_mm256_sub_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator*(reg<float> a, reg<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator/(reg<float> a, reg<float> b) { return {_mm256_div_ps(a.v, b.v)}; }
NX_INLINE reg<float> fma(reg<float> a, reg<float> b, reg<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
NX_INLINE reg<float> clamp_low(reg<float> x, reg<float> low) { return {_mm256_max_ps(low.v, x.v)}; }
NX_INLINE reg<float> max_skip_nan(reg<float> most, reg<float> x) { return {_mm256_max_ps(x.v, most.v)}; }
NX_INLINE reg<float> select_eq(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ))};
}
NX_INLINE reg<float> select_lt(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
NX_INLINE reg<float> rint(reg<float> x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
NX_INLINE reg<float> ldexp(reg<float> p, reg<float> k) {
  const __m256 power = _mm256_add_ps(clamp_low(k, reg<float>::all(-190)).v, _mm256_set1_ps(0x1.8p23f + 191));
  const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(power), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(p.v, scale), _mm256_set1_ps(0x1p-64f))};
}

NX_INLINE reg<double> operator+(reg<double> a, reg<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator-(reg<double> a, reg<double> b) { return {_mm256_sub_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator*(reg<double> a, reg<double> b) { return {_mm256_mul_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator/(reg<double> a, reg<double> b) { return {_mm256_div_pd(a.v, b.v)}; }
NX_INLINE reg<double> fma(reg<double> a, reg<double> b, reg<double> c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
NX_INLINE reg<double> clamp_low(reg<double> x, reg<double> low) { return {_mm256_max_pd(low.v, x.v)}; }
NX_INLINE reg<double> max_skip_nan(reg<double> most, reg<double> x) { return {_mm256_max_pd(x.v, most.v)}; }
NX_INLINE reg<double> select_eq(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ))};
}
NX_INLINE reg<double> select_lt(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ))};
}
NX_INLINE reg<double> rint(reg<double> x) { return {_mm256_round_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
NX_INLINE reg<double> ldexp(reg<double> p, reg<double> k) {
  const __m256d power = _mm256_add_pd(clamp_low(k, reg<double>::all(-1534)).v, _mm256_set1_pd(0x1.8p52 + 1535));
  const __m256d scale = _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(power), 52));
  return {_mm256_mul_pd(_mm256_mul_pd(p.v, scale), _mm256_set1_pd(0x1p-512))};
}

NX_INLINE float reduce_max(reg<float> x) {
  const __m128 half = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
NX_INLINE double reduce_max(reg<double> x) {
  const __m128d half = _mm_max_pd(_mm256_castpd256_pd128(x.v), _mm256_extractf128_pd(x.v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(half, _mm_unpackhi_pd(half, half)));
}

NX_INLINE double reduce_add(reg<double> x) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(x.v), _mm256_extractf128_pd(x.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}
NX_INLINE void stream(void* p, reg<float> x) { _mm256_stream_ps(static_cast<float*>(p), x.v); }
NX_INLINE void stream(void* p, reg<double> x) { _mm256_stream_pd(static_cast<double*>(p), x.v); }
NX_INLINE void stream_fence() { _mm_sfence(); }

NX_INLINE reg<double> lower(reg<float> x) { return {_mm256_cvtps_pd(_mm256_castps256_ps128(x.v))}; }
NX_INLINE reg<double> upper(reg<float> x) { return {_mm256_cvtps_pd(_mm256_extractf128_ps(x.v, 1))}; }

template <class H> reg<float> load_half(const void* p);
template <class H> void store_half(void* p, reg<float> x);

template <> NX_INLINE reg<float> load_half<f16>(const void* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
template <> NX_INLINE void store_half<f16>(void* p, reg<float> x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
template <> NX_INLINE reg<float> load_half<bf16>(const void* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
template <> NX_INLINE void store_half<bf16>(void* p, reg<float> x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));  // adding to a NaN could make it infinite
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(nearest, quiet, is_nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

}  // namespace
}  // namespace normx::NX_ISA
