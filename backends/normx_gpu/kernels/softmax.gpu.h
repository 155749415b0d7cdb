// The softmax family: weights exp(c x) over their sum, where c has two words and belongs to the row.
//
// Scores enter relative to the row's maximum: the difference is exact, its product with c has two words, and the sum is
// compensated, so that neither the size of a score nor the length of a row costs a digit. In rows that are read several times the
// sum is taken online, relative to a reference that moves only when the maximum leaves it by 32: what is rescaled then is so
// small that its rounding is not seen.

struct nx_softmax_state {
  nx_t top;         // the largest score; weights are relative to it
  nx_words c;       // what differences are multiplied by
  nx_words total;   // sum of the exponentials
  nx_t excess;      // that sum less one, where it was asked for; sinks included
  nx_words shift;   // from the score of the largest exponential down to that of the top: not 0 where a sink is the largest
  nx_t ceiling;     // the largest exponent, sinks included
};

// A difference of scores, times c.
NX_FN nx_words nx_scaled(NX_THREAD const nx_row& r, nx_words d, nx_words c) {
  if (NX_HAS(NX_SCALED) && d.hi > -NX_INF) {
    const nx_t z = d.hi * c.hi;
    d = nx_pair(z, NX_FMA(d.hi, c.hi, -z) + (d.hi * c.lo + d.lo * c.hi));
  }
  return nx_pair(d.hi, d.hi > nx_t(NX_NEGLIGIBLE) ? d.lo : nx_t(0));
}
// (v - origin) c, in two words; 0 at the origin, even where that is infinite.
NX_FN nx_words nx_relative(NX_THREAD const nx_row& r, nx_t v, nx_t origin, nx_words c) {
  if (v == origin) return nx_word(0);
  return nx_scaled(r, NX_EXACT ? nx_two_sum(v, -origin) : nx_word(v - origin), c);
}
// One over the temperature.
NX_FN nx_words nx_inverse_temperature(NX_THREAD const nx_row& r) {
  if (!NX_HAS(NX_TEMPERED)) return nx_word(1);
  const nx_t hi = nx_t(1) / r.temperature;
  return nx_pair(hi, hi > 0 && hi < NX_INF ? NX_FMA(-hi, r.temperature, nx_t(1)) * hi : nx_t(0));
}
NX_FN bool nx_is_inside(nx_t c) { return c > 0 && c < NX_INF; }

// level - other, in two words; 0 where they are equal, infinities included.
NX_FN nx_words nx_gap(nx_words level, nx_t other) {
  if (level.hi == other && (level.lo == 0 || !nx_is_finite(other))) return nx_word(0);
  const nx_words d = nx_two_sum(level.hi, -other);
  return nx_is_finite(d.hi) ? nx_renormalized(d.hi, d.lo + level.lo) : nx_word(d.hi);
}

