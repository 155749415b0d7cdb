// The softmax family: exponentials of the scores, times a factor per row, over their sum and what stands beside it.

// Logits in the denominator that belong to no score: sinks, or one logit so many times.
struct Beside {
  const double* logits = nullptr;
  std::int64_t count = 0;
  double times = 1;
  double cotangent = 0;
};

// What a row's exponentials amount to. Everything is relative to the exponential of `top`, the largest logit of all.
struct Denominator {
  Real top;     // of the scores, which are relative to `level`, and of what stands beside them
  Real shrink;  // exp(level − top)
  Real rest;    // the whole sum less one, for the largest
  Real whole() const { return 1 + rest; }
};

template <bool exact> NX_INLINE Real exp_of(Real x) {
  return exact ? __builtin_expl(x) : static_cast<Real>(__builtin_exp(static_cast<double>(x)));
}
template <bool exact> NX_INLINE Real log1p_of(Real x) {
  return exact ? __builtin_log1pl(x) : static_cast<Real>(__builtin_log1p(static_cast<double>(x)));
}

// False: a logit is NaN or +inf. `excess` is the sum of the scores' exponentials less one.
template <bool exact> bool denominator(Real level, Real excess, Beside b, Denominator& d) {
  d.top = level;
  for (std::int64_t i = 0; i < b.count; ++i) {
    if (!(b.logits[i] < inf)) return false;
    if (b.logits[i] > d.top) d.top = b.logits[i];
  }
  bool counted = d.top == level;
  d.shrink = counted ? 1 : exp_of<exact>(level - d.top);
  d.rest = counted ? excess : (1 + excess) * d.shrink;
  for (std::int64_t i = 0; i < b.count; ++i) {
    if (b.logits[i] == d.top && !counted) {
      d.rest += b.times - 1;
      counted = true;
    } else if (b.logits[i] > -inf) {
      d.rest += b.times * exp_of<exact>(b.logits[i] - d.top);
    }
  }
  return true;
}

// Sum of the exponentials, which are left in e.
template <bool exact> NX_INLINE Real exponentials(const RowView& r, const Relative<exact>& z, double* e) {
  return sum<exact>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
    const auto part = exp_of<exact>(z.of(vec_at(r.x, i, where)));
    put(e, i, part, where);
    return part;
  });
}
// The same less one: the exponentials of the largest scores are counted, the others summed, so that nothing is lost beside
// a peak.
template <bool exact> NX_INLINE Real excess_of(const RowView& r, const Relative<exact>& z) {
  const Vec<double> zero = all(0.0), one = all(1.0);
  const auto both = sums<exact, 2>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
    const auto x = vec_at(r.x, i, where);
    const auto e = exp_of<exact>(z.of(x));
    return Terms<2, lines_of(x)>{{select_eq(x, z.from, zero, e), select_eq(x, z.from, one, zero)}};
  });
  return both[0] + (both[1] - 1);
}

// The weight of one logit beside the scores goes to `of_beside`, if it is asked for.
template <bool exact> NX_NOINLINE bool weights(RowView& r, Real factor, Beside b, double* of_beside = nullptr) {
  const Relative<exact> z(r, factor);
  if (!z.finite()) return false;
  const Real total = exponentials(r, z, r.y);
  Denominator d;
  if (!denominator<exact>(z.level(), total - 1, b, d)) return false;
  const Words inverse(d.shrink / d.whole());
  if constexpr (exact) {
    const Vec<double> hi = all(inverse.hi), lo = all(inverse.lo);
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto e = vec_at(r.y, i, where);
      put(r.y, i, fma(e, hi, e * lo), where);
    });
  } else {
    r.scale = inverse.hi;
  }
  if (of_beside && b.count) *of_beside = static_cast<double>(exp_of<exact>(b.logits[0] - d.top) / d.whole());
  return true;
}

// Gradients of the scores over the temperature, and of the logits beside them; the gradient of the factor, if it is asked for.
template <bool exact> NX_NOINLINE bool weights_vjp(RowView& r, Real factor, Beside b, double* dlogits, Real* dfactor) {
  const Relative<exact> z(r, factor);
  if (!z.finite()) return false;
  double* const e = r.y;
  const auto both = sums<false, 2>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
    const auto part = exp_of<exact>(z.of(vec_at(r.x, i, where)));
    put(e, i, part, where);
    return Terms<2, lines_of(part)>{{part, part * vec_at(r.g, i, where)}};
  });
  Denominator d;
  if (!denominator<exact>(z.level(), both[0] - 1, b, d)) return false;
  const auto weight_of = [&](double logit) { return logit > -inf ? b.times * exp_of<exact>(logit - d.top) / d.whole() : 0; };
  const Real inverse = d.shrink / d.whole();
  Real mean = both[1] * inverse;
  if (b.cotangent != 0 && b.logits[0] > -inf) mean += weight_of(b.logits[0]) * b.cotangent;
  const Vec<double> scale = all(static_cast<double>(inverse)), centre = all(static_cast<double>(mean));
  const Vec<double> slope = all(static_cast<double>(factor));
  if (dfactor) {
    const auto moments = sums<false, 2>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto inner = vec_at(e, i, where) * scale * (vec_at(r.g, i, where) - centre);
      put(e, i, inner * slope, where);
      return Terms<2, lines_of(inner)>{{inner * (vec_at(r.x, i, where) - z.from), inner}};
    });
    *dfactor = (moments[0] + moments[1] * static_cast<Real>(z.origin)) / r.temperature;
  } else {
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      put(e, i, vec_at(e, i, where) * scale * (vec_at(r.g, i, where) - centre) * slope, where);
    });
  }
  for (std::int64_t i = 0; dlogits && i < b.count; ++i) {
    dlogits[i] = b.logits[i] > -inf ? static_cast<double>(weight_of(b.logits[i]) * (b.cotangent - mean)) : 0;
  }
  return true;
}

