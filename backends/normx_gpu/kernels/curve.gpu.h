// Normalizers whose weights are any power of z + t: entmax and normmax. Rows that share a warp have powers of their own, so all go
// through the same steps. Needs softmax.gpu.h and sparse.gpu.h.

// Thresholds stay above exp of minus this, so that their inverses are finite; of a weight's slope, the largest logarithm; any
// greater exponent gives the same weights.
#define NX_DEPTH (NX_DOUBLE ? 300 : 40)
#define NX_HIGHEST (NX_DOUBLE ? 700 : 80)
#define NX_STEEPEST 1e8f

// Which threshold is wanted: that for which the powers of z + t sum to 1, where z are the scores less their maximum, times c.
struct nx_curve {
  nx_t top;
  nx_words c, power, t;
  nx_t inverse;  // of the power
  nx_int whole;  // 1 or 2 where the power is that, else 0
};
NX_FN nx_words nx_excess_exponent(NX_THREAD const nx_row& r) {
  const nx_words a = nx_two_sum(nx_parameter(r, 0), -1);
  return a.hi < nx_t(NX_STEEPEST) ? a : nx_word(nx_t(NX_STEEPEST));
}
// b^power, in two words where that is exact.
NX_CALL nx_words nx_raised(nx_words b, nx_words power, nx_int whole) {
  if (!(b.hi > 0)) return nx_word(0);
  if (whole == 1) return b;
  if (whole == 2) return nx_times(b, b);
  const nx_words z = nx_times(power, nx_log_words(b));
  return nx_word(nx_exp(nx_pair(z.hi, z.hi > nx_t(NX_NEGLIGIBLE) ? z.lo : nx_t(0))));
}
// (1 + y)^power and its slope, roughly, for y above -1.
NX_CALL nx_words nx_roughly(nx_t y, nx_t power, nx_int whole) {
  if (!(y > -1)) return nx_word(0);
  const nx_t u = 1 + y, e = whole == 1 ? u : whole == 2 ? u * u : nx_exp(nx_word(power * (NX_LOG(u) + (y - (u - 1)) / u)));
  return nx_pair(e, e * y / u);
}
NX_FN nx_words nx_curve_base(NX_THREAD const nx_row& r, NX_THREAD const nx_curve& s, nx_t v) {
  const nx_words b = nx_lifted(nx_relative(r, v, s.top, s.c), s.t);
  return b.hi > nx_t(NX_NOISE) * s.t.hi ? b : nx_word(0);
}
NX_FN nx_words nx_less(nx_words a, nx_words b) { return nx_sum_of(a, nx_pair(-b.hi, -b.lo)); }
// What is looked for first is m = -log(t^power), between 0 and log n, where the limits of all powers are harmless: with S the sum of
// (1 + z/t)^power it is the root of log S - m, which falls. Newton's method, kept between bounds; then twice in two words.
NX_FN void nx_solve(NX_THREAD nx_row& r, NX_THREAD nx_curve& s) {
  s.top = nx_top(r);
  nx_judge(r, s.top);
  nx_t low = 0, high = NX_LOG(nx_count(r)), m = 0;
  bool done = false;
  for (nx_int step = 0; step < 120 && nx_any(r.c, !done); ++step) {
    const nx_t depth = m * s.inverse, lift = nx_exp(nx_word(depth < NX_DEPTH ? depth : nx_t(NX_DEPTH)));
    nx_words sum = nx_word(0), slopes = nx_word(0);
    s.top = nx_anew(s.top);  // else the differences are kept, in two words, and spilled
    NX_EACH(r) {
      const nx_words term = nx_roughly(nx_relative(r, NX_SCORE(r), s.top, s.c).hi * lift, s.power.hi, s.whole);
      nx_add(r, sum, term.hi);
      nx_add(r, slopes, term.lo);
    }
    const nx_t total = nx_total_of(r, sum).hi, steep = nx_total_of(r, slopes).hi / total - 1;
    const nx_t gap = NX_LOG(total) - m;
    if (gap > 0) low = m;
    if (gap < 0) high = m;
    nx_t next = m - gap / steep;
    done = done || !(NX_ABS(next - m) > nx_t(NX_DOUBLE ? 1e-12 : 4e-6) * (1 + m)) || !(high > low);
    if (!(next > low && next < high)) next = low + (high - low) / 2;
    if (!done) m = next;
  }
  nx_t depth = m * s.inverse;
  depth = depth < NX_DEPTH ? depth : nx_t(NX_DEPTH);
  s.t = depth < nx_t(0.5) ? nx_two_sum(nx_t(1), -nx_complement(depth)) : nx_word(nx_exp(nx_word(-depth)));
  // Two steps are enough for a convex sum. Powers below 1 have slopes without bound where they begin, and need the bounds again.
  nx_words below = nx_word(0), above = nx_word(1);
  done = false;
  for (nx_int step = 0; step < 80 && nx_any(r.c, !done); ++step) {
    nx_words sum = nx_word(0), slopes = nx_word(0);
    s.top = nx_anew(s.top);
    NX_EACH(r) {
      const nx_words b = nx_curve_base(r, s, NX_SCORE(r));
      if (b.hi > 0) {
        const nx_words e = nx_raised(b, s.power, s.whole);
        sum = nx_sum_of(sum, e);
        nx_add(r, slopes, e.hi / b.hi);
      }
    }
    const nx_words excess = nx_sum_of(nx_total(r, sum), nx_word(-1));
    const nx_t slope = nx_total_of(r, slopes).hi;
    const nx_words by = nx_over(nx_times(excess, nx_word(s.inverse)), nx_word(slope > 0 ? slope : nx_t(1)));
    nx_words next = nx_less(s.t, by);
    if (!(s.power.hi >= 1)) {
      (excess.hi > 0 ? above : below) = s.t;
      if (!(nx_less(next, below).hi >= 0 && nx_less(above, next).hi >= 0)) {
        next = nx_sum_of(nx_pair(below.hi / 2, below.lo / 2), nx_pair(above.hi / 2, above.lo / 2));
      }
    }
    done = done || !(NX_ABS(nx_less(next, s.t).hi) > nx_t(NX_NOISE) * s.t.hi);
    if (!done) s.t = next;
    done = done || (s.power.hi >= 1 && step > 0);
  }
}
NX_FN nx_words nx_one_over(nx_words a) { return nx_over(nx_word(1), a); }

