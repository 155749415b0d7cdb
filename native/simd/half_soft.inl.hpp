// f16 and bf16 conversions in integer arithmetic, for the targets (or the lanes of them) that have no instruction for it.
// Nearest-even; subnormals are kept; a NaN stays a NaN.

NX_INLINE float float_of_bits(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
NX_INLINE std::uint32_t bits_of_float(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

NX_INLINE float soft_widen(f16 h) {
  const std::uint32_t sign = std::uint32_t{h.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = std::uint32_t{h.bits & 0x7fffu} << 13;
  if (magnitude >= 0x7c00u << 13) return float_of_bits(sign | 0x7f800000u | magnitude);
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude) * 0x1p112f));  // re-biases the exponent, exactly
}
NX_INLINE f16 soft_narrow(float x, f16) {
  const std::uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u;
  std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520, half way to 2^16
  if (magnitude < 0x38800000u) {  // below 2^-14: the addition of 1/2 rounds to the multiples of 2^-24 that f16 has there
    magnitude = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  } else {
    magnitude = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | magnitude)};
}

NX_INLINE float soft_widen(bf16 h) { return float_of_bits(std::uint32_t{h.bits} << 16); }
NX_INLINE bf16 soft_narrow(float x, bf16) {
  const std::uint32_t bits = bits_of_float(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
