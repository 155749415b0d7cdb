// Powers of the scores over their sum, or over the length. Sums are relative to a scale, so that nothing overflows whose
// quotient is a number.

NX_INLINE double larger(double a, double b) { return a > b ? a : b; }
NX_INLINE double largest_of(const RowView& r) { return larger(r.max, -r.min); }

// The weights y over their total; now, where a division has to be the only rounding.
template <bool exact> NX_INLINE void divide(RowView& r, double total) {
  if constexpr (exact) {
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = r.y[i] / total;
  } else {
    r.scale = 1 / total;
  }
}
// For those who go on computing with the weights.
NX_INLINE void settle(RowView& r) {
  for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = r.y[i] * r.scale;
  r.scale = 1;
}
template <bool exact> NX_INLINE double sum_of(const double* y, std::int64_t n) {
  return static_cast<double>(sum<exact>(n, [&](std::int64_t i, auto where) NX_INLINED { return vec_at(y, i, where); }));
}
// Σ of products, of the terms f in y with the cotangents.
NX_INLINE double mean_of(const RowView& r, const double* f, double total) {
  return static_cast<double>(sum<false>(r.n, [&](std::int64_t i, auto where) NX_INLINED { return vec_at(f, i, where) * vec_at(r.g, i, where); }) / total);
}

struct taylor_softmax {
  enum { order };

  // The polynomial, homogeneous in u = x/scale and delta = temperature/scale, so that its terms never overflow.
  struct Scale {
    double divisor, delta;
    Scale(const RowView& r) {
      const double largest = largest_of(r), limit = __builtin_pow(1e300, 1 / r.constants[order]);
      const bool far = largest > limit * r.temperature;
      divisor = far ? largest : r.temperature;
      delta = far ? r.temperature / largest : 1;
    }
  };
  static Real reciprocal_factorial(int k) {
    Real f = 1;
    for (; k > 1; --k) f *= k;
    return 1 / f;
  }
  // By Horner's rule, compensated where `exact`: for negative u the terms alternate.
  template <bool exact> static void polynomial(const RowView& r, Scale s, int degree, double* value, double* low) {
    const Words last(reciprocal_factorial(degree));
    for (std::int64_t i = 0; i < r.n; ++i) value[i] = last.hi;
    if (exact) {
      for (std::int64_t i = 0; i < r.n; ++i) low[i] = last.lo;
    }
    double power = s.delta;
    for (int k = degree - 1; k >= 0; --k, power *= s.delta) {
      const Words c(reciprocal_factorial(k));
      const double term = power * c.hi, term_low = product_low(power, c.hi) + c.lo * power;
      if constexpr (exact) {
        for (std::int64_t i = 0; i < r.n; ++i) {
          const double u = r.x[i] / s.divisor, back = u * s.divisor;
          const double u_low = ((r.x[i] - back) - product_low(u, s.divisor)) / s.divisor;
          const double p = value[i] * u, lost = product_low(value[i], u) + (value[i] * u_low + low[i] * u);
          const Pair<double> total = Pair<double>{p, lost} + Pair<double>{term, term_low};
          value[i] = total.sum + total.low;
          low[i] = total.low - (value[i] - total.sum);
        }
      } else {
        const double part = 1 / s.divisor;
        for (std::int64_t i = 0; i < r.n; ++i) value[i] = value[i] * (r.x[i] * part) + term;
      }
    }
  }
  template <bool exact> static bool forward(RowView& r) {
    polynomial<exact>(r, Scale(r), static_cast<int>(r.constants[order]), r.room[0], r.room[1]);
    const double total = sum_of<exact>(r.room[0], r.n);
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = r.room[0][i];
    divide<exact>(r, total);
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const Scale s(r);
    const int degree = static_cast<int>(r.constants[order]);
    double* const f = r.room[0];
    polynomial<false>(r, s, degree, f, nullptr);
    const double total = sum_of<false>(f, r.n), mean = mean_of(r, f, total);
    polynomial<false>(r, s, degree - 1, f, nullptr);  // the derivative is the polynomial of one order less
    const double slope = s.delta / total;
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = f[i] * slope * (r.g[i] - mean);
    return true;
  }
};

struct spherical_softmax {
  enum { eps };