NX_INLINE Beside sinks_of(const RowView& r) { return {r.sink, r.sinks}; }

struct softmax {
  static constexpr bool invariant = true;
  template <bool exact> static bool forward(RowView& r) { return weights<exact>(r, 1, sinks_of(r)); }
  template <bool exact> static bool backward(RowView& r) { return weights_vjp<exact>(r, 1, sinks_of(r), r.dsink, nullptr); }
};

struct softmin : softmax {
  static constexpr bool negated = true;
};

struct log_softmax {
  static constexpr bool invariant = true, log_space = true;
  template <bool exact> static bool forward(RowView& r) {
    const Relative<exact> z(r, 1);
    Denominator d;
    if (!z.finite() || !denominator<exact>(z.level(), excess_of(r, z), sinks_of(r), d)) return false;
    const Words shift(log1p_of<exact>(d.rest) + (d.top - z.level()));
    const Vec<double> hi = all(shift.hi), lo = all(shift.lo);
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto of = z.of(vec_at(r.x, i, where));
      put(r.y, i, exact ? (of.hi - hi) + (of.lo - lo) : of.hi - hi, where);
    });
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const Relative<exact> z(r, 1);
    if (!z.finite()) return false;
    const auto both = sums<false, 2>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto part = exp_of<exact>(z.of(vec_at(r.x, i, where)));
      put(r.y, i, part, where);
      return Terms<2, lines_of(part)>{{part, vec_at(r.g, i, where)}};
    });
    Denominator d;
    if (!denominator<exact>(z.level(), both[0] - 1, sinks_of(r), d)) return false;
    const Vec<double> scale = all(static_cast<double>(d.shrink / d.whole() * both[1]));
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED { put(r.y, i, vec_at(r.g, i, where) - vec_at(r.y, i, where) * scale, where); });
    for (std::int64_t i = 0; i < r.sinks; ++i) {
      r.dsink[i] = r.sink[i] > -inf ? static_cast<double>(-exp_of<exact>(r.sink[i] - d.top) / d.whole() * both[1]) : 0;
    }
    return true;
  }
};

struct logsumexp {
  static constexpr bool log_space = true, reduces = true;
  template <bool exact> static bool forward(RowView& r) {
    const Relative<exact> z(r, 1);
    if (!z.finite()) return false;
    r.value = static_cast<double>(z.level() + log1p_of<exact>(excess_of(r, z)));
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    const Relative<exact> z(r, 1);
    if (!z.finite()) return false;
    const Vec<double> scale = all(static_cast<double>(r.g[0] / exponentials(r, z, r.y)));
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED { put(r.y, i, vec_at(r.y, i, where) * scale, where); });
    return true;
  }
};

// The length of a row: as it was given, or counted.
NX_INLINE double length_of(const RowView& r, int parameter) {
  const double n = r.is_given(parameter) ? r.p[parameter] : static_cast<double>(r.n);
  return n > 1 ? n : 1;
}
template <bool exact> NX_INLINE Real log_of(double x) { return exact ? __builtin_logl(x) : static_cast<Real>(__builtin_log(x)); }

struct ssmax {
  static constexpr bool invariant = true;
  enum { s, b, n };
  template <bool exact> static Real factor(const RowView& r) { return r.p[s] * log_of<exact>(length_of(r, n)) + r.p[b]; }
  template <bool exact> static bool forward(RowView& r) { return weights<exact>(r, factor<exact>(r), sinks_of(r)); }
  template <bool exact> static bool backward(RowView& r) {
    Real moment;
    if (!weights_vjp<exact>(r, factor<exact>(r), sinks_of(r), r.dsink, &moment)) return false;
    const double length = length_of(r, n);
    r.dp[s] = static_cast<double>(log_of<exact>(length) * moment);
    r.dp[b] = static_cast<double>(moment);
    r.dp[n] = static_cast<double>(r.p[s] / length * moment);
    return true;
  }
};