// ---------------------------------------------------------------- entmax

// At alpha = 1 weights are exponentials; what else is found then is not looked at.
struct nx_entmax_state {
  nx_curve of;
  nx_t a, total;
  bool is_softmax;
};
NX_FN nx_t nx_entmax_term(NX_THREAD const nx_row& r, NX_THREAD const nx_entmax_state& s, nx_t v) {
  if (s.is_softmax) return nx_exp(nx_relative(r, v, s.of.top, s.of.c));
  return nx_raised(nx_curve_base(r, s.of, v), s.of.power, s.of.whole).hi;
}
NX_FN nx_entmax_state nx_entmax_of(NX_THREAD nx_row& r) {
  nx_entmax_state s;
  const nx_words a = nx_excess_exponent(r);
  s.a = a.hi;
  s.is_softmax = a.hi == 0;
  s.of.c = nx_inverse_temperature(r);
  s.of.power = nx_word(1);
  if (!s.is_softmax) {
    s.of.c = nx_times(s.of.c, a);
    s.of.power = nx_one_over(a);
  }
  s.of.inverse = s.is_softmax ? nx_t(1) : a.hi;
  s.of.whole = a.hi == 1 || s.is_softmax ? 1 : a.hi == nx_t(0.5) ? 2 : 0;
  nx_solve(r, s.of);
  s.of.top = nx_anew(s.of.top);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t e = nx_entmax_term(r, s, NX_SCORE(r));
    NX_KEEP(r, e);
    nx_add(r, sum, e);
  }
  // 1 but for the rounding of the powers; the first and the second round nothing.
  s.total = nx_total_of(r, sum).hi;
  if ((s.of.whole != 0 && !s.is_softmax) || s.total == 0) s.total = 1;
  return s;
}
NX_FN void nx_entmax_forward(NX_THREAD nx_row& r) {
  const nx_entmax_state s = nx_entmax_of(r);
  NX_WRITE(r) NX_PUT(r, NX_KEPT(r, nx_entmax_term(r, s, NX_SCORE(r))) / s.total);
}
// (exp(y) - 1 - y) / y^2 for y >= 0, 1/2 at 0.
NX_FN nx_t nx_curvature(nx_t y) {
  if (y >= 1) return (nx_exp(nx_word(y)) - 1 - y) / (y * y);
  nx_t series = 1;
  for (nx_int k = 20; k > 2; --k) series = 1 + y / nx_t(k) * series;
  return series / 2;
}
// With L = log p: a weight moves by p^(1 - a) with its score, and by -p L^2 (exp(-aL) - 1 + aL) / (aL)^2 with alpha.
NX_CALL nx_words nx_entmax_slopes(nx_t p, nx_t a) {
  if (!(p > 0)) return nx_word(0);
  const nx_t order = NX_LOG(p), y = -a * order < NX_HIGHEST ? -a * order : nx_t(NX_HIGHEST);
  return nx_pair(p * nx_exp(nx_word(y)), -p * order * order * nx_curvature(y));
}
NX_FN void nx_entmax_backward(NX_THREAD nx_row& r) {
  nx_entmax_state s = nx_entmax_of(r);
  nx_words sum = nx_word(0), pulled = nx_word(0), moment = nx_word(0), of_alpha = nx_word(0);
  NX_EACH(r) {
    const nx_t w = nx_entmax_slopes(NX_KEPT(r, nx_entmax_term(r, s, NX_SCORE(r))) / s.total, s.a).hi;
    nx_add(r, sum, w);
    nx_add(r, pulled, w * NX_COTANGENT(r));
  }
  const nx_t whole = nx_total_of(r, sum).hi, mean = nx_total_of(r, pulled).hi / (whole > 0 ? whole : nx_t(1));
  s.total = nx_anew(s.total);
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), g = NX_COTANGENT(r) - mean;
    const nx_words w = nx_entmax_slopes(NX_KEPT(r, nx_entmax_term(r, s, v)) / s.total, s.a);
    nx_add(r, of_alpha, w.lo * g);
    nx_add_moment(r, moment, w.hi * g, v - s.of.top);
    NX_PUT(r, nx_chained(r, v, w.hi * g));
  }
  nx_put_dtemperature(r, moment);
  nx_put_gradient(r, 0, nx_total_of(r, of_alpha).hi);
}

