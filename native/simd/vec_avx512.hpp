// x86-64-v4: AVX-512 F, BW, DQ, VL. The vocabulary is explained in vec.hpp.
#pragma once

// GCC 12 warns of the deliberately uninitialised operands inside its own header (GCC PR 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#include "simd/half.hpp"
#include "simd/vec_begin.hpp"
#define NX_UNROLL_REGS _Pragma("GCC unroll 8")

namespace normx::NX_ISA {
namespace {

constexpr bool has_fma = true;
constexpr int group = 4;

template <class T> struct reg;

template <> struct reg<float> {
  static constexpr int lanes = 16;
  __m512 v;

  NX_INLINE static __mmask16 first_n(int n) { return static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<unsigned>(n))); }
  NX_INLINE static reg all(float s) { return {_mm512_set1_ps(s)}; }
  NX_INLINE static reg load(const void* p) { return {_mm512_loadu_ps(p)}; }
  NX_INLINE static reg flags(const void* p) {
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return {_mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), _mm512_set1_ps(1))};
  }
  NX_INLINE static reg load_n(const void* p, int n, float fill) {
    return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_n(n), p)};
  }
  NX_INLINE void store(void* p) const { _mm512_storeu_ps(p, v); }
  NX_INLINE void store_n(void* p, int n) const { _mm512_mask_storeu_ps(p, first_n(n), v); }
};

template <> struct reg<double> {
  static constexpr int lanes = 8;
  __m512d v;

  NX_INLINE static __mmask8 first_n(int n) { return static_cast<__mmask8>(_bzhi_u32(0xff, static_cast<unsigned>(n))); }
  NX_INLINE static reg all(double s) { return {_mm512_set1_pd(s)}; }
  NX_INLINE static reg load(const void* p) { return {_mm512_loadu_pd(p)}; }
  NX_INLINE static reg flags(const void* p) {
    const __m128i bytes = _mm_loadl_epi64(static_cast<const __m128i*>(p));
    return {_mm512_maskz_mov_pd(static_cast<__mmask8>(_mm_test_epi8_mask(bytes, bytes)), _mm512_set1_pd(1))};
  }
  NX_INLINE static reg load_n(const void* p, int n, double fill) {
    return {_mm512_mask_loadu_pd(_mm512_set1_pd(fill), first_n(n), p)};
  }
  NX_INLINE void store(void* p) const { _mm512_storeu_pd(p, v); }
  NX_INLINE void store_n(void* p, int n) const { _mm512_mask_storeu_pd(p, first_n(n), v); }
};

NX_INLINE reg<float> operator+(reg<float> a, reg<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator-(reg<float> a, reg<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator*(reg<float> a, reg<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
NX_INLINE reg<float> operator/(reg<float> a, reg<float> b) { return {_mm512_div_ps(a.v, b.v)}; }
NX_INLINE reg<float> fma(reg<float> a, reg<float> b, reg<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
NX_INLINE reg<float> clamp_low(reg<float> x, reg<float> low) { return {_mm512_max_ps(low.v, x.v)}; }
NX_INLINE reg<float> max_skip_nan(reg<float> most, reg<float> x) { return {_mm512_max_ps(x.v, most.v)}; }
NX_INLINE reg<float> select_eq(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), yes.v)};
}
NX_INLINE reg<float> select_lt(reg<float> a, reg<float> b, reg<float> yes, reg<float> no) {
  return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), yes.v)};
}
NX_INLINE reg<float> rint(reg<float> x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
NX_INLINE reg<float> ldexp(reg<float> p, reg<float> k) { return {_mm512_scalef_ps(p.v, k.v)}; }

NX_INLINE reg<double> operator+(reg<double> a, reg<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator-(reg<double> a, reg<double> b) { return {_mm512_sub_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator*(reg<double> a, reg<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }
NX_INLINE reg<double> operator/(reg<double> a, reg<double> b) { return {_mm512_div_pd(a.v, b.v)}; }
NX_INLINE reg<double> fma(reg<double> a, reg<double> b, reg<double> c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
NX_INLINE reg<double> clamp_low(reg<double> x, reg<double> low) { return {_mm512_max_pd(low.v, x.v)}; }
NX_INLINE reg<double> max_skip_nan(reg<double> most, reg<double> x) { return {_mm512_max_pd(x.v, most.v)}; }
NX_INLINE reg<double> select_eq(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {_mm512_mask_mov_pd(no.v, _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ), yes.v)};
}
NX_INLINE reg<double> select_lt(reg<double> a, reg<double> b, reg<double> yes, reg<double> no) {
  return {_mm512_mask_mov_pd(no.v, _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ), yes.v)};
}
NX_INLINE reg<double> rint(reg<double> x) { return {_mm512_roundscale_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
NX_INLINE reg<double> ldexp(reg<double> p, reg<double> k) { return {_mm512_scalef_pd(p.v, k.v)}; }

NX_INLINE float reduce_max(reg<float> x) { return _mm512_reduce_max_ps(x.v); }
NX_INLINE double reduce_max(reg<double> x) { return _mm512_reduce_max_pd(x.v); }

NX_INLINE double reduce_add(reg<double> x) {
  const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(x.v), _mm512_extractf64x4_pd(x.v, 1));
  const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}
NX_INLINE __mmask8 ones(const char* bytes) {
  return static_cast<__mmask8>(_mm_cmpeq_epi8_mask(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)), _mm_set1_epi8(1)));
}
NX_INLINE reg<double> ones_together(reg<double> x, const char* bytes) { return {_mm512_maskz_compress_pd(ones(bytes), x.v)}; }
NX_INLINE reg<double> ones_apart(reg<double> x, const char* bytes, reg<double> others) { return {_mm512_mask_expand_pd(others.v, ones(bytes), x.v)}; }
NX_INLINE void stream(void* p, reg<float> x) { _mm512_stream_ps(static_cast<float*>(p), x.v); }
NX_INLINE void stream(void* p, reg<double> x) { _mm512_stream_pd(static_cast<double*>(p), x.v); }
NX_INLINE void stream_fence() { _mm_sfence(); }

NX_INLINE reg<double> lower(reg<float> x) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v))}; }
NX_INLINE reg<double> upper(reg<float> x) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1))}; }

template <class H> reg<float> load_half(const void* p);
template <class H> void store_half(void* p, reg<float> x);

template <> NX_INLINE reg<float> load_half<f16>(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
template <> NX_INLINE void store_half<f16>(void* p, reg<float> x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// The high halves of sixteen floats, in order, and the way back: one permutation of words instead of a conversion and a shift.
template <> NX_INLINE reg<float> load_half<bf16>(const void* p) {
  const __m512i apart = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
  const __m512i halves = _mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, apart, halves))};
}
// Integer arithmetic instead of the AVX512_BF16 instruction, which flushes subnormals.
template <> NX_INLINE void store_half<bf16>(void* p, reg<float> x) {
  const __m512i high = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __m512i nearest = _mm512_mask_add_epi32(below, _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000)), below, _mm512_set1_epi32(1));
  // Adding to a NaN could make it infinite.
  const __m512i chosen = _mm512_mask_or_epi32(nearest, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_castsi512_si256(_mm512_permutexvar_epi16(high, chosen)));
}

}  // namespace
}  // namespace normx::NX_ISA
