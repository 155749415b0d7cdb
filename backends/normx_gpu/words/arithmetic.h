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
// log(x) in two words for x >= 1, by a Newton step from y = log(x): exp(y) is e^2^7 with e = exp(y / 128) a short series.
NX_CALL nx_words nx_log_words(nx_t x) {
  const nx_t y = NX_LOG(x);
  const nx_t u = y / nx_t(128);
  nx_words e = nx_word(nx_t(1));
  for (nx_int k = NX_DOUBLE ? 20 : 14; k > 0; --k) {
    const nx_words scaled = nx_over(nx_times(e, nx_word(u)), nx_word(nx_t(k)));
    e = nx_sum_of(nx_word(nx_t(1)), scaled);
  }
  for (nx_int k = 0; k < 7; ++k) e = nx_times(e, e);
  return nx_renormalized(y, ((x - e.hi) - e.lo) / x);
}
// 1 - exp(-z) for z >= 0: a series where the difference would cancel.
NX_CALL nx_t nx_complement(nx_t z) {
  nx_t small = z < nx_t(0.5) ? z : nx_t(0), series = 1;
  for (nx_int k = NX_DOUBLE ? 18 : 11; k > 1; --k) series = nx_t(1) - small / nx_t(k) * series;
  return z < nx_t(0.5) ? small * series : nx_t(1) - nx_exp(nx_word(-z));
}