  struct Scale {
    double of, e;  // what squares are relative to, and the root of eps, relative to it
    bool flat;     // a row of zeros without eps: at its limit for a vanishing one
    Scale(const RowView& r) {
      const double root = __builtin_sqrt(r.p[eps]) * (r.p[eps] == 0 ? 1 : r.temperature);
      const double largest = larger(largest_of(r), root);
      flat = largest == 0;
      of = flat ? 0 : power_below(largest);
      e = flat ? 1 : root / of;
    }
  };
  template <bool exact> static double terms(const RowView& r, Scale s, double* y) {
    const double part = s.flat ? 1 : 1 / s.of, constant = s.e * s.e;  // of a power of two: nothing is rounded
    for (std::int64_t i = 0; i < r.n; ++i) {
      const double u = r.x[i] * part;
      y[i] = u * u + constant;
    }
    return sum_of<exact>(y, r.n);
  }
  template <bool exact> static bool forward(RowView& r) {
    if (!(r.p[eps] < inf)) return false;
    divide<exact>(r, terms<exact>(r, Scale(r), r.y));
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const Scale s(r);
    if (s.flat || !(r.p[eps] < inf)) return false;
    const double total = terms<false>(r, s, r.y), mean = mean_of(r, r.y, total), part = 1 / s.of, slope = r.temperature * part, factor = slope / total;
    const Vec<double> centre = all(mean);
    const double moved = static_cast<double>(sum<false>(r.n, [&](std::int64_t i, auto where) NX_INLINED { return vec_at(r.g, i, where) - centre; }));
    r.dp[eps] = moved * factor * slope;
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = 2 * (r.x[i] * part) * ((r.g[i] - mean) * factor);
    return true;
  }
};

// max(x, 0)² over a divisor, without overflow on the way.
template <bool exact> NX_INLINE void squared_over(const RowView& r, double divisor, double* y) {
  if constexpr (exact) {
    for (std::int64_t i = 0; i < r.n; ++i) {
      const double z = r.x[i] / r.temperature, u = z < 0 ? 0 : z;
      y[i] = u * (u / divisor);
    }
  } else {
    const double factor = 1 / r.temperature / r.temperature / divisor;
    for (std::int64_t i = 0; i < r.n; ++i) {
      const double u = r.x[i] < 0 ? 0 : r.x[i];
      y[i] = u * (u * factor);
    }
  }
}
// dx, and Σ y g, which is half of Σ dx x.
NX_INLINE double squared_over_vjp(const RowView& r, double divisor) {
  const Vec<double> slope = all(2 / r.temperature / divisor), zero = all(0.0);
  const Real moment = sum<false>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
    const auto x = vec_at(r.x, i, where);
    const auto u = select_lt(x, zero, zero, x);
    const auto moved = vec_at(r.g, i, where) * (slope * u);
    put(r.y, i, moved, where);
    return moved * u;
  });
  return static_cast<double>(moment / r.temperature) / 2;
}

struct squared_relu {
  enum { scale, n };
  template <bool exact> static bool forward(RowView& r) {
    squared_over<exact>(r, length_of(r, n) * r.p[scale], r.y);
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const double length = length_of(r, n), whole = squared_over_vjp(r, length * r.p[scale]);
    r.dp[scale] = -whole / r.p[scale];
    r.dp[n] = -whole / length;
    return true;
  }
};

struct lips_relu {
  enum { n };
  template <bool exact> static bool forward(RowView& r) {
    squared_over<exact>(r, 2 * length_of(r, n), r.y);
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const double length = length_of(r, n);
    r.dp[n] = -squared_over_vjp(r, 2 * length) / length;
    return true;
  }
};

constexpr double smallest = 4.9406564584124654e-324;

struct normalized_squared_relu {
  static double least(const RowView&) { return smallest; }
  template <bool exact> static bool forward(RowView& r) {
    const double part = 1 / power_below(r.max);
    for (std::int64_t i = 0; i < r.n; ++i) {
      const double u = r.x[i] * part;
      r.y[i] = u * u;
    }
    divide<exact>(r, sum_of<exact>(r.y, r.n));
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const double part = 1 / power_below(r.max);
    for (std::int64_t i = 0; i < r.n; ++i) {
      const double u = r.x[i] * part;
      r.y[i] = u * u;
    }
    const double total = sum_of<false>(r.y, r.n), mean = mean_of(r, r.y, total), slope = 2 * r.temperature / total;
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = r.x[i] * part * slope * (r.g[i] - mean) * part;
    return true;
  }
};

// exp(x − m)·(1 − exp(−x)) relative to exp(m): neither factor overflows, and no digits cancel near zero.
struct expm1_relu {
  static double least(const RowView&) { return smallest; }
  template <bool exact> static Real terms(const RowView& r, const Relative<exact>& z, double* f, double* e) {
    const Vec<double> per_temperature = z.hi, far = all(-40.0);
    return sum<exact>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto x = vec_at(r.x, i, where);
      const auto part = exp_of<exact>(z.of(x));
      const auto t = negated(x * per_temperature);
      const auto near = negated(expm1_of(select_lt(far, t, t, far)));
      const auto term = part * near;
      put(f, i, term, where);
      if (e) put(e, i, part, where);
      return term;
    });
  }
  template <bool exact> static bool forward(RowView& r) {
    const Relative<exact> z(r, 1);
    if (!z.finite()) return false;
    divide<exact>(r, static_cast<double>(terms<exact>(r, z, r.y, nullptr)));
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const Relative<exact> z(r, 1);
    if (!z.finite()) return false;
    double* const f = r.room[0];
    const double total = static_cast<double>(terms<exact>(r, z, f, r.y)), mean = mean_of(r, f, total), part = 1 / total;
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = r.y[i] * part * (r.g[i] - mean);
    return true;
  }
};
