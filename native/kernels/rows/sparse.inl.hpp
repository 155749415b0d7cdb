// Normalizers that give exact zeros. Each has one unknown per row, a threshold, found without a sort: Newton's method on the
// few entries that can be above it, then once more in two words, because a weight is a difference that may be far smaller than
// its terms. One instance serves all storage types.
//
// Gradients need the weights, not the threshold, and start from the result if it is known. Expected: what reading one more row
// takes instead of a search. Measured, 16 rows of 50257 floats, before and after in ms, and times over entmax's autograd beside
// each: budget 4.05 and 1.83, 0.91 and 1.47; entmax 1.87 and 1.43, 1.5 and 1.8; sparsemax and entmax15, whose search is short,
// 1.24 and as much again, 1.5 to 1.9.

// The scores that may lie above the threshold, relative to the maximum: z + threshold > 0 with a threshold of at most 1.
struct Candidates {
  const double* hi;
  const double* lo;
  std::int64_t n;
};
// Most entries are not among them, which four vectors tell at a glance.
constexpr std::int64_t at_a_glance = 4 * lanes8;
NX_INLINE bool any_above(const double* x, double cutoff) {
  const Vec<double> a = max_skip_nan(load<double>(bytes(x)), load<double>(bytes(x + 8)));
  const Vec<double> b = max_skip_nan(load<double>(bytes(x + 16)), load<double>(bytes(x + 24)));
  return reduce_max(max_skip_nan(a, b)) > cutoff;
}
// body(i) where x[i] is above the cutoff.
template <class F> NX_INLINE void each_above(const double* x, std::int64_t n, double cutoff, F&& body) {
  for (std::int64_t first = 0; first < n; first += at_a_glance) {
    if (!any_above(x + first, cutoff)) continue;
    const std::int64_t end = n - first < at_a_glance ? n : first + at_a_glance;
    for (std::int64_t i = first; i < end; ++i) {
      if (x[i] > cutoff) body(i);
    }
  }
}
// Scores up to this have z ≤ −1, whatever rounding does.
NX_INLINE double cutoff_of(const Relative<true>& z) { return z.origin - (1 + 1e-9) / static_cast<double>(z.c) - 1e-9 * __builtin_fabs(z.origin); }

NX_NOINLINE Candidates candidates(const RowView& r, const Relative<true>& z) {
  double* const hi = r.room[0];
  double* const lo = r.room[1];
  const double cutoff = cutoff_of(z);
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < r.n; i += at_a_glance) {
    if (!any_above(r.x + i, cutoff)) continue;
    double h[at_a_glance], l[at_a_glance];
    for (std::int64_t k = 0; k < at_a_glance; k += lanes8) {
      const auto of = z.of(vec_at(r.x, (i + k) / lanes8, Full<1>{}));
      store(bytes(h + k), of.hi);
      store(bytes(l + k), of.lo);
    }
    const std::int64_t count = r.n - i < at_a_glance ? r.n - i : at_a_glance;
    for (std::int64_t k = 0; k < count; ++k) {
      hi[found] = h[k];
      lo[found] = l[k];
      found += h[k] > -1;
    }
  }
  return {hi, lo, found};
}

// Of a score that lies on the threshold rounding leaves more or less than nothing: half a last place, squared and doubled twice.
constexpr double noise = 0x1p-104;

// A score and a threshold in two words.
template <int L> NX_INLINE VecWords<L> lifted(VecWords<L> z, Words t) {
  const Vec<double> hi = all(t.hi), lo = all(t.lo);
  const auto s = z.hi + hi;
  const auto part = s - z.hi;
  return {s, ((z.hi - (s - part)) + (hi - part)) + (z.lo + lo)};
}

// The threshold for which the powers of z + threshold sum to 1: Newton's method in doubles, then twice in two words.

// First and second powers, in vectors. The sum is convex, so Newton's method comes down to its root from above.
template <int power> NX_NOINLINE Words threshold_of(Candidates c) {
  const Vec<double> zero = all(0.0), one = all(1.0);
  double t = 1, slope = 1;
  for (int step = 0; step < 200; ++step) {
    const Vec<double> level = all(t);
    const auto both = sums<false, 2>(c.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto lift = vec_at(c.hi, i, where) + level;
      const auto b = select_lt(zero, lift, lift, zero);
      const auto derivative = power == 1 ? select_lt(zero, lift, one, zero) : b + b;
      return Terms<2, lines_of(b)>{{power == 1 ? b : b * b, derivative}};
    });
    slope = static_cast<double>(both[1]);
    const double next = t - static_cast<double>(both[0] - 1) / slope;
    if (!(next < t)) break;
    t = next;
  }
  Words threshold(t);
  for (int step = 0; step < 2; ++step) {
    const Pair<double> total = careful_sum(c.n, [&](std::int64_t i) NX_INLINED {
      const VecWords<1> b = lifted(VecWords<1>{vec_at(c.hi, i, Full<1>{}), vec_at(c.lo, i, Full<1>{})}, threshold);
      const VecWords<1> term = power == 1 ? b : VecWords<1>{b.hi * b.hi, product_low(b.hi, b.hi) + (b.hi + b.hi) * b.lo};
      return VecWords<1>{select_lt(zero, b.hi, term.hi, zero), select_lt(zero, b.hi, term.lo, zero)};
    });
    threshold.add(-((total.sum - 1) + total.low) / slope);
  }
  return threshold;
}

