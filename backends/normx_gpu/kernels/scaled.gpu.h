// Softmax with a factor of its own for each row, which follows its length or its entropy. Needs softmax.gpu.h.

// |factor| over the temperature; a negative factor negates the scores first, in registers or whenever they are read.
NX_FN nx_words nx_scaled_by(NX_THREAD nx_row& r, NX_THREAD nx_words& factor) {
  if (factor.hi < 0) {
    factor = nx_pair(-factor.hi, -factor.lo);
    r.flip = true;
#if !NX_LOOP
    NX_EACH(r) NX_SCORE(r) = NX_SCORE(r) == -NX_INF ? NX_SCORE(r) : -NX_SCORE(r);
#endif
  }
  if (!NX_HAS(NX_TEMPERED) || factor.hi == 0) return factor;
  return nx_times(factor, nx_inverse_temperature(r));
}

NX_FN nx_words nx_ssmax_factor(NX_THREAD const nx_row& r, nx_words log_n) {
  const nx_words product = nx_times(log_n, nx_word(nx_parameter(r, 0)));
  return nx_sum_of(product, nx_word(nx_parameter(r, 1)));
}
NX_FN void nx_ssmax_forward(NX_THREAD nx_row& r) {
  nx_words factor = nx_ssmax_factor(r, nx_log_of(r, nx_length(r, 2)));
  nx_softmax_by(r, nx_scaled_by(r, factor));
}
NX_FN void nx_ssmax_backward(NX_THREAD nx_row& r) {
  const nx_t n = nx_length(r, 2), s = nx_parameter(r, 0);
  const nx_words log_n = nx_log_of(r, n);
  nx_words factor = nx_ssmax_factor(r, log_n);
  const nx_words c = nx_scaled_by(r, factor);
  const nx_t moment = nx_softmax_vjp(r, c, factor, false, true);
  nx_put_gradient(r, 0, log_n.hi * moment);
  nx_put_gradient(r, 1, moment);
  nx_put_gradient(r, 2, s / n * moment);
}

NX_FN void nx_entropy_invariant_softmax_forward(NX_THREAD nx_row& r) {
  const nx_t length = nx_length(r, 2), least = nx_parameter(r, 1);
  nx_words factor = nx_over(nx_log_of(r, length < least ? least : length), nx_log_of(r, nx_parameter(r, 0)));
  nx_softmax_by(r, nx_scaled_by(r, factor));
}
NX_FN void nx_entropy_invariant_softmax_backward(NX_THREAD nx_row& r) {
  const nx_t length = nx_length(r, 2), least = nx_parameter(r, 1), base = nx_parameter(r, 0);
  const bool is_short = length < least;
  const nx_words log_base = nx_log_of(r, base);
  nx_words factor = nx_over(nx_log_of(r, is_short ? least : length), log_base);
  const nx_words c = nx_scaled_by(r, factor);
  const nx_t moment = nx_softmax_vjp(r, c, factor, false, true);
  nx_put_gradient(r, 0, -factor.hi * moment / (base * log_base.hi));
  nx_put_gradient(r, 1, is_short ? moment / (least * log_base.hi) : nx_t(0));
  nx_put_gradient(r, 2, is_short ? nx_t(0) : moment / (length * log_base.hi));
}

// Constants: the threshold, whether gradients go through the factor, and the polynomial's coefficients.
struct nx_sharpened {
  nx_t entropy, slope, top, total;
  nx_words factor;
};
NX_FN nx_sharpened nx_sharpen(NX_THREAD nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  nx_sharpened a;
  const nx_softmax_state s = nx_max_sum(r, c, true);
  nx_words moment = nx_word(0);
  NX_EACH(r) {
    const nx_words z = nx_relative(r, NX_SCORE(r), s.top, c);
    if (z.hi > nx_t(NX_NEGLIGIBLE)) nx_add(r, moment, z.hi * nx_exp(z));
  }
  a.top = s.top;
  a.total = s.total.hi;
  const nx_words mean = nx_over(nx_total_of(r, moment), s.total);
  // In two words: of the terms of the polynomial only one part in a hundred may remain.
  const nx_words entropy = nx_sum_of(nx_log_words(s.total), nx_pair(-mean.hi, -mean.lo));
  a.entropy = entropy.hi;
  nx_words value = nx_word(0), slope = nx_word(0);
  const nx_int last = nx_int(NX_WORD(NX_AT_CONSTANTS));
  for (nx_int k = 2; k < last; ++k) {
    slope = nx_sum_of(nx_times(slope, entropy), value);
    value = nx_sum_of(nx_times(value, entropy), nx_word(nx_constant(r, k)));
  }
  const bool heated = a.entropy > nx_constant(r, 0) && value.hi > 1;
  a.factor = heated ? value : nx_word(1);
  a.slope = heated ? slope.hi : nx_t(0);
  return a;
}
NX_FN void nx_adaptive_softmax_forward(NX_THREAD nx_row& r) {
  nx_sharpened a = nx_sharpen(r);
  nx_softmax_by(r, nx_scaled_by(r, a.factor));
}
NX_FN void nx_adaptive_softmax_backward(NX_THREAD nx_row& r) {
  nx_sharpened a = nx_sharpen(r);
  const nx_words before = nx_inverse_temperature(r), c = nx_scaled_by(r, a.factor);
  const nx_softmax_state s = nx_max_sum(r, c, false);
  nx_judge(r, s.top);
  const nx_t scale = nx_scale_of(s);
  nx_words sum = nx_word(0);
  NX_EACH(r) nx_add(r, sum, NX_KEPT(r, nx_exp(nx_relative(r, NX_SCORE(r), s.top, c))) * scale * NX_COTANGENT(r));
  const nx_t mean = nx_total_of(r, sum).hi;
  nx_t pull = 0;  // of the factor, where gradients go through it
  if (nx_constant(r, 1) != 0) {
    nx_words raw = nx_word(0);
    NX_EACH(r) {
      const nx_t v = NX_SCORE(r), y = NX_KEPT(r, nx_exp(nx_relative(r, v, s.top, c))) * scale;
      if (nx_is_finite(v)) nx_add(r, raw, y * (NX_COTANGENT(r) - mean) * nx_tempered(r, v));
    }
    pull = nx_total_of(r, raw).hi * a.slope;
  }
  nx_words moment = nx_word(0);
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), y = NX_KEPT(r, nx_exp(nx_relative(r, v, s.top, c))) * scale;
    nx_t gradient = y * (NX_COTANGENT(r) - mean) * a.factor.hi;
    const nx_words z = nx_relative(r, v, a.top, before);
    if (pull != 0 && z.hi > nx_t(NX_NEGLIGIBLE)) {
      const nx_t log_p = z.hi - NX_LOG(a.total);
      gradient -= pull * (nx_exp(z) / a.total) * (log_p + a.entropy);
    }
    nx_add_moment(r, moment, gradient, v - s.top);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
}
