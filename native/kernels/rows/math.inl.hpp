// Folds and maps over the doubles of a row, and the functions that the programs need beside exp.
//
// A program is written in vectors where it sums or takes exponentials, and as plain loops, which compilers vectorise, elsewhere.
// What happens once per row is scalar, and in long double where float64 rows magnify its rounding.

constexpr std::int64_t lanes8 = Vec<double>::lanes;
static_assert(lanes8 == 8);
using Real = long double;

NX_INLINE const char* bytes(const double* p) { return reinterpret_cast<const char*>(p); }
NX_INLINE char* bytes(double* p) { return reinterpret_cast<char*>(p); }

// Vector i of a row, or as many as `where` says from there.
template <class Where> NX_INLINE auto vec_at(const double* x, std::int64_t i, Where where) { return load(bytes(x + lanes8 * i), where, 0.0); }
template <class V, class Where> NX_INLINE void put(double* y, std::int64_t i, V v, Where where) { store(bytes(y + lanes8 * i), v, where); }

// body(i, Full<lines>) for all vectors of n entries, the last one perhaps partly beyond them.
template <class F> NX_INLINE void each(std::int64_t n, F&& body) {
  const std::int64_t vectors = (n + lanes8 - 1) / lanes8;
  std::int64_t i = 0;
  for (; i + group <= vectors; i += group) body(i, Full<group>{});
  for (; i < vectors; ++i) body(i, Full<1>{});
}

// The first lanes of a vector, 0 in the others.
NX_INLINE Vec<double> first_lanes(Vec<double> v, std::int64_t count) {
  alignas(64) static constexpr double kept[16] = {1, 1, 1, 1, 1, 1, 1, 1};
  const Vec<double> zero = all(0.0);
  return select_eq(load<double>(bytes(kept + lanes8 - count)), zero, zero, v);
}

template <bool exact, class V> NX_INLINE Pair<V> added(Pair<V> a, V term) {
  if constexpr (exact) return a + Pair<V>{term, term - term};
  return {a.sum + term, a.low};
}
NX_INLINE Pair<double> across(Pair<Vec<double>> lanes) { return across(Lanes<double>{lanes}); }

template <int k> struct Sums {
  Pair<double> of[k];
  Real operator[](int i) const { return static_cast<Real>(of[i].sum) + static_cast<Real>(of[i].low); }
};
template <int k, int lines> struct Terms {
  Vec<double, lines> of[k];
};

// The sums of term(i, where), a Terms<k, lines>, over n entries. Plainly in the lanes for 1024 of them, which is a few 2^-53 off,
// and without loss from there on; or without loss in the lanes as well, where float64 rows are to be `exact`.
template <bool exact, int k, class F> NX_INLINE Sums<k> sums(std::int64_t n, F&& term) {
  Sums<k> total{};
  for (std::int64_t first = 0; first < n; first += 1024) {
    const std::int64_t end = n - first < 1024 ? n : first + 1024;
    Pair<Vec<double, group>> several[k];
    for (auto& s : several) s.sum = s.low = build<double, group>([](int) { return reg<double>::all(0); });
    std::int64_t i = first / lanes8;
    for (; i + group <= end / lanes8; i += group) {
      const Terms<k, group> t = term(i, Full<group>{});
      for (int j = 0; j < k; ++j) several[j] = added<exact>(several[j], t.of[j]);
    }
    Pair<Vec<double>> one[k];
    for (int j = 0; j < k; ++j) {
      one[j] = {line(several[j].sum, 0), line(several[j].low, 0)};
      for (int l = 1; l < group; ++l) one[j] = one[j] + Pair<Vec<double>>{line(several[j].sum, l), line(several[j].low, l)};
    }
    for (; i < end / lanes8; ++i) {
      const Terms<k, 1> t = term(i, Full<1>{});
      for (int j = 0; j < k; ++j) one[j] = added<exact>(one[j], t.of[j]);
    }
    if (end % lanes8) {
      const Terms<k, 1> t = term(i, Full<1>{});
      for (int j = 0; j < k; ++j) one[j] = added<exact>(one[j], first_lanes(t.of[j], end % lanes8));
    }
    for (int j = 0; j < k; ++j) total.of[j] = total.of[j] + across(one[j]);
  }
  return total;
}
template <bool exact, class F> NX_INLINE Real sum(std::int64_t n, F&& term) {
  return sums<exact, 1>(n, [&](std::int64_t i, auto where) NX_INLINED {
    const auto t = term(i, where);
    return Terms<1, lines_of(t)>{{t}};
  })[0];
}

template <int L> NX_INLINE Vec<double, L> negated(Vec<double, L> x) { return all(0.0) - x; }
// −|x|
template <int L> NX_INLINE Vec<double, L> below(Vec<double, L> x) { return select_lt(x, all(0.0), x, negated(x)); }

// What a·b loses in rounding, for values far from overflow.
template <int A, int B> NX_INLINE auto product_low(Vec<double, A> a, Vec<double, B> b) {
  if constexpr (has_fma) {
    return fma(a, b, all(0.0) - a * b);
  } else {
    const auto as = a * all(0x1.0000002p27), bs = b * all(0x1.0000002p27);
    const auto ah = as - (as - a), bh = bs - (bs - b), al = a - ah, bl = b - bh;
    return ((ah * bh - a * b) + ah * bl + al * bh) + al * bl;
  }
}
NX_INLINE double product_low(double a, double b) {
  if constexpr (has_fma) {
    return __builtin_fma(a, b, -(a * b));
  } else {
    return product(a, b).low;
  }
}