// b^power, both in two words, but for the rounding of the power's first word.
NX_INLINE Pair<double> raised(Pair<double> b, Words power) {
  int exponent;
  const double fraction = __builtin_frexp(b.sum, &exponent), log = 0.69 * (exponent + 2 * (fraction - 1));  // to 0.07, beside 2^-53
  const double term = __builtin_pow(b.sum, power.hi);
  return {term, term * (power.hi * (b.low / b.sum) + power.lo * log)};
}

// Any other power, by scalars: steps in doubles, and the last ones with bases in two words, so that what is left is mostly the
// powers' own roundings. Below 1 the sum is not convex: the root is kept between bounds.
// Expected, a tenth of the error for no time, since the steps in doubles may end sooner. Measured, in rows of 33 normal scores,
// alpha = 1.75: the threshold off by 0.48 of 2^-53 (root mean square) before and 0.12 after, where the formula is by 0.18;
// in rows of 30000 scores, alpha = 3, weights by 49 last places before and 0.8 after; (1024, 4096) floats take 9 to 23 % less time.
NX_NOINLINE Words threshold_of(Candidates c, Words power) {
  double t = 1, low = 0, high = 1;
  for (int step = 0; step < 200; ++step) {
    double total = 0, slope = 0;
    for (std::int64_t i = 0; i < c.n; ++i) {
      const double b = c.hi[i] + t;
      if (!(b > 0)) continue;
      const double term = __builtin_pow(b, power.hi);
      total += term;
      slope += term / b;
    }
    (total > 1 ? high : low) = t;
    double next = t - (total - 1) / (power.hi * slope);
    if (!(next > low && next < high)) next = low + (high - low) / 2;
    const bool settled = __builtin_fabs(next - t) <= 0x1p-40 * t;
    t = next;
    if (settled) break;
  }
  const auto distance = [](Words from, Words to) { return (to.hi - from.hi) + (to.lo - from.lo); };
  Words threshold(t), below(0), above(1);
  for (int step = 0; step < 80; ++step) {
    Pair<double> excess{-1, 0};
    double slope = 0, nearest = inf;  // of the scores to the threshold
    for (std::int64_t i = 0; i < c.n; ++i) {
      const Pair<double> b = Pair<double>{c.hi[i], c.lo[i]} + Pair<double>{threshold.hi, threshold.lo};
      nearest = __builtin_fmin(nearest, __builtin_fabs(b.sum));
      if (!(b.sum > 0)) continue;
      const Pair<double> term = raised(b, power);
      excess = excess + term;
      slope += term.sum / b.sum;
    }
    const double rest = excess.sum + excess.low, by = -rest / (power.hi * slope), move = __builtin_fabs(by);
    // The next step would be this one squared, if it passed no score.
    const bool last = move <= 0x1p-60 * t || (move <= 0x1p-40 * t && move <= 0x1p-14 * nearest);
    (rest > 0 ? above : below) = threshold;
    threshold.add(by);
    if (last) break;
    if (!(distance(below, threshold) > 0 && distance(threshold, above) > 0)) {
      threshold = below;
      threshold.add(distance(below, above) / 2);
    }
  }
  return threshold;
}

// The bases z + threshold, 0 where that is not above 0, to y; what they are short of to low, if there is one, near those above 0
// only. y may be x.
NX_NOINLINE void bases(const RowView& r, const Relative<true>& z, Words threshold, double* y, double* low) {
  const Vec<double> zero = all(0.0), least = all(noise * threshold.hi);
  const double cutoff = cutoff_of(z);
  for (std::int64_t i = 0; i < r.n; i += at_a_glance) {
    const bool above = any_above(r.x + i, cutoff);
    for (std::int64_t k = i / lanes8; k < (i + at_a_glance) / lanes8; ++k) {
      Vec<double> base = zero, rest = zero;
      if (above) {
        const VecWords<1> b = lifted(z.of(vec_at(r.x, k, Full<1>{})), threshold);
        const Vec<double> whole = b.hi + b.lo;
        base = select_lt(least, whole, whole, zero);
        rest = select_lt(least, whole, b.lo - (whole - b.hi), zero);
      }
      put(y, k, base, Full<1>{});
      if (low && above) put(low, k, rest, Full<1>{});
    }
  }
}

