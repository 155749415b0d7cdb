// The logistic function with a bias that follows the length, and the standard score.

// ---------------------------------------------------------------- sigmoid: parameters bias and n, constant normalize

// Minus log n, or the bias that was given, in two words.
NX_FN nx_words nx_bias(NX_THREAD const nx_row& r, nx_t n) {
  if (nx_given(r, 0)) return nx_word(nx_parameter(r, 0));
  const nx_words log_n = nx_log_of(r, n);
  return nx_pair(-log_n.hi, -log_n.lo);
}
struct nx_logit {
  nx_t e;  // exp(-|z|)
  bool below;
};
NX_FN nx_logit nx_logit_of(NX_THREAD const nx_row& r, nx_t v, nx_words bias) {
  const nx_words z = nx_sum_of(nx_tempered_words(r, v), bias);
  nx_logit l;
  l.below = z.hi < 0;
  l.e = nx_exp(l.below ? z : nx_pair(-z.hi, -z.lo));
  return l;
}
NX_FN nx_t nx_logistic(nx_logit l) { return (l.below ? l.e : nx_t(1)) / (1 + l.e); }
NX_FN void nx_sigmoid_forward(NX_THREAD nx_row& r) {
  nx_judge(r, nx_top(r));
  const nx_words bias = nx_bias(r, nx_length(r, 1));
  nx_t divisor = 1;
  if (nx_constant(r, 0) != 0) {
    nx_words sum = nx_word(0);
    NX_EACH(r) nx_add(r, sum, nx_logistic(nx_logit_of(r, NX_SCORE(r), bias)));
    const nx_t total = nx_total_of(r, sum).hi;
    divisor = total == 0 ? nx_t(1) : total;
  }
  NX_WRITE(r) NX_PUT(r, nx_logistic(nx_logit_of(r, NX_SCORE(r), bias)) / divisor);
}
NX_FN void nx_sigmoid_backward(NX_THREAD nx_row& r) {
  nx_judge(r, nx_top(r));
  const nx_t length = nx_length(r, 1);
  const nx_words bias = nx_bias(r, length);
  nx_t mean = 0, divisor = 1;
  if (nx_constant(r, 0) != 0) {
    nx_words sum = nx_word(0), pulled = nx_word(0);
    NX_EACH(r) {
      const nx_t y = nx_logistic(nx_logit_of(r, NX_SCORE(r), bias));
      nx_add(r, sum, y);
      nx_add(r, pulled, y * NX_COTANGENT(r));
    }
    const nx_t total = nx_total_of(r, sum).hi;
    divisor = total == 0 ? nx_t(1) : total;
    mean = nx_total_of(r, pulled).hi / divisor;
  }
  nx_words whole = nx_word(0), moment = nx_word(0);
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), e = nx_logit_of(r, v, bias).e;
    const nx_t gradient = e / ((1 + e) * (1 + e)) * ((NX_COTANGENT(r) - mean) / divisor);
    if (v != -NX_INF) nx_add(r, whole, gradient);
    nx_add_moment(r, moment, gradient, v);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  const nx_t sum = nx_total_of(r, whole).hi;
  nx_put_dtemperature(r, moment);
  nx_put_gradient(r, 0, sum);
  nx_put_gradient(r, 1, -sum / length);
}

// ---------------------------------------------------------------- z-score: parameter eps

// A score where rows with +inf are at the limit in which these grow together.
NX_FN nx_t nx_indicated(nx_t v, nx_t top) {
  return top == NX_INF && v != -NX_INF ? (v == NX_INF ? nx_t(1) : nx_t(0)) : v;
}
struct nx_standard {
  nx_words mean;
  nx_t count, divisor, spread;
  nx_int exponent;  // of what deviations are relative to: their squares do not overflow
  bool flat;
};
NX_FN nx_t nx_deviation(nx_standard s, nx_t v) {
  if (v == -NX_INF) return 0;
  const nx_words d = nx_two_sum(v, -s.mean.hi);
  return nx_ldexp(d.hi + (d.lo - s.mean.lo), -s.exponent);
}
NX_FN nx_standard nx_standard_of(NX_THREAD nx_row& r, nx_t top) {
  nx_standard s;
  const nx_t origin = top == NX_INF ? nx_t(1) : nx_is_finite(top) ? top : nx_t(0);
  s.count = nx_count(r);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t v = nx_indicated(NX_SCORE(r), top);
    if (v == -NX_INF) continue;
    const nx_words d = nx_two_sum(v, -origin);
    nx_add(r, sum, d.hi);
    sum.lo += d.lo;
  }
  s.mean = nx_sum_of(nx_word(origin), nx_over(nx_total_of(r, sum), nx_word(s.count)));
  s.exponent = 0;
  nx_t largest = 0;
  NX_EACH(r) largest = nx_larger::of(NX_ABS(nx_deviation(s, nx_indicated(NX_SCORE(r), top))), largest);
  s.exponent = nx_exponent_of(nx_maximum(r, largest));
  nx_words squares = nx_word(0);
  NX_EACH(r) {
    const nx_t d = nx_deviation(s, nx_indicated(NX_SCORE(r), top));
    nx_add(r, squares, d * d);
  }
  const nx_t total = nx_total_of(r, squares).hi, eps = nx_parameter(r, 0);
  s.flat = total == 0;
  s.spread = NX_SQRT(s.flat ? nx_t(1) : total / s.count);
  s.divisor = s.spread + (eps == 0 || top == NX_INF ? nx_t(0) : nx_ldexp(eps * r.temperature, -s.exponent));
  return s;
}
NX_FN void nx_zscore_forward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_standard s = nx_standard_of(r, top);
  NX_WRITE(r) NX_PUT(r, s.flat ? nx_t(0) : nx_deviation(s, nx_indicated(NX_SCORE(r), top)) / s.divisor);
}
NX_FN void nx_zscore_backward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_standard s = nx_standard_of(r, top);
  nx_words sum = nx_word(0), pulled = nx_word(0), moment = nx_word(0);
  NX_EACH(r) {
    const nx_t g = NX_COTANGENT(r);
    nx_add(r, sum, g);
    nx_add(r, pulled, g * nx_deviation(s, nx_indicated(NX_SCORE(r), top)));
  }
  const nx_t centre = nx_total_of(r, sum).hi / s.count, along = nx_total_of(r, pulled).hi / s.divisor;
  const nx_t slope = nx_ldexp(r.temperature, -s.exponent) / s.divisor;
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), d = nx_deviation(s, nx_indicated(v, top));
    const nx_t inner = v == -NX_INF ? nx_t(0) : NX_COTANGENT(r) - centre;
    const nx_t gradient = s.flat ? nx_t(0) : slope * (inner - along * d / (s.spread * s.count));
    nx_add_moment(r, moment, gradient, v - top);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
  nx_put_gradient(r, 0, s.flat ? nx_t(0) : -along * slope);
}
