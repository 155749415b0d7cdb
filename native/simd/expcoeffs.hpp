// Written by native/tools/expcoeffs.py, which explains the numbers. Do not edit.
#pragma once

namespace normx {

template <class T> struct Exp;

template <> struct Exp<float> {
  static constexpr float log2e = 0x1.715476p+0f;
  // With FMA: n·hi is not rounded, and x − n·hi is exact because it is a small multiple of the last place of hi.
  static constexpr float ln2_hi = 0x1.62e43p-1f;
  static constexpr float ln2_lo = -0x1.05c61p-29f;
  // Without FMA: 9-bit pieces, so that n·a and n·b (n has at most 15 bits) are exact.
  static constexpr float ln2_a = 0x1.63p-1f;
  static constexpr float ln2_b = -0x1.bdp-13f;
  static constexpr float ln2_c = -0x1.05c61p-29f;
  static constexpr int degree = 6;  // greatest relative error of the polynomial: 0.062 · 2^-24
  static constexpr float coefficient[degree + 1] = {
      0x1p+0f,
      0x1p+0f,
      0x1.fffff8p-2f,
      0x1.55548ep-3f,
      0x1.555b9cp-5f,
      0x1.123bfep-7f,
      0x1.684e12p-10f,
  };
};

template <> struct Exp<double> {
  static constexpr double log2e = 0x1.71547652b82fep+0;
  // With FMA: n·hi is not rounded, and x − n·hi is exact because it is a small multiple of the last place of hi.
  static constexpr double ln2_hi = 0x1.62e42fefa39efp-1;
  static constexpr double ln2_lo = 0x1.abc9e3b39803fp-56;
  // Without FMA: 38-bit pieces, so that n·a and n·b (n has at most 15 bits) are exact.
  static constexpr double ln2_a = 0x1.62e42fefap-1;
  static constexpr double ln2_b = 0x1.cf79abc9ep-40;
  static constexpr double ln2_c = 0x1.d9cc01f97b57ap-79;
  static constexpr int degree = 11;  // greatest relative error of the polynomial: 0.041 · 2^-53
  static constexpr double coefficient[degree + 1] = {
      0x1p+0,
      0x1p+0,
      0x1.000000000000cp-1,
      0x1.5555555555515p-3,
      0x1.555555554fe2ap-5,
      0x1.11111111211abp-7,
      0x1.6c16c185ff0d7p-10,
      0x1.a01a014dbc7dap-13,
      0x1.a01995ca23f95p-16,
      0x1.71ded70764bb9p-19,
      0x1.28b0f06b1f453p-22,
      0x1.adfaa4d17ec43p-26,
  };
};

}  // namespace normx