// y = weight·(g − its mean under the weights): the weights move by `weight` each, their sum staying as it is. They may be computed
// from y. Returns the mean, 0 if nothing weighs.
template <class F> NX_INLINE double project(const RowView& r, F&& weight) {
  const auto both = sums<false, 2>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
    const auto w = weight(i, where);
    put(r.y, i, w, where);
    return Terms<2, lines_of(w)>{{w, w * vec_at(r.g, i, where)}};
  });
  const double mean = both[0] > 0 ? static_cast<double>(both[1] / both[0]) : 0;
  for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = r.y[i] * (r.g[i] - mean);
  return mean;
}

struct sparsemax {
  static constexpr bool invariant = true;
  static constexpr bool of_result = true;
  static NX_NOINLINE bool solve(const RowView& r) {
    const Relative<true> z(r, 1);
    if (!z.finite()) return false;
    bases(r, z, threshold_of<1>(candidates(r, z)), r.y, nullptr);
    return true;
  }
  template <bool exact> static bool forward(RowView& r) { return solve(r); }
  template <bool exact> static bool backward(RowView& r) {
    if (!r.result && !solve(r)) return false;
    const double* const p = r.result ? r.result : r.y;
    const Vec<double> zero = all(0.0), one = all(1.0);
    project(r, [&](std::int64_t i, auto where) NX_INLINED { return select_lt(zero, vec_at(p, i, where), one, zero); });
    return true;
  }
};

struct entmax15 {
  static constexpr bool invariant = true;
  static constexpr bool of_result = true;
  static NX_NOINLINE bool solve(const RowView& r, double* low) {
    const Relative<true> z(r, 0.5);
    if (!z.finite()) return false;
    bases(r, z, threshold_of<2>(candidates(r, z)), r.y, low);
    return true;
  }
  template <bool exact> static bool forward(RowView& r) {
    double* const low = r.room[0];
    if (!solve(r, low)) return false;
    for (std::int64_t i = 0; i < r.n; ++i) {
      const double b = r.y[i], rest = product_low(b, b) + 2 * b * low[i];
      r.y[i] = b * b + (b > 0 ? rest : 0);
    }
    return true;
  }
  template <bool exact> static bool backward(RowView& r) {
    if (r.result) {
      for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = __builtin_sqrt(r.result[i]);
    } else if (!solve(r, nullptr)) {
      return false;
    }
    project(r, [&](std::int64_t i, auto where) NX_INLINED { return vec_at(r.y, i, where); });
    return true;
  }
};

// Powers of the bases, by scalars: there are few.
NX_INLINE void raise(const RowView& r, const double* low, Words power) {
  each_above(r.y, r.n, 0, [&](std::int64_t i) NX_INLINED {
    const Pair<double> term = raised({r.y[i], low[i]}, power);
    r.y[i] = term.sum + term.low;
  });
}

struct entmax {
  static constexpr bool invariant = true;
  static constexpr bool of_result = true;
  enum { alpha };
  // Nearer to 1 the formula takes the limit. Far from it the smallest weights have bases that a threshold of one word is too coarse
  // for: of rows of 40 normal scores, alpha = 4 left 228 last places of a double, and alpha = 10 as many of a float as 6000.
  template <bool exact> static bool usable(double a) { return a == 1 || (a >= 1.04 && a <= (exact ? 3 : 7)); }