// The sum of the exponentials, online: a reference, and the sum relative to it.
NX_FN nx_words nx_online(NX_THREAD nx_row& r, nx_words c, NX_THREAD nx_t& top) {
  nx_t origin = -NX_INF, most = -NX_INF;
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t v = NX_SCORE(r);
    most = nx_larger::of(v, most);
    const nx_words z = nx_relative(r, v, origin, c);
    if (z.hi > 32) {
      const nx_words down = nx_relative(r, origin, v, c);
      const nx_t factor = origin == -NX_INF ? nx_t(0) : nx_exp(down);
      sum = nx_pair(sum.hi * factor, sum.lo * factor);
      origin = v;
      nx_add(r, sum, 1);
    } else if (v != -NX_INF) {
      nx_add(r, sum, nx_exp(z));
    }
  }
  top = nx_maximum(r, most);
  const nx_t factor = sum.hi == 0 ? nx_t(0) : nx_exp(nx_relative(r, origin, top, c));
  return nx_total_of(r, nx_pair(sum.hi * factor, sum.lo * factor));
}
// With `excess`, the sum without the scores at the maximum, which are counted.
NX_FN nx_softmax_state nx_max_sum(NX_THREAD nx_row& r, nx_words c, bool excess) {
  nx_softmax_state s;
  s.c = c;
  s.excess = 0;
  s.shift = nx_word(0);
#if NX_LOOP
  if (!excess && (!NX_HAS(NX_SCALED) || nx_is_inside(c.hi))) {
    s.total = nx_online(r, c, s.top);
  } else
#endif
  {
    s.top = nx_top(r);
    nx_words sum = nx_word(0), count = nx_word(0);
    NX_EACH(r) {
      const nx_t v = NX_SCORE(r), e = nx_exp(nx_relative(r, v, s.top, c));
      NX_KEEP(r, e);
      if (excess && v == s.top) {
        nx_add(r, count, 1);
      } else {
        nx_add(r, sum, e);
      }
    }
    s.total = nx_total_of(r, sum);
    if (excess) {
      const nx_words tops = nx_total_of(r, count);
      s.excess = s.total.hi + (tops.hi - 1);
      s.total = nx_sum_of(s.total, tops);
    }
  }
  // Where the score at the top is that of an exponential: the temperature's limits have levels of their own.
  nx_words level = nx_word(s.top);
  if (NX_HAS(NX_SCALED)) {
    if (nx_is_inside(c.hi)) {
      level = nx_is_finite(s.top) ? nx_times(nx_word(s.top), c) : level;
    } else {
      level = nx_word(c.hi == 0 ? (nx_is_finite(s.top) ? nx_t(0) : s.top) : s.top > 0 ? NX_INF : s.top < 0 ? -NX_INF : s.top);
    }
  }
  s.ceiling = level.hi;
  const nx_i64 sinks = nx_sinks(r);
  if (sinks > 0) {
    for (nx_i64 i = 0; i < sinks; ++i) s.ceiling = nx_larger::of(nx_sink(r, i), s.ceiling);
    const bool above = s.ceiling == level.hi;  // the scores reach the ceiling
    if (!above) s.shift = nx_gap(level, s.ceiling);
    nx_words others = nx_word(0);
    nx_t count = 0;
    for (nx_i64 i = 0; i < sinks; ++i) {
      const nx_t sink = nx_sink(r, i);
      const nx_words z = nx_gap(above ? nx_pair(-level.hi, -level.lo) : nx_word(-s.ceiling), -sink);
      if (!above && sink == s.ceiling) {
        count += 1;
      } else {
        nx_add(r, others, nx_exp(nx_pair(z.hi, z.hi > nx_t(NX_NEGLIGIBLE) ? z.lo : nx_t(0))));
      }
    }
    others = nx_is_finite(others.lo) ? nx_renormalized(others.hi, others.lo) : nx_word(others.hi);
    if (above) {
      s.excess += others.hi;
      s.total = nx_sum_of(s.total, others);
    } else {
      const nx_t factor = s.shift.hi > nx_t(NX_NEGLIGIBLE) ? nx_exp(s.shift) : nx_t(0);
      const nx_t lower = nx_is_nan(s.ceiling) ? s.ceiling : factor == 0 ? nx_t(0) : s.total.hi * factor;
      s.excess = lower + (others.hi + (count - 1));
      s.total = nx_sum_of(nx_sum_of(others, nx_word(count)), nx_word(lower));
    }
  }
  return s;
}
// What exponentials relative to the top are to be multiplied by.
NX_FN nx_t nx_scale_of(nx_softmax_state s) {
  const nx_t inverse = nx_t(1) / s.total.hi;
  const nx_t corrected = nx_is_finite(inverse) ? NX_FMA(-inverse * inverse, s.total.lo, inverse) : inverse;
  return s.shift.hi == 0 ? corrected : nx_exp(s.shift) * corrected;
}
NX_FN nx_t nx_sink_share(nx_softmax_state s, nx_t scale, nx_t sink) {
  const nx_t inverse = s.shift.hi == 0 ? scale : nx_t(1) / s.total.hi;
  return nx_exp(sink == s.ceiling ? nx_word(0) : nx_word(sink - s.ceiling)) * inverse;
}