// The power of two below a positive number, or the least that has a reciprocal: what is relative to it has lost nothing.
NX_INLINE double power_below(double x) {
  const int exponent = __builtin_ilogb(x);
  return __builtin_ldexp(1.0, exponent < -1022 ? -1022 : exponent);
}

// A number in two words.
struct Words {
  double hi, lo;
  Words(Real x) : hi(static_cast<double>(x)), lo(static_cast<double>(x - static_cast<Real>(hi))) {}
  // a / b, to the last place of the low word: a long double has 64 bits at best.
  Words(Real a, double b) : hi(static_cast<double>(a / b)), lo((static_cast<double>(a - static_cast<Real>(hi * b)) - product_low(hi, b)) / b) {}
  void add(double step) {
    const Pair<double> moved = Pair<double>{hi, lo} + Pair<double>{step, 0};
    hi = moved.sum + moved.low;
    lo = moved.low - (hi - moved.sum);
  }
};
template <int L> struct VecWords {
  Vec<double, L> hi, lo;
};

// Far below anything that exp tells from 0.
constexpr double negligible = -2000;

// exp(z) for z ≤ 700 or so; the low word counts where it is `exact`. Elsewhere the polynomial is that of floats, which is right to
// 2^-28, and the argument is reduced by one product.
template <bool exact, int L> NX_INLINE Vec<double, L> exp_of(VecWords<L> z) {
  using E = Exp<double>;
  using P = Exp<std::conditional_t<exact, double, float>>;
  const Vec<double, L> x = clamp_low(z.hi, all(negligible));
  const Vec<double, L> n = rint(x * all(E::log2e));
  Vec<double, L> t;
  if constexpr (!exact) {
    t = fma(n, all(-E::ln2_hi), x);
  } else if constexpr (has_fma) {
    t = fma(n, all(-E::ln2_lo), fma(n, all(-E::ln2_hi), x)) + z.lo;
  } else {
    t = (x - n * all(E::ln2_a) - n * all(E::ln2_b) - n * all(E::ln2_c)) + z.lo;
  }
  const auto c = [](int i) { return all(static_cast<double>(P::coefficient[i])); };
  Vec<double, L> p = fma(c(P::degree), t, c(P::degree - 1));
#pragma GCC unroll 16
  for (int i = P::degree - 2; i >= 0; --i) p = fma(p, t, c(i));
  return ldexp(p, n);
}

// exp(x) − 1 without cancellation, for −2000 ≤ x ≤ 40.
template <int L> NX_INLINE Vec<double, L> expm1_of(Vec<double, L> x) {
  using E = Exp<double>;
  const Vec<double, L> n = rint(x * all(E::log2e));
  Vec<double, L> t;
  if constexpr (has_fma) {
    t = fma(n, all(-E::ln2_lo), fma(n, all(-E::ln2_hi), x));
  } else {
    t = x - n * all(E::ln2_a) - n * all(E::ln2_b) - n * all(E::ln2_c);
  }
  Vec<double, L> q = fma(all(E::coefficient[E::degree]), t, all(E::coefficient[E::degree - 1]));
#pragma GCC unroll 16
  for (int i = E::degree - 2; i >= 2; --i) q = fma(q, t, all(E::coefficient[i]));
  q = fma(q * t, t, t);
  return ldexp(q, n) + (ldexp(all(1.0) + (t - t), n) - all(1.0));
}

// Σ of words over n entries, each addition's error kept.
template <class F> NX_INLINE Pair<double> careful_sum(std::int64_t n, F&& term) {
  Pair<Vec<double>> total{all(0.0), all(0.0)};
  for (std::int64_t i = 0; i * lanes8 < n; ++i) {
    const VecWords<1> t = term(i);
    const std::int64_t left = n - i * lanes8;
    const bool whole = left >= lanes8;
    total = total + Pair<Vec<double>>{whole ? t.hi : first_lanes(t.hi, left), whole ? t.lo : first_lanes(t.lo, left)};
  }
  return across(total);
}

// Scores over the temperature, times a factor, relative to the score for which that is largest: (x − origin)·c ≤ 0.
template <bool exact> struct Relative {
  double origin;
  Real c;
  double rest;  // the low word of c
  Vec<double> from, hi, lo;

  Relative(const RowView& r, Real factor) : origin(factor < 0 ? r.min : r.max), c(factor / r.temperature) {
    const Words words(factor, r.temperature);
    from = all(origin);
    rest = words.lo;
    hi = all(words.hi);
    lo = all(words.lo);
  }
  // What the largest exponential is the exponential of.
  Real level() const { return static_cast<Real>(origin) * c; }
  // False as well where a product without FMA overflows on the way.
  bool finite() const { return __builtin_isfinite(static_cast<double>(c)) && __builtin_isfinite(rest) && __builtin_isfinite(static_cast<double>(level())); }

  template <int L> NX_INLINE VecWords<L> of(Vec<double, L> x) const {
    const Vec<double, L> d = x - from;
    const Vec<double, L> z = d * hi;
    if constexpr (exact) {
      const Vec<double, L> part = d - x;
      const Vec<double, L> d_low = (x - (d - part)) + (negated(part) - from);  // TwoSum of x and −origin
      const Vec<double, L> low = product_low(d, hi) + (d * lo + d_low * hi);
      return {z, select_lt(z, all(negligible), all(0.0), low)};
    } else {
      return {z, z};  // nobody looks at the low word
    }
  }
};