  template <bool exact> static bool forward(RowView& r) {
    const double a = r.p[alpha];
    if (!usable<exact>(a)) return false;
    if (a == 1) return weights<exact>(r, 1, {});
    if (a == 1.5) return entmax15::forward<exact>(r);
    if (a == 2) return sparsemax::solve(r);
    const Relative<true> z(r, static_cast<Real>(a) - 1);
    if (!z.finite()) return false;
    const Words power(1, a - 1);
    bases(r, z, threshold_of(candidates(r, z), power), r.y, r.room[0]);
    raise(r, r.room[0], power);
    divide<exact>(r, sum_of<exact>(r.y, r.n));  // 1 but for the rounding of the powers
    return true;
  }
  // (exp(y) − 1 − y)/y² for y ≥ 0.
  static double curvature(double y) {
    if (y >= 1) return (__builtin_expm1(y) - y) / (y * y);
    double series = 1;
    for (int k = 20; k > 2; --k) series = 1 + y / k * series;
    return series / 2;
  }
  // With L = log p and a = alpha − 1: a weight moves by p^(1 − a) with its score, and by −p L² (exp(−aL) − 1 + aL)/(aL)² with
  // alpha, less the sum's part.
  template <bool exact> static bool backward(RowView& r) {
    if (!usable<exact>(r.p[alpha])) return false;
    if (!r.result) {
      if (!forward<exact>(r)) return false;
      settle(r);
    }
    const double* const weights = r.result ? r.result : r.y;
    const double a = r.p[alpha] - 1;
    double* const weight = r.room[0];
    double* const direct = r.room[1];
    for (std::int64_t i = 0; i < r.n; ++i) weight[i] = direct[i] = 0;
    each_above(weights, r.n, 0, [&](std::int64_t i) NX_INLINED {
      const double p = weights[i], log = __builtin_log(p), y = -a * log < 700 ? -a * log : 700;
      weight[i] = p * __builtin_exp(y);
      direct[i] = -p * log * log * curvature(y);
    });
    const Vec<double> centre = all(project(r, [&](std::int64_t i, auto where) NX_INLINED { return vec_at(weight, i, where); }));
    r.dp[alpha] = static_cast<double>(sum<false>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      return vec_at(direct, i, where) * (vec_at(r.g, i, where) - centre);
    }));
    return true;
  }
};

struct normmax {
  static constexpr bool invariant = true;
  enum { alpha };
  static bool usable(double a) { return a >= 1.04 && a <= 64; }

  // The bases in y, and the power that the weights are proportional to.
  static NX_NOINLINE bool solve(const RowView& r, double* low) {
    if (!usable(r.p[alpha])) return false;
    const Relative<true> z(r, 1);
    if (!z.finite()) return false;
    const Candidates c = candidates(r, z);
    bases(r, z, r.p[alpha] == 2 ? threshold_of<2>(c) : threshold_of(c, Words(r.p[alpha], r.p[alpha] - 1)), r.y, low);
    return true;
  }
  template <bool exact> static bool forward(RowView& r) {
    const bool squared = r.p[alpha] == 2;
    double* const low = squared ? nullptr : r.room[0];
    if (!solve(r, low)) return false;
    if (!squared) raise(r, low, Words(1, r.p[alpha] - 1));
    divide<exact>(r, sum_of<exact>(r.y, r.n));
    return true;
  }
  // p = b^q / Σ b^q with q = 1/(alpha − 1), and b = z + t with Σ b^(q + 1) = 1.
  template <bool exact> static bool backward(RowView& r) {
    if (!solve(r, nullptr)) return false;
    const double q = 1 / (r.p[alpha] - 1);
    double* const p = r.room[0];
    double* const log = r.room[1];
    for (std::int64_t i = 0; i < r.n; ++i) {
      const bool inside = r.y[i] > 0;
      log[i] = inside ? __builtin_log(r.y[i]) : 0;
      p[i] = inside ? __builtin_exp(q * log[i]) : 0;
    }
    const double part = 1 / sum_of<false>(p, r.n);
    for (std::int64_t i = 0; i < r.n; ++i) p[i] = p[i] * part;
    const double mean = mean_of(r, p, 1);
    double shift = 0, by_power = 0, slide = 0;
    for (std::int64_t i = 0; i < r.n; ++i) {
      const double b = r.y[i], centred = r.g[i] - mean;
      r.y[i] = b > 0 ? q * p[i] / b * centred : 0;
      shift += r.y[i];
      by_power += p[i] * log[i] * centred;
      slide += p[i] * b * log[i];
    }
    for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = r.y[i] - p[i] * shift;
    r.dp[alpha] = -q * q * (by_power - shift * slide / (q + 1));
    return true;
  }
};

struct budget {
  static constexpr bool invariant = true;
  static constexpr bool of_result = true;
  enum { total };

