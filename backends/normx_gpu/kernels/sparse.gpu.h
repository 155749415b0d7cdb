// Normalizers with a threshold: z + t where that is above 0, for scores z relative to their maximum and the one t for which the
// powers of these sum to 1. It is found without a sort: Newton's method from t = 1, where the sum is convex and too large,
// comes down to the root; then twice in two words, because a weight may be far smaller than its terms. Needs softmax.gpu.h.

// Half a last place, squared and doubled twice: what rounding leaves of a score that lies on the threshold.
#define NX_NOISE (NX_DOUBLE ? nx_t(4.9303806576313238e-32) : nx_t(1.4210855e-14))

// z + t, in two words.
NX_FN nx_words nx_lifted(nx_words z, nx_words t) {
  return z.hi > nx_t(NX_NEGLIGIBLE) ? nx_sum_of(z, t) : nx_word(-1);
}
struct nx_threshold {
  nx_t top;
  nx_words c, t;
};
NX_FN nx_threshold nx_threshold_of(NX_THREAD nx_row& r, nx_words c, nx_int power) {
  nx_threshold s;
  s.top = nx_top(r);
  s.c = c;
  nx_judge(r, s.top);
  nx_t t = 1, slope = 1;
  bool done = false;
  for (nx_int step = 0; step < 200 && nx_any(r.c, !done); ++step) {
    s.top = nx_anew(s.top);  // else the differences are kept, in two words, and spilled
    nx_words sum = nx_word(0), slopes = nx_word(0);
    NX_EACH(r) {
      const nx_t b = nx_relative(r, NX_SCORE(r), s.top, c).hi + t;
      if (b > 0) {
        nx_add(r, sum, power == 1 ? b : b * b);
        nx_add(r, slopes, power == 1 ? nx_t(1) : 2 * b);
      }
    }
    const nx_words excess = nx_sum_of(nx_total_of(r, sum), nx_word(-1));
    const nx_t steep = nx_total_of(r, slopes).hi, next = t - excess.hi / steep;
    if (!done) slope = steep;
    done = done || !(next < t);
    if (!done) t = next;
  }
  s.t = nx_word(t);
  for (nx_int step = 0; step < 2; ++step) {
    s.top = nx_anew(s.top);
    nx_words sum = nx_word(0);
    NX_EACH(r) {
      const nx_words b = nx_lifted(nx_relative(r, NX_SCORE(r), s.top, c), s.t);
      if (b.hi > 0) sum = nx_sum_of(sum, power == 1 ? b : nx_times(b, b));
    }
    const nx_words excess = nx_sum_of(nx_total(r, sum), nx_word(-1));
    s.t = nx_sum_of(s.t, nx_over(nx_pair(-excess.hi, -excess.lo), nx_word(slope)));
  }
  return s;
}
NX_FN nx_words nx_base(NX_THREAD const nx_row& r, nx_threshold s, nx_t v) {
  const nx_words b = nx_lifted(nx_relative(r, v, s.top, s.c), s.t);
  return b.hi > nx_t(NX_NOISE) * s.t.hi ? b : nx_word(0);
}
NX_FN nx_t nx_slope(NX_THREAD const nx_row& r, nx_threshold s, nx_t v, bool squared) {
  const nx_t b = nx_base(r, s, v).hi;
  return squared ? b : b > 0 ? nx_t(1) : nx_t(0);
}
// The gradient where weights move by their slope, their sum staying as it is.
NX_FN void nx_project(NX_THREAD nx_row& r, nx_threshold s, bool squared) {
  nx_words sum = nx_word(0), pulled = nx_word(0), moment = nx_word(0);
  NX_EACH(r) {
    const nx_t w = nx_slope(r, s, NX_SCORE(r), squared);
    NX_KEEP(r, w);
    nx_add(r, sum, w);
    nx_add(r, pulled, w * NX_COTANGENT(r));
  }
  const nx_t mean = nx_total_of(r, pulled).hi / nx_total_of(r, sum).hi;
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r);
    const nx_t gradient = NX_KEPT(r, nx_slope(r, s, v, squared)) * (NX_COTANGENT(r) - mean);
    nx_add_moment(r, moment, gradient, v - s.top);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
}

NX_FN void nx_sparsemax_forward(NX_THREAD nx_row& r) {
  const nx_threshold s = nx_threshold_of(r, nx_inverse_temperature(r), 1);
  NX_WRITE(r) NX_PUT(r, nx_base(r, s, NX_SCORE(r)).hi);
}
NX_FN void nx_sparsemax_backward(NX_THREAD nx_row& r) {
  nx_project(r, nx_threshold_of(r, nx_inverse_temperature(r), 1), false);
}

NX_FN nx_words nx_half_inverse_temperature(NX_THREAD const nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  return nx_pair(c.hi / 2, c.lo / 2);
}
NX_FN void nx_entmax15_forward(NX_THREAD nx_row& r) {
  const nx_threshold s = nx_threshold_of(r, nx_half_inverse_temperature(r), 2);
  NX_WRITE(r) {
    const nx_words b = nx_base(r, s, NX_SCORE(r));
    NX_PUT(r, nx_times(b, b).hi);
  }
}
NX_FN void nx_entmax15_backward(NX_THREAD nx_row& r) {
  nx_project(r, nx_threshold_of(r, nx_half_inverse_temperature(r), 2), true);
}
