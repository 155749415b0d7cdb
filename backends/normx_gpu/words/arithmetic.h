// Arithmetic, the same on every flavour: numbers in two words, the exponential, the logarithm of one and a bit.
//
// nx_t is float, or double where NX_DOUBLE is 1. Nothing may contract a product into a sum by itself: fma is a word.

struct nx_words {
  nx_t hi, lo;
};
NX_FN nx_words nx_pair(nx_t hi, nx_t lo) {
  nx_words w;
  w.hi = hi;
  w.lo = lo;
  return w;
}
// a + b without loss.
NX_FN nx_words nx_two_sum(nx_t a, nx_t b) {
  const nx_t s = a + b;
  const nx_t t = s - a;
  return nx_pair(s, (a - (s - t)) + (b - t));
}
// The same where |a| >= |b|.
NX_FN nx_words nx_renormalized(nx_t a, nx_t b) {
  const nx_t s = a + b;
  return nx_pair(s, b - (s - a));
}
NX_FN nx_words nx_two_product(nx_t a, nx_t b) {
  const nx_t p = a * b;
  return nx_pair(p, NX_FMA(a, b, -p));
}
NX_FN bool nx_is_finite(nx_t x) { return x - x == nx_t(0); }
NX_FN bool nx_is_nan(nx_t x) { return x != x; }
NX_FN nx_words nx_sum_of(nx_words a, nx_words b) {
  const nx_words s = nx_two_sum(a.hi, b.hi);
  const nx_t low = s.lo + (a.lo + b.lo);
  const nx_words w = nx_renormalized(s.hi, low);
  return nx_is_finite(w.lo) ? w : nx_pair(s.hi, 0);  // infinities have no low word
}
NX_FN nx_words nx_times(nx_words a, nx_words b) {
  const nx_words p = nx_two_product(a.hi, b.hi);
  const nx_words w = nx_renormalized(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
  return nx_is_finite(w.lo) ? w : nx_pair(p.hi, 0);
}
NX_FN nx_words nx_over(nx_words a, nx_words b) {
  const nx_t q = a.hi / b.hi;
  const nx_words p = nx_two_product(q, b.hi);
  const nx_words w = nx_renormalized(q, (((a.hi - p.hi) - p.lo) + a.lo - q * b.lo) / b.hi);
  return nx_is_finite(w.lo) ? w : nx_pair(q, 0);
}
NX_FN nx_words nx_word(nx_t x) { return nx_pair(x, 0); }

// p * 2^n, rounded once: the first product is exact, for the n there are.
NX_FN nx_t nx_ldexp(nx_t p, nx_int n) {
  const nx_int part = n >> 1;
  return p * nx_power_of_two(part) * nx_power_of_two(n - part);
}

// exp(hi + lo): exp(x) = P(x - n log 2) 2^n. The polynomials are those of native/simd/expcoeffs.hpp, written by
// native/tools/expcoeffs.py; their errors are 0.06 units in the last place and less.
#if NX_DOUBLE
#define NX_EXP_RANGE 1400
#define NX_NEGLIGIBLE -1400
#else
#define NX_EXP_RANGE 160
#define NX_NEGLIGIBLE -160
#endif
NX_FN nx_t nx_exp(nx_words z) {
  nx_t x = z.hi < nx_t(-NX_EXP_RANGE) ? nx_t(-NX_EXP_RANGE) : z.hi;
  x = x > nx_t(NX_EXP_RANGE) ? nx_t(NX_EXP_RANGE) : x;
#if NX_DOUBLE
  const nx_t n = NX_RINT(x * 1.4426950408889634);
  const nx_t t = NX_FMA(n, -2.3190468138462996e-17, NX_FMA(n, -0.69314718055994529, x)) + z.lo;
  nx_t p = NX_FMA(2.5028076338831574e-08, t, 2.7631518290783527e-07);
#else
  const nx_t n = NX_RINT(x * 1.44269502f);
  const nx_t t = NX_FMA(n, 1.90465421e-09f, NX_FMA(n, -0.693147182f, x)) + z.lo;
  nx_t p = NX_FMA(0.00137445435f, t, 0.00836896803f);
  p = NX_FMA(p, t, 0.0416696593f);
  p = NX_FMA(p, t, 0.166665182f);
  p = NX_FMA(p, t, 0.499999881f);
  p = NX_FMA(p, t, 1.0f);
  p = NX_FMA(p, t, 1.0f);
#endif
#if NX_DOUBLE
  p = NX_FMA(p, t, 2.7557497365797654e-06);
  p = NX_FMA(p, t, 2.4801489225511812e-05);
  p = NX_FMA(p, t, 0.00019841269607173592);
  p = NX_FMA(p, t, 0.0013888888947795519);
  p = NX_FMA(p, t, 0.0083333333334472872);
  p = NX_FMA(p, t, 0.041666666666511823);
  p = NX_FMA(p, t, 0.16666666666666488);
  p = NX_FMA(p, t, 0.50000000000000133);
  p = NX_FMA(p, t, 1.0);
  p = NX_FMA(p, t, 1.0);
#endif
  return nx_ldexp(p, NX_INT(n));
}
// log(1 + x) for x >= 0: what rounding took off 1 + x comes back.
NX_FN nx_t nx_log1p(nx_t x) {
  const nx_words u = nx_two_sum(nx_t(1), x);
  return x < NX_INF ? NX_LOG(u.hi) + u.lo / u.hi : x;
}
// log(x) in two words for x > 0: of x = m 2^k with m around 1 it is k log 2 and 2 artanh(s), s = (m - 1) / (m + 1). Relative to the
// result its error is that of a series' second term, 2^-31 in single and 2^-60 in double.
NX_FN nx_words nx_log_words(nx_words x) {
  if (!(x.hi > 0 && x.hi < NX_INF)) return nx_word(NX_LOG(x.hi));
  nx_int k = nx_int(NX_EXPONENT(x.hi));
  if (nx_ldexp(x.hi, -k) > nx_t(1.4142135)) k += 1;
  const nx_words m = nx_pair(nx_ldexp(x.hi, -k), nx_ldexp(x.lo, -k));
  const nx_words s = nx_over(nx_sum_of(m, nx_word(-1)), nx_sum_of(m, nx_word(1)));
  const nx_t square = s.hi * s.hi;
  nx_t series = 0;
  for (nx_int j = NX_DOUBLE ? 13 : 6; j > 0; --j) series = NX_FMA(series, square, nx_t(1) / nx_t(2 * j + 1));
  const nx_words half = nx_renormalized(s.hi, s.lo + s.hi * square * series);
  const nx_words base = NX_DOUBLE ? nx_pair(nx_t(0.69314718055994529), nx_t(2.3190468138462996e-17))
                                  : nx_pair(nx_t(0.693147182), nx_t(-1.90465421e-09));
  return nx_sum_of(nx_times(nx_word(nx_t(k)), base), nx_pair(2 * half.hi, 2 * half.lo));
}
// 1 - exp(-z) for z >= 0: a series where the difference would cancel.
NX_CALL nx_t nx_complement(nx_t z) {
  nx_t small = z < nx_t(0.5) ? z : nx_t(0), series = 1;
  for (nx_int k = NX_DOUBLE ? 18 : 11; k > 1; --k) series = nx_t(1) - small / nx_t(k) * series;
  return z < nx_t(0.5) ? small * series : nx_t(1) - nx_exp(nx_word(-z));
}
// The place of a number among all of them, -inf to inf, and the number at a place. Both are their own inverse.
NX_FN nx_i64 nx_ordered(nx_i64 bits) { return bits < 0 ? (NX_DOUBLE ? nx_i64(1) << 63 : -(nx_i64(1) << 31)) - bits : bits; }
NX_FN nx_i64 nx_rank(nx_t x) { return nx_ordered(nx_bits(x)); }
NX_FN nx_t nx_at_rank(nx_i64 rank) { return nx_of_bits(nx_ordered(rank)); }
