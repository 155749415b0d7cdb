// Softmax of scores with Gumbel noise, in two words: half a last place of a noisy score would be several of its weight. Needs
// softmax.gpu.h. Constant 0: whether the result is the one-hot of the largest, with the gradient of the weights.

// v - log(-log u)
NX_CALL nx_words nx_with_noise(nx_t v, nx_t u) {
  const nx_words tail = nx_log_words(nx_word(u)), noise = nx_log_words(nx_pair(-tail.hi, -tail.lo));
  return nx_sum_of(nx_word(v), nx_pair(-noise.hi, -noise.lo));
}
NX_FN nx_words nx_noisy(NX_THREAD const nx_row& r, nx_t v, nx_spot i) {
  if (!nx_is_finite(v)) return nx_word(v);
  const nx_words noisy = nx_with_noise(v, nx_value(r.c.noise, r.noise + nx_along(r, NX_OF_NOISE, i)));
  return nx_pair(noisy.hi, NX_EXACT ? noisy.lo : nx_t(0));
}
// What lanes keep is made noisy once: the score, and for the first pass what rounding has taken off it.
#if NX_LOOP
#define NX_DRAWN(r) nx_noisy(r, NX_SCORE(r), nx_place(r, k_) + j_)
#define NX_DRAWN_SCORE(r) (NX_DRAWN(r).hi)
#else
#define NX_DRAWN(r) nx_pair(NX_SCORE(r), (r).e[NX_SLOT])
#define NX_DRAWN_SCORE(r) NX_SCORE(r)
#endif
struct nx_greater {
  NX_METHOD nx_words of(nx_words a, nx_words b) {
    return nx_is_nan(a.hi) || a.hi > b.hi || (a.hi == b.hi && a.lo > b.lo) ? a : b;
  }
};
// Relative to the largest noisy score.
NX_FN nx_words nx_noisy_relative(NX_THREAD const nx_row& r, nx_words v, nx_words top, nx_words c) {
  if (v.hi == top.hi && v.lo == top.lo) return nx_word(0);
  const nx_words d = nx_two_sum(v.hi, -top.hi);
  return nx_scaled(r, nx_is_finite(d.hi) ? nx_renormalized(d.hi, d.lo + (v.lo - top.lo)) : nx_word(d.hi), c);
}
struct nx_draw {
  nx_words c, top;
  nx_t scale;
};
// The largest of them, their sum, and of exponentials what lanes keep.
NX_FN nx_draw nx_drawn(NX_THREAD nx_row& r) {
  nx_draw s;
  s.c = nx_inverse_temperature(r);
  s.top = nx_word(-NX_INF);
  NX_EACH(r) {
#if !NX_LOOP
    const nx_spot i = nx_place(r, k_) + j_;
    const nx_words noisy = i < r.n ? nx_noisy(r, NX_SCORE(r), i) : nx_word(-NX_INF);
    NX_SCORE(r) = noisy.hi;
    NX_KEEP(r, noisy.lo);
    s.top = nx_greater::of(noisy, s.top);
#else
    if (nx_place(r, k_) + j_ < r.n) s.top = nx_greater::of(NX_DRAWN(r), s.top);
#endif
  }
  s.top = nx_reduce<nx_greater>(r, s.top);
  nx_judge(r, s.top.hi);
  return s;
}
NX_FN void nx_weigh(NX_THREAD nx_row& r, NX_THREAD nx_draw& s) {
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    if (nx_place(r, k_) + j_ >= r.n) {
      NX_KEEP(r, nx_t(0));
      continue;
    }
    const nx_t e = nx_exp(nx_noisy_relative(r, NX_DRAWN(r), s.top, s.c));
    NX_KEEP(r, e);
    nx_add(r, sum, e);
  }
  s.scale = nx_t(1) / nx_total_of(r, sum).hi;
}
#define NX_DRAWN_WEIGHT(r, s) (NX_KEPT(r, nx_place(r, k_) + j_ < (r).n ? nx_exp(nx_noisy_relative(r, NX_DRAWN(r), (s).top, (s).c)) : nx_t(0)) * (s).scale)

struct nx_earlier {  // of two places, each in two parts that are exact in nx_t
  NX_METHOD nx_words of(nx_words a, nx_words b) { return a.hi < b.hi || (a.hi == b.hi && a.lo < b.lo) ? a : b; }
};
NX_FN nx_words nx_place_words(nx_spot i) { return nx_pair(nx_t(i >> 20), nx_t(i & 0xfffff)); }

NX_FN void nx_gumbel_softmax_forward(NX_THREAD nx_row& r) {
  nx_draw s = nx_drawn(r);
  if (nx_constant(r, 0) == 0) {
    nx_weigh(r, s);
    NX_WRITE(r) NX_PUT(r, NX_DRAWN_WEIGHT(r, s));
    return;
  }
  nx_words first = nx_word(NX_INF);
  NX_EACH(r) {
    const nx_spot i = nx_place(r, k_) + j_;
    if (i >= r.n) continue;
    const nx_words v = NX_DRAWN(r);
    if (v.hi == s.top.hi && v.lo == s.top.lo) first = nx_earlier::of(nx_place_words(i), first);
  }
  first = nx_reduce<nx_earlier>(r, first);
  NX_WRITE(r) {
    const nx_words here = nx_place_words(nx_place(r, k_) + j_);
    NX_PUT(r, here.hi == first.hi && here.lo == first.lo ? nx_t(1) : nx_t(0));
  }
}
NX_FN void nx_gumbel_softmax_backward(NX_THREAD nx_row& r) {
  nx_draw s = nx_drawn(r);
  nx_weigh(r, s);
  nx_words sum = nx_word(0), moment = nx_word(0);
  NX_EACH(r) nx_add(r, sum, NX_DRAWN_WEIGHT(r, s) * NX_COTANGENT(r));
  const nx_t mean = nx_total_of(r, sum).hi;
  NX_WRITE(r) {
    const nx_spot i = nx_place(r, k_) + j_;
    nx_t v = NX_SCORE(r);
    const nx_t gradient = NX_DRAWN_WEIGHT(r, s) * (NX_COTANGENT(r) - mean);
    if (i < r.n) nx_add_moment(r, moment, gradient, NX_DRAWN_SCORE(r) - s.top.hi);
    // The softcap is that of the score without its noise.
    if (NX_HAS(NX_SOFTCAP) && i < r.n) v = nx_score_of(r, nx_load(r.c.x, r.x + nx_along(r, NX_OF_X, i)), i);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
}