// Weights.
NX_FN void nx_softmax_by(NX_THREAD nx_row& r, nx_words c) {
  const nx_softmax_state s = nx_max_sum(r, c, false);
  nx_judge(r, s.top);
  const nx_t scale = nx_scale_of(s);
  NX_WRITE(r) NX_PUT(r, NX_KEPT(r, nx_exp(nx_relative(r, NX_SCORE(r), s.top, c))) * scale);
}
// And their gradient. `moment` is that of a factor: the sum of the gradient of the weights' exponents times the scores.
NX_FN nx_t nx_softmax_vjp(NX_THREAD nx_row& r, nx_words c, nx_words factor, bool log_space, bool wants_moment) {
  const nx_softmax_state s = nx_max_sum(r, c, false);
  nx_judge(r, s.top);
  const nx_t scale = nx_scale_of(s);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t y = NX_KEPT(r, nx_exp(nx_relative(r, NX_SCORE(r), s.top, c))) * scale;
    const nx_t g = NX_COTANGENT(r);
    nx_add(r, sum, log_space ? g : y * g);
  }
  const nx_t mean = nx_total_of(r, sum).hi;
  // Sinks, and factors, do not shift along with the scores.
  const bool shifts = nx_sinks(r) == 0 && !NX_HAS(NX_P0) && !wants_moment;
  const nx_t f = r.flip ? -factor.hi : factor.hi;
  nx_words moment = nx_word(0), raw = nx_word(0);
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), g = NX_COTANGENT(r);
    const nx_t y = NX_KEPT(r, nx_exp(nx_relative(r, v, s.top, c))) * scale;
    const nx_t inner = log_space ? g - y * mean : y * (g - mean);
    const nx_t u = r.flip ? -v : v;  // as it was
    if (wants_moment && nx_is_finite(v)) nx_add(r, raw, inner * nx_tempered(r, u));
    nx_add_moment(r, moment, inner * f, shifts ? v - s.top : u);
    NX_PUT(r, nx_chained(r, v, inner * f));
  }
  nx_put_dtemperature(r, moment);
  if (NX_HAS(NX_INHIBITED)) nx_put_gradient(r, 0, -nx_sink_share(s, scale, nx_sink(r, 0)) * mean);
  if (NX_HAS(NX_DSINK) && r.live && r.lane == 0) {
    for (nx_i64 i = 0; i < nx_sinks(r); ++i) {
      const nx_t share = nx_sink_share(s, scale, nx_sink(r, i));
      nx_set(r.c.dsink, nx_offset(r, NX_OF_DSINK) + i * NX_WORD(NX_AT_DSINK_STRIDE), nx_at_rest(r) ? nx_t(0) : -share * mean);
    }
  }
  return wants_moment ? nx_total_of(r, raw).hi : nx_t(0);
}

NX_FN void nx_softmax_forward(NX_THREAD nx_row& r) { nx_softmax_by(r, nx_inverse_temperature(r)); }
NX_FN void nx_softmax_backward(NX_THREAD nx_row& r) {
  nx_softmax_vjp(r, nx_inverse_temperature(r), nx_word(1), false, false);
}
#define nx_softmin_forward nx_softmax_forward
#define nx_softmin_backward nx_softmax_backward

NX_FN void nx_log_softmax_forward(NX_THREAD nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  const nx_softmax_state s = nx_max_sum(r, c, true);
  nx_judge(r, s.top);
  const nx_t rest = nx_log1p(s.excess), top = nx_anew(s.top);  // else the differences of the sum are kept
  NX_WRITE(r) {
    const nx_words z = nx_relative(r, NX_SCORE(r), top, c);
    const nx_words d = nx_sum_of(z, s.shift);
    NX_PUT(r, (d.hi - rest) + d.lo);
  }
}
NX_FN void nx_log_softmax_backward(NX_THREAD nx_row& r) {
  nx_softmax_vjp(r, nx_inverse_temperature(r), nx_word(1), true, false);
}

