// The logistic function with a bias that follows the length, and the standard score.

struct sigmoid {
  enum { bias, n };
  enum { normalize };

  template <bool exact> struct Logit {
    Vec<double> hi, lo, b, b_low;
    Logit(const RowView& r) {
      const Words c(1 / static_cast<Real>(r.temperature)), shift(r.is_given(bias) ? static_cast<Real>(r.p[bias]) : -log_of<exact>(length_of(r, n)));
      hi = all(c.hi);
      lo = all(c.lo);
      b = all(shift.hi);
      b_low = all(shift.lo);
    }
    // Minus the modulus of the logit, in two words: a large negative one is exponentiated.
    template <int L> NX_INLINE VecWords<L> below_zero(Vec<double, L> x) const {
      const auto z = x * hi;
      const auto s = z + b;
      const Vec<double> zero = all(0.0);
      if constexpr (exact) {
        const auto part = s - z;
        const auto low = ((z - (s - part)) + (b - part)) + (product_low(x, hi) + (x * lo + b_low));
        const auto signed_low = select_lt(s, zero, low, negated(low));
        return {below(s), select_lt(below(s), all(negligible), zero, signed_low)};
      } else {
        return {below(s), s};
      }
    }
    template <int L> NX_INLINE Vec<double, L> of(Vec<double, L> x) const { return x * hi + b; }
  };
  // exp(−|z|) in e.
  template <bool exact> static void exponentials(const RowView& r, const Logit<exact>& z, double* e) {
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED { put(e, i, exp_of<exact>(z.below_zero(vec_at(r.x, i, where))), where); });
  }
  static bool usable(const RowView& r) { return __builtin_isfinite(r.p[bias]) && __builtin_isfinite(r.p[n]) && r.temperature > 1e-100; }

  // y may be x.
  template <bool exact> static void logistic(const RowView& r, const Logit<exact>& z, double* y, double* e) {
    exponentials(r, z, e);
    double c[8], b[8];
    store(bytes(c), z.hi);
    store(bytes(b), z.b);
    for (std::int64_t i = 0; i < r.n; ++i) y[i] = (r.x[i] * c[0] + b[0] < 0 ? e[i] : 1) / (1 + e[i]);
  }
  template <bool exact> static bool forward(RowView& r) {
    if (!usable(r)) return false;
    logistic(r, Logit<exact>(r), r.y, r.room[0]);
    if (r.constants[normalize] == 0) return true;
    const double total = sum_of<exact>(r.y, r.n);
    divide<exact>(r, total == 0 ? 1 : total);
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    if (!usable(r)) return false;
    double* const e = r.room[0];
    logistic(r, Logit<exact>(r), r.y, e);
    double total = 1, mean = 0;
    if (r.constants[normalize] != 0) {
      total = sum_of<false>(r.y, r.n);
      total = total == 0 ? 1 : total;
      mean = mean_of(r, r.y, total);
    }
    // Of very low scores the total is subnormal, and has no reciprocal.
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = e[i] / ((1 + e[i]) * (1 + e[i])) * ((r.g[i] - mean) / total);
    r.dp[bias] = sum_of<false>(r.y, r.n);
    r.dp[n] = -r.dp[bias] / length_of(r, n);
    return true;
  }
};

struct zscore {
  static constexpr bool invariant = true;
  enum { eps };

  // The mean in two words; the root of the mean square of the deviations from it, which are all relative to about the largest.
  struct Moments {
    Words mean{0};
    double scale = 1, spread = 0;
    bool flat = false;
  };
  // y may be x.
  template <bool exact> static Moments deviations(const RowView& r, double* y) {
    const Vec<double> origin = all(r.max);
    const double n = static_cast<double>(r.n);
    const double rough = static_cast<double>(sum<false>(r.n, [&](std::int64_t i, auto where) NX_INLINED { return vec_at(r.x, i, where) - origin; })) / n;
    Moments m;
    m.mean.hi = r.max + rough;
    if constexpr (exact) {
      const Vec<double> step = all(rough);
      const Pair<double> rest = careful_sum(r.n, [&](std::int64_t i) NX_INLINED {
        const Vec<double> x = vec_at(r.x, i, Full<1>{});
        const Vec<double> d = x - origin;
        const Vec<double> part = d - x;
        const Vec<double> low = (x - (d - part)) + (negated(part) - origin);
        const Vec<double> left = d - step;
        const Vec<double> back = left - d;
        return VecWords<1>{left, ((d - (left - back)) + (negated(back) - step)) + low};
      });
      // As sums of doubles: long double would round the mean of large scores.
      const Pair<double> mean = (Pair<double>{r.max, 0} + Pair<double>{rough, 0}) + Pair<double>{(rest.sum + rest.low) / n, 0};
      m.mean.hi = mean.sum;
      m.mean.lo = mean.low;
      for (std::int64_t i = 0; i < r.n; ++i) {
        const Pair<double> d = Pair<double>{r.x[i], 0} + Pair<double>{-mean.sum, 0};
        y[i] = d.sum + (d.low - mean.low);
      }
    } else {
      for (std::int64_t i = 0; i < r.n; ++i) y[i] = r.x[i] - m.mean.hi;
    }
    m.flat = r.max == r.min;
    m.scale = m.flat ? 1 : power_below(larger(r.max - m.mean.hi, m.mean.hi - r.min));
    const Vec<double> scale = all(1 / m.scale);
    const Real squares = sum<exact>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto u = vec_at(y, i, where) * scale;
      put(y, i, u, where);
      return u * u;
    });
    m.spread = __builtin_sqrt(static_cast<double>(squares) / n);
    return m;
  }
  static bool usable(const RowView& r) { return r.p[eps] < inf && largest_of(r) < 1e290; }
  template <bool exact> static bool forward(RowView& r) {
    if (!usable(r)) return false;
    const Moments m = deviations<exact>(r, r.y);
    divide<exact>(r, m.flat ? 1 : m.spread + r.p[eps] * r.temperature / m.scale);
    return true;
  }
  // With u the deviations over `scale`, s their spread and e = eps·T/scale: dx = (g − its mean − u·Σ u g/(n s (s + e)))/(scale·(s + e)/T).
  template <bool exact> static bool backward(RowView& r) {
    if (!usable(r)) return false;
    double* const u = r.room[0];
    const Moments m = deviations<exact>(r, u);
    if (m.flat) {
      for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = 0;
      return true;
    }
    const double n = static_cast<double>(r.n), divisor = m.spread + r.p[eps] * r.temperature / m.scale;
    const double mean = mean_of(r, u, divisor), centre = sum_of<false>(r.g, r.n) / n;
    const double slope = mean / m.spread / n, part = r.temperature / divisor / m.scale;
    if (!(part < inf)) return false;
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = ((r.g[i] - centre) - u[i] * slope) * part;
    r.dp[eps] = -mean * part;
    return true;
  }
};