  template <int L> static NX_INLINE auto clipped(Vec<double, L> b) {
    const Vec<double> zero = all(0.0), one = all(1.0);
    return select_lt(b, one, select_lt(zero, b, b, zero), one);
  }
  // The threshold lies where the sum of z + threshold, cut to 0 .. 1, is the budget: linear between the points where an entry
  // enters or leaves that range. Newton's method, kept between bounds, ends on the right piece.
  static NX_NOINLINE bool solve(const RowView& r) {
    const double wanted = r.p[total], n = static_cast<double>(r.n);
    if (!(wanted > 0)) return false;
    if (wanted >= n) {
      for (std::int64_t i = 0; i < r.n; ++i) r.y[i] = 1;
      return true;
    }
    const Relative<true> z(r, 1);
    const double depth = static_cast<double>(z.c) * (r.max - r.min);
    if (!z.finite() || !(depth < -negligible)) return false;
    const Vec<double> zero = all(0.0), one = all(1.0);
    double t = 1, low = 0, high = 1 + depth;
    for (int step = 0; step < 200; ++step) {
      const Vec<double> level = all(t);
      const auto both = sums<false, 2>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
        const auto b = z.of(vec_at(r.x, i, where)).hi + level;
        return Terms<2, lines_of(b)>{{clipped(b), select_lt(zero, b, select_lt(b, one, one, zero), zero)}};
      });
      const double excess = static_cast<double>(both[0] - wanted);
      if (__builtin_fabs(excess) <= 1e-14 * wanted) break;  // the rest is for two words
      (excess > 0 ? high : low) = t;
      double next = t - excess / static_cast<double>(both[1]);
      if (!(next > low && next < high)) next = low + (high - low) / 2;
      const bool settled = __builtin_fabs(next - t) <= 0x1p-52 * t;
      t = next;
      if (settled) break;
    }
    Words threshold(t);
    for (int step = 0; step < 2; ++step) {
      double inside = 0;
      const auto counts = sums<false, 2>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
        const auto b = lifted(z.of(vec_at(r.x, i, where)), threshold);
        const auto whole = b.hi + b.lo;
        const auto is_part = select_lt(zero, whole, select_lt(whole, one, one, zero), zero);
        return Terms<2, lines_of(whole)>{{is_part, select_lt(whole, one, zero, one)}};
      });
      inside = static_cast<double>(counts[0]);
      if (inside == 0) break;
      const Pair<double> parts = careful_sum(r.n, [&](std::int64_t i) NX_INLINED {
        const VecWords<1> b = lifted(z.of(vec_at(r.x, i, Full<1>{})), threshold);
        const Vec<double> whole = b.hi + b.lo;
        const auto cut = [&](Vec<double> v) { return select_lt(zero, whole, select_lt(whole, one, v, zero), zero); };
        return VecWords<1>{cut(b.hi), cut(b.lo)};
      });
      const Pair<double> excess = parts + Pair<double>{static_cast<double>(counts[1]) - wanted, 0};
      threshold.add(-(excess.sum + excess.low) / inside);
    }
    const Vec<double> least = all(noise * threshold.hi);
    each(r.n, [&](std::int64_t i, auto where) NX_INLINED {
      const auto b = lifted(z.of(vec_at(r.x, i, where)), threshold);
      const auto whole = b.hi + b.lo;
      put(r.y, i, clipped(select_lt(least, whole, whole, zero)), where);
    });
    return true;
  }
  template <bool exact> static bool forward(RowView& r) { return solve(r); }
  // Whether the result tells which weights are cut to 1, and not merely rounded to it: by how far the scores of those lie above
  // the highest one that was not cut.
  template <bool exact> static NX_NOINLINE bool is_told(const RowView& r) {
    const Vec<double> zero = all(0.0), one = all(1.0), none = all(-inf);
    Vec<double> part = zero, score = none, whole = none;  // the highest weight below 1, its score, and minus the lowest of weight 1
    for (std::int64_t i = 0; i < r.n; i += lanes8) {
      const Vec<double> x = load<double>(bytes(r.x + i)), p = load<double>(bytes(r.result + i));
      const Vec<double> uncut = select_lt(p, one, p, zero);
      part = max_skip_nan(part, uncut);
      score = max_skip_nan(score, select_lt(zero, uncut, x, none));
      whole = max_skip_nan(whole, select_lt(p, one, none, negated(x)));
    }
    const double above = (-reduce_max(whole) - reduce_max(score)) / r.temperature;
    return reduce_max(part) > 0 && reduce_max(part) + above > 1 + (exact ? 0x1p-40 : 0x1p-20);
  }
  template <bool exact> static bool backward(RowView& r) {
    if (!(r.p[total] < static_cast<double>(r.n))) return false;
    const bool told = r.result && is_told<exact>(r);
    if (!told && !solve(r)) return false;
    const double* const weights = told ? r.result : r.y;
    const Vec<double> zero = all(0.0), one = all(1.0);
    r.dp[total] = project(r, [&](std::int64_t i, auto where) NX_INLINED {
                    const auto p = vec_at(weights, i, where);
                    return select_lt(zero, p, select_lt(p, one, one, zero), zero);
                  });
    return true;
  }
};