// The logarithm of the sum; nothing but scores, and a mask.
NX_FN void nx_logsumexp_forward(NX_THREAD nx_row& r) {
  const nx_softmax_state s = nx_max_sum(r, nx_word(1), true);
  nx_put_value(r, s.top == -NX_INF || nx_is_nan(s.top) ? s.top : s.top + nx_log1p(s.excess));
}
NX_FN void nx_logsumexp_backward(NX_THREAD nx_row& r) {
  const nx_softmax_state s = nx_max_sum(r, nx_word(1), false);
  nx_judge(r, s.top);
  const nx_t scale = nx_scale_of(s) * nx_load(r.c.g, r.g);
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r);
    NX_PUT(r, nx_chained(r, v, NX_KEPT(r, nx_exp(nx_relative(r, v, s.top, nx_word(1)))) * scale));
  }
}

#define nx_inhibited_softmax_forward nx_softmax_forward
#define nx_inhibited_softmax_backward nx_softmax_backward
#define nx_nonnegative_softmax_forward nx_softmax_forward
NX_FN void nx_nonnegative_softmax_backward(NX_THREAD nx_row& r) {
  nx_softmax_backward(r);
  nx_put_gradient(r, 0, 0);  // of the threshold
}

// What is left out takes the score `fill`, to which no temperature applies: so many sinks, and their weights are results.
struct nx_filled {
  nx_softmax_state s;
  nx_t scale, share;  // of the exponentials; and each filled entry's weight
};
NX_FN nx_filled nx_fill(NX_THREAD nx_row& r, nx_words c) {
  nx_filled f;
  f.s = nx_max_sum(r, c, false);
  nx_words out = nx_word(0);
  NX_EACH(r) {
    const nx_spot i = nx_place(r, k_) + j_;
    if (i < r.n && !nx_kept(r, i)) nx_add(r, out, 1);
  }
  const nx_t count = nx_total_of(r, out).hi, fill = nx_parameter(r, 0), level = f.s.ceiling;
  const nx_t ceiling = count > 0 ? nx_larger::of(level, fill) : level;
  nx_judge(r, ceiling);
  const nx_t above = nx_exp(nx_gap(nx_word(level), ceiling));
  const nx_t each = count > 0 ? nx_exp(nx_gap(nx_word(fill), ceiling)) : nx_t(0);
  const nx_t scores = above == 0 ? nx_t(0) : f.s.total.hi * above;
  const nx_t inverse = nx_t(1) / (scores + count * each);
  f.scale = level == -NX_INF ? nx_t(0) : above * inverse;
  f.share = each * inverse;
  return f;
}
NX_FN void nx_masked_softmax_forward(NX_THREAD nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  const nx_filled f = nx_fill(r, c);
  NX_WRITE(r) {
    const nx_t e = NX_KEPT(r, nx_exp(nx_relative(r, NX_SCORE(r), f.s.top, c)));
    const nx_spot i = nx_place(r, k_) + j_;
    NX_PUT(r, i < r.n && !nx_kept(r, i) ? f.share : e * f.scale);
  }
}
NX_FN void nx_masked_softmax_backward(NX_THREAD nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  const nx_filled f = nx_fill(r, c);
  nx_words all = nx_word(0), filled = nx_word(0), moment = nx_word(0);
  nx_t outside = 0;
  NX_EACH(r) {
    const nx_t e = NX_KEPT(r, nx_exp(nx_relative(r, NX_SCORE(r), f.s.top, c)));
    const nx_spot i = nx_place(r, k_) + j_;
    const bool out = i < r.n && !nx_kept(r, i);
    const nx_t g = NX_COTANGENT(r);
    nx_add(r, all, out ? f.share * g : e * f.scale * g);
    if (out) {
      nx_add(r, filled, g);
      outside += 1;
    }
  }
  const nx_t mean = nx_total_of(r, all).hi, of_filled = nx_total_of(r, filled).hi;
  const nx_t count = nx_total_of(r, nx_word(outside)).hi;
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r);
    const nx_t gradient = NX_KEPT(r, nx_exp(nx_relative(r, v, f.s.top, c))) * f.scale * (NX_COTANGENT(r) - mean);
    nx_add_moment(r, moment, gradient, v);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
  nx_put_gradient(r, 0, f.share * (of_filled - count * mean));
}
