// Exponentials of a row, relative to a power of two that belongs to the row.
//
// exp(x − m) with a floating-point m would cost a rounding (of x − m) and an ulp or two at large arguments. Instead the row
// has an integer exponent N = rint((m − c)·log2 e), and e(x) = exp(x − c)·2^−N = P(t)·2^(n − N): nothing is rounded before
// the polynomial's argument t. e(m) lies in [0.7, 1.42]. For |m| < 4096 c is 0; beyond, c = m, and x − m is exact wherever
// it matters (Sterbenz: x within a factor of two of m). Since references differ by powers of two only, a partial sum moves
// from one to another without rounding: that is why all algorithms give the same bits.

template <class T> constexpr T infinity = static_cast<T>(__builtin_inf());
template <class T> constexpr T not_a_number = static_cast<T>(__builtin_nan(""));
constexpr double near_limit = 4096;

template <class T> NX_INLINE bool is_near(T m) { return __builtin_fabs(m) < near_limit; }
template <class T> NX_INLINE bool is_finite(T m) { return __builtin_fabs(m) < infinity<double>; }

NX_INLINE float rint(float x) { return __builtin_rintf(x); }
NX_INLINE double rint(double x) { return __builtin_rint(x); }

// exp(x) = p · 2^n, for −2^14 ≤ x < 2^13; NaN in p where x is NaN. V is reg<T> or Vec<T>, `constant` fills one, and
// `coefficient(i)` is that of the polynomial, or all of them times the same.
template <class V> struct Parts {
  V p, n;
};
template <class T, class V, class F, class C> NX_INLINE Parts<V> exp_parts(V x, F constant, C coefficient) {
  using E = Exp<T>;
  V n, t;
  if constexpr (has_fma) {
    // rint(x·log2 e), for one instruction less on Intel: beside 1.5·2^23, or 2^52, there is no room for a fraction.
    const auto shift = constant(static_cast<T>(sizeof(T) == 4 ? 0x1.8p23 : 0x1.8p52));
    n = fma(x, constant(E::log2e), shift) - shift;
    t = fma(n, constant(-E::ln2_lo), fma(n, constant(-E::ln2_hi), x));
  } else {
    n = rint(x * constant(E::log2e));
    t = x - n * constant(E::ln2_a) - n * constant(E::ln2_b) - n * constant(E::ln2_c);
  }
  V p = fma(coefficient(E::degree), t, coefficient(E::degree - 1));
#pragma GCC unroll 16
  for (int i = E::degree - 2; i >= 0; --i) p = fma(p, t, coefficient(i));
  return {p, n};
}
template <class T, class V, class F> NX_INLINE Parts<V> exp_parts(V x, F constant) {
  return exp_parts<T>(x, constant, [&](int i) { return constant(Exp<T>::coefficient[i]); });
}

// Far below anything that matters, and still harmless in exp_parts: −inf ends up here. NaN passes.
template <class T, int L> NX_INLINE Vec<T, L> bounded(Vec<T, L> x) { return clamp_low(x, all(T(-16384))); }
template <class T> constexpr T lowest_exponent = -23637;  // of what is bounded
template <class T, int L> NX_INLINE Parts<Vec<T, L>> exp_parts(Vec<T, L> x) {
  return exp_parts<T>(x, [](T s) { return all(s); });
}

template <class T> struct Reference {
  Vec<T> c, n;
};
// The reference of a whole row whose maximum is m. An infinite m is treated as 0.
template <class T> NX_INLINE Reference<T> reference_of(Vec<T> m) {
  const Vec<T> zero = all(T(0)), limit = all(T(near_limit)), inf = all(infinity<T>);
  m = select_lt(m, inf, select_lt(zero - inf, m, m, zero), zero);
  const Vec<T> c = select_lt(m, limit, select_lt(zero - limit, m, zero, m), m);
  return {c, rint((m - c) * all(Exp<T>::log2e))};
}
// The exponent of a chunk whose maximum is m, when it is not yet known how far from 0 the row's maximum lies: c is 0, and
// the exponent good enough for any chunk that can count beside a near one. A far row is lifted again, see MaxSum.
template <class T> NX_INLINE T near_exponent(T m) {
  return rint((m < T(-2 * near_limit) ? T(-2 * near_limit) : m > T(near_limit) ? T(near_limit) : m) * Exp<T>::log2e);
}

template <class T, int L> NX_INLINE Vec<T, L> exp_at(Vec<T, L> x, Reference<T> ref) {
  const Parts<Vec<T, L>> e = exp_parts(bounded(x - ref.c));
  return ldexp(e.p, e.n - ref.n);
}

// The reference of an ordinary row, whose c is 0 and N between 0 and 60, folded into the polynomial: P(t)·2^−N · 2^n has the same
// bits, and costs an element two instructions less, of about twenty. Expected, with the rounding above: 13 % of the time in cache.
// Measured on a Granite Rapids: softmax of (64, 1024) floats 16.5 µs instead of 18.8, (16, 4096) 17.1 instead of 19.0.
template <class T> struct Folded {
  T coefficient[Exp<T>::degree + 1];
};
template <class T, int L> NX_INLINE Vec<T, L> exp_at(Vec<T, L> x, const Folded<T>& ref) {
  const auto e = exp_parts<T>(bounded(x), [](T s) { return all(s); }, [&](int i) { return all(ref.coefficient[i]); });
  return ldexp(e.p, e.n);
}
// f(the reference of a row whose maximum is m), in the cheapest form there is. (Not where vectors are loops over scalars: with a
// second copy of f such a file takes nine minutes to compile.)
template <class T, class F> NX_INLINE void with_reference(T m, F&& f) {
  if constexpr (reg<T>::lanes > 1) {
    if (m >= 0 && m < 40) {
      const T unit = T(1) / static_cast<T>(std::int64_t{1} << static_cast<int>(near_exponent(m)));
      Folded<T> folded;
#pragma GCC unroll 16
      for (int i = 0; i <= Exp<T>::degree; ++i) folded.coefficient[i] = Exp<T>::coefficient[i] * unit;
      return f(folded);
    }
  }
  f(reference_of(all(m)));
}