// ---------------------------------------------------------------- normmax

// p = b^q / sum(b^q) with q = 1/(alpha - 1), where the powers q + 1 of b = z + t sum to 1.
struct nx_normmax_state {
  nx_curve of;
  nx_words q;
  nx_int whole;  // 1 where q is 1
  nx_t total;
};
NX_FN nx_t nx_normmax_term(NX_THREAD const nx_row& r, NX_THREAD const nx_normmax_state& s, nx_t v) {
  return nx_raised(nx_curve_base(r, s.of, v), s.q, s.whole).hi;
}
NX_FN nx_normmax_state nx_normmax_of(NX_THREAD nx_row& r) {
  nx_normmax_state s;
  const nx_words a = nx_excess_exponent(r);
  s.q = nx_one_over(a);
  s.whole = a.hi == 1 ? 1 : 0;
  s.of.c = nx_inverse_temperature(r);
  s.of.power = nx_sum_of(s.q, nx_word(1));
  s.of.inverse = a.hi / (1 + a.hi);
  s.of.whole = 2 * s.whole;
  nx_solve(r, s.of);
  s.of.top = nx_anew(s.of.top);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t e = nx_normmax_term(r, s, NX_SCORE(r));
    NX_KEEP(r, e);
    nx_add(r, sum, e);
  }
  s.total = nx_total_of(r, sum).hi;
  if (s.total == 0) s.total = 1;
  return s;
}
NX_FN void nx_normmax_forward(NX_THREAD nx_row& r) {
  const nx_normmax_state s = nx_normmax_of(r);
  NX_WRITE(r) NX_PUT(r, NX_KEPT(r, nx_normmax_term(r, s, NX_SCORE(r))) / s.total);
}
NX_FN void nx_normmax_backward(NX_THREAD nx_row& r) {
  nx_normmax_state s = nx_normmax_of(r);
  const nx_t q = s.q.hi;
  nx_words sum = nx_word(0);
  NX_EACH(r) nx_add(r, sum, NX_KEPT(r, nx_normmax_term(r, s, NX_SCORE(r))) / s.total * NX_COTANGENT(r));
  const nx_t mean = nx_total_of(r, sum).hi;
  nx_words pulled = nx_word(0), by_power = nx_word(0), slide = nx_word(0), moment = nx_word(0);
  s.of.top = nx_anew(s.of.top);
  s.total = nx_anew(s.total);
  NX_EACH(r) {
    const nx_t v = NX_SCORE(r), p = NX_KEPT(r, nx_normmax_term(r, s, v)) / s.total, g = NX_COTANGENT(r) - mean;
    const nx_t b = nx_curve_base(r, s.of, v).hi, order = b > 0 ? NX_LOG(b) : nx_t(0);
    nx_add(r, pulled, b > 0 ? q * p / b * g : nx_t(0));
    nx_add(r, by_power, p * order * g);
    nx_add(r, slide, p * b * order);
  }
  const nx_t shift = nx_total_of(r, pulled).hi, turn = nx_total_of(r, by_power).hi, slid = nx_total_of(r, slide).hi;
  s.of.top = nx_anew(s.of.top);
  s.total = nx_anew(s.total);
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), p = NX_KEPT(r, nx_normmax_term(r, s, v)) / s.total, b = nx_curve_base(r, s.of, v).hi;
    const nx_t gradient = (b > 0 ? q * p / b * (NX_COTANGENT(r) - mean) : nx_t(0)) - p * shift;
    nx_add_moment(r, moment, gradient, v - s.of.top);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
  nx_put_gradient(r, 0, -q * q * (turn - shift * slid / (q + 1)));
}
