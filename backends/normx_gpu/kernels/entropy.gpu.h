// The cross-entropy of a row and its class, the logarithm of the denominator, and the entropy of the weights; a row whose class is
// negative takes no part. Needs softmax.gpu.h. Constant 0: the share of the target that all classes get.
//
// Everything is made of differences to the maximum: a loss near 0 has digits of its own.

struct nx_losses {
  nx_t top, log, mean, total;  // the sum of the exponentials is exp(top + log); the mean of the scores is top - mean
  nx_t loss, weight;           // of the target
  nx_t weights, count;         // of the classes that take part, where there is smoothing
  nx_i64 target;
  bool nowhere;  // no score at all
};
NX_FN nx_t nx_class_weight(NX_THREAD const nx_row& r, nx_spot i) {
  return NX_HAS(NX_WEIGHTED) ? nx_value(r.c.weight, nx_along(r, NX_OF_WEIGHT, i)) : nx_t(1);
}
// top - v: how much less likely than the first.
NX_FN nx_t nx_below_top(NX_THREAD const nx_losses& s, nx_t v) { return s.nowhere ? NX_INF : v == s.top ? nx_t(0) : s.top - v; }
NX_FN nx_losses nx_losses_of(NX_THREAD nx_row& r) {
  nx_losses s;
  s.target = nx_index(r.c.target, nx_offset(r, NX_OF_TARGET));
  s.top = nx_top(r);
  nx_judge(r, s.top);
  s.nowhere = s.top == -NX_INF;
  nx_words sum = nx_word(0), tops = nx_word(0), moment = nx_word(0);
  NX_EACH(r) {
    const nx_t v = NX_SCORE(r);
    const nx_words z = nx_relative(r, v, s.top, nx_word(1));
    const nx_t e = nx_exp(z);
    NX_KEEP(r, e);
    if (v == s.top) {
      nx_add(r, tops, 1);
    } else {
      nx_add(r, sum, e);
      nx_add(r, moment, e > 0 ? e * z.hi : nx_t(0));
    }
  }
  const nx_words rest = nx_total_of(r, sum), first = nx_total_of(r, tops);
  s.total = s.nowhere ? nx_t(1) : nx_sum_of(rest, first).hi;
  s.log = s.nowhere ? nx_t(0) : nx_log1p(rest.hi + (first.hi - 1));
  s.mean = -nx_total_of(r, moment).hi / s.total;
  nx_t at_target = s.top;
  s.weight = 1;
  if (s.target >= 0) {
    const nx_spot i = nx_spot(s.target);
    at_target = nx_score_of(r, nx_load(r.c.x, r.x + nx_along(r, NX_OF_X, i)), i);
    s.weight = nx_class_weight(r, i);
  }
  s.loss = s.weight * (s.log + nx_below_top(s, at_target));
  s.weights = s.count = 0;
  const nx_t smoothing = nx_constant(r, 0);
  if (smoothing != 0) {
    nx_words count = nx_word(0), weights = nx_word(0), lost = nx_word(0);
    NX_EACH(r) {
      const nx_spot i = nx_place(r, k_) + j_;
      if (i < r.n && nx_kept(r, i)) {
        const nx_t w = nx_class_weight(r, i);
        nx_add(r, count, 1);
        nx_add(r, weights, w);
        nx_add(r, lost, w * nx_below_top(s, NX_SCORE(r)));
      }
    }
    s.count = nx_total_of(r, count).hi;
    s.count = s.count > 1 ? s.count : nx_t(1);
    s.weights = nx_total_of(r, weights).hi;
    s.loss = (1 - smoothing) * s.loss + smoothing * ((s.weights * s.log + nx_total_of(r, lost).hi) / s.count);
  }
  return s;
}
NX_FN void nx_cross_entropy_forward(NX_THREAD nx_row& r) {
  const nx_losses s = nx_losses_of(r);
  if (!r.live || r.lane != 0) return;
  const bool counts = s.target >= 0;
  nx_set(r.c.d[0], nx_offset(r, NX_OF_D0), counts ? s.loss : nx_t(0));
  nx_set(r.c.d[1], nx_offset(r, NX_OF_D1), counts ? s.top + s.log : nx_t(0));
  // A row of NaN has no weights, and so a sum of nothing.
  nx_set(r.c.d[2], nx_offset(r, NX_OF_D2), counts && !nx_is_nan(s.top) ? s.log + s.mean : nx_t(0));
}
// The parameters are the cotangents.
NX_FN void nx_cross_entropy_backward(NX_THREAD nx_row& r) {
  const nx_losses s = nx_losses_of(r);
  if (s.target < 0 || s.top == NX_INF || s.nowhere) r.fate = NX_AT_REST;
  const nx_t smoothing = nx_constant(r, 0), entropy = s.log + s.mean;
  const nx_t d = s.loss == NX_INF ? nx_t(0) : nx_parameter(r, 0);  // what is infinite is a constant
  const nx_t ours = d * (1 - smoothing) * s.weight, each = smoothing != 0 ? d * smoothing / s.count : nx_t(0);
  const nx_t factor = ours + each * s.weights + nx_parameter(r, 1), through = nx_parameter(r, 2);
  NX_WRITE(r) {
    const nx_spot i = nx_place(r, k_) + j_;
    const nx_t v = NX_SCORE(r);
    const nx_words z = nx_relative(r, v, s.top, nx_word(1));
    const nx_t p = NX_KEPT(r, nx_exp(z)) / s.total;
    // The entropy moves with a score by -p (log p + entropy).
    nx_t gradient = p > 0 ? p * (factor - (z.hi - s.log + entropy) * through) : nx_t(0);
    if (nx_i64(i) == s.target) gradient -= ours;
    if (smoothing != 0 && i < r.n && nx_kept(r, i)) gradient -= each * nx_class_weight(r, i);
    NX_PUT(r, nx_chained(r, v, p == p ? gradient : p));
  }
}