struct entropy_invariant_softmax {
  static constexpr bool invariant = true;
  enum { n0, n_min, n };
  static double length(const RowView& r) {
    const double given = length_of(r, n);
    return given < r.p[n_min] ? r.p[n_min] : given;
  }
  template <bool exact> static Real factor(const RowView& r) { return log_of<exact>(length(r)) / log_of<exact>(r.p[n0]); }
  template <bool exact> static bool forward(RowView& r) { return weights<exact>(r, factor<exact>(r), sinks_of(r)); }
  template <bool exact> static bool backward(RowView& r) {
    Real moment;
    const Real c = factor<exact>(r), base = log_of<exact>(r.p[n0]);
    if (!weights_vjp<exact>(r, c, sinks_of(r), r.dsink, &moment)) return false;
    const bool is_short = length_of(r, n) < r.p[n_min];
    const double slope = static_cast<double>(moment / (length(r) * base));
    r.dp[n0] = static_cast<double>(-c * moment / (r.p[n0] * base));
    r.dp[n_min] = is_short ? slope : 0;
    r.dp[n] = is_short ? 0 : slope;
    return true;
  }
};

struct adaptive_softmax {
  static constexpr bool invariant = true;
  enum { threshold, differentiate, coefficients };

  struct Heat {
    Real factor, slope, entropy, log_total;
  };
  template <bool exact> static Heat heat(const RowView& r, const Relative<exact>& z) {
    const Vec<double> zero = all(0.0), one = all(1.0);
    const auto three = sums<exact, 3>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto x = vec_at(r.x, i, where);
      const auto of = z.of(x);
      const auto e = exp_of<exact>(of);
      // Where the exponential is 0 the product is, however far away the score is.
      return Terms<3, lines_of(x)>{{select_eq(x, z.from, zero, e), select_eq(x, z.from, one, zero), select_lt(zero, e, of.hi * e, zero)}};
    });
    const Real rest = three[0] + (three[1] - 1);
    Heat h{1, 0, 0, log1p_of<exact>(rest)};
    h.entropy = h.log_total - three[2] / (1 + rest);
    const std::int64_t degree = r.n_constants - coefficients - 1;
    Real value = 0, slope = 0;
    for (std::int64_t i = 0; i <= degree; ++i) {
      slope = slope * h.entropy + value;
      value = value * h.entropy + r.constants[coefficients + i];
    }
    if (h.entropy > r.constants[threshold] && value > 1) {
      h.factor = value;
      h.slope = slope;
    }
    return h;
  }
  template <bool exact> static bool forward(RowView& r) {
    const Relative<exact> z(r, 1);
    return z.finite() && weights<exact>(r, heat(r, z).factor, {});
  }
  template <bool exact> static bool backward(RowView& r) {
    const Relative<exact> z(r, 1);
    if (!z.finite()) return false;
    const Heat h = heat(r, z);
    Real moment;
    if (!weights_vjp<exact>(r, h.factor, {}, nullptr, &moment)) return false;
    if (r.constants[differentiate] == 0 || h.slope == 0) return true;
    const Vec<double> log_total = all(static_cast<double>(h.log_total)), entropy = all(static_cast<double>(h.entropy));
    const Vec<double> pull = all(static_cast<double>(moment * h.slope)), zero = all(0.0);
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto of = z.of(vec_at(r.x, i, where));
      const auto log_p = of.hi - log_total;
      const auto p = exp_of<exact>(VecWords<lines_of(log_p)>{log_p, of.lo});
      put(r.y, i, vec_at(r.y, i, where) - select_lt(zero, p, pull * p * (log_p + entropy), zero), where);
    });
    return true;
  }
};

struct inhibited_softmax {
  template <bool exact> static bool forward(RowView& r) { return weights<exact>(r, 1, {r.p, 1}); }
  template <bool exact> static bool backward(RowView& r) { return weights_vjp<exact>(r, 1, {r.p, 1}, r.dp, nullptr); }
};

// What is left out has weights here, and cotangents: their mean is that of the one logit that stands for all.
struct masked_softmax {
  static constexpr bool fills = true;
  static Beside left_out(const RowView& r) {
    const double times = static_cast<double>(r.left_out);
    return {r.p, r.left_out ? 1 : 0, times, r.left_out ? r.left_out_cotangents / times : 0};
  }
  template <bool exact> static bool forward(RowView& r) { return weights<exact>(r, 1, left_out(r), &r.filler); }
  template <bool exact> static bool backward(RowView& r) { return weights_vjp<exact>(r, 1, left_out(r), r.dp, nullptr); }
};

struct nonnegative_softmax : softmax {
  static constexpr bool invariant = false;
  static double least(const RowView& r) { return r.p[0]; }
};

// The scores come with their noise.
struct gumbel_softmax : softmax {
  enum { hard };
  template <bool exact> static bool forward(RowView& r) {
    if (r.constants[hard] == 0) return softmax::forward<exact>(r);
    std::int64_t first = 0;
    while (r.x[first] != r.max) ++first;
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = i == first;
    return true;
  }
};
