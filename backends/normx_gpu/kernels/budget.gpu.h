// Weights min(1, max(0, z - t)) whose sum is the budget. The threshold t is a number among the scores: the largest float at which
// the weights reach the budget is found by halving the row of all floats, and the rest, up to the next one, by Newton's method in two
// words. Differences to a float are exact, however far from the maximum it is. Needs softmax.gpu.h and sparse.gpu.h.

#define NX_LEAST_WEIGHT (NX_DOUBLE ? nx_t(4.9303806576313238e-32) : nx_t(1.4210855e-14))

struct nx_spending {
  nx_words c, level;  // a weight is (v - origin) c + level, between 0 and 1
  nx_t top, origin, of_infinite;
  bool all;  // everybody gets 1
};
NX_FN nx_t nx_between(nx_t b) { return b > 1 ? nx_t(1) : b > 0 ? b : nx_t(0); }
// One over the temperature; where that is so low that scores are all or nothing, of one at which they still are.
NX_FN nx_words nx_cool(NX_THREAD const nx_row& r, nx_t spread) {
  if (!NX_HAS(NX_TEMPERED)) return nx_word(1);
  const nx_t widest = NX_DOUBLE ? nx_t(4e307) : nx_t(8e37), hottest = nx_t(1e30f);
  const nx_t lowest = (spread < widest ? spread : widest) * nx_power_of_two(NX_DOUBLE ? -60 : -30);
  nx_t t = r.temperature > lowest ? r.temperature : lowest;
  t = t > 0 ? (t < hottest ? t : hottest) : nx_t(1);
  const nx_t hi = nx_t(1) / t;
  return nx_pair(hi, NX_FMA(-hi, t, nx_t(1)) * hi);
}
NX_FN nx_words nx_spent(NX_THREAD const nx_row& r, NX_THREAD const nx_spending& s, nx_t v) {
  return nx_sum_of(nx_relative(r, v, s.origin, s.c), s.level);
}
NX_FN nx_t nx_budget_weight(NX_THREAD const nx_row& r, NX_THREAD const nx_spending& s, nx_t v) {
  if (v == NX_INF) return s.of_infinite;
  if (v == -NX_INF) return 0;
  if (s.all) return 1;
  const nx_words b = nx_spent(r, s, v);
  return b.hi > nx_t(NX_LEAST_WEIGHT) ? nx_between(b.hi) : nx_t(0);
}
NX_FN nx_spending nx_spend(NX_THREAD nx_row& r) {
  nx_spending s;
  nx_judge(r, nx_top(r));
  nx_t top = -NX_INF, bottom = -NX_INF;
  nx_words finite = nx_word(0), infinite = nx_word(0);
  NX_EACH(r) {
    const nx_t v = NX_SCORE(r);
    if (nx_is_finite(v)) {
      top = nx_larger::of(v, top);
      bottom = nx_larger::of(-v, bottom);
      nx_add(r, finite, 1);
    } else if (v == NX_INF) {
      nx_add(r, infinite, 1);
    }
  }
  s.top = nx_maximum(r, top);
  const nx_t spread = s.top + nx_maximum(r, bottom), budget = nx_parameter(r, 0);
  const nx_t count = nx_total_of(r, finite).hi, first = nx_total_of(r, infinite).hi;
  s.of_infinite = budget < first ? budget / first : nx_t(1);
  const nx_words left = budget > first ? nx_two_sum(budget, -first) : nx_word(0);
  s.all = left.hi >= count;
  s.c = nx_cool(r, spread);
  nx_i64 low = nx_rank(-NX_INF), high = nx_rank(s.top);
  for (nx_int step = 0; step < 66 && nx_any(r.c, high > low + 1); ++step) {
    const nx_i64 middle = (low >> 1) + (high >> 1) + (low & high & 1);
    const nx_t origin = nx_at_rank(middle);
    nx_words sum = nx_word(0);
    NX_EACH(r) {
      const nx_t v = NX_SCORE(r);
      if (nx_is_finite(v)) nx_add(r, sum, nx_between((v - origin) * s.c.hi));
    }
    const nx_words excess = nx_sum_of(nx_total_of(r, sum), nx_pair(-left.hi, -left.lo));
    if (high > low + 1) {
      if (excess.hi >= 0) {
        low = middle;
      } else {
        high = middle;
      }
    }
  }
  s.origin = nx_at_rank(high);
  s.level = nx_word(0);
  bool done = false;
  for (nx_int step = 0; step < 64 && nx_any(r.c, !done); ++step) {
    nx_words sum = nx_word(0), inside = nx_word(0);
    s.origin = nx_anew(s.origin);  // else the differences are kept, in two words, and spilled
    NX_EACH(r) {
      const nx_t v = NX_SCORE(r);
      if (nx_is_finite(v)) {
        const nx_words b = nx_spent(r, s, v);
        const bool whole = b.hi > 1 || (b.hi == 1 && b.lo >= 0);
        if (whole) sum = nx_sum_of(sum, nx_word(1));
        if (!whole && b.hi > 0) sum = nx_sum_of(sum, b);
        if (!whole && b.hi >= 0) nx_add(r, inside, 1);
      }
    }
    const nx_words excess = nx_sum_of(nx_total(r, sum), nx_pair(-left.hi, -left.lo));
    const nx_t steep = nx_total_of(r, inside).hi;
    const nx_words by = nx_over(excess, nx_word(steep > 0 ? steep : nx_t(1)));
    if (!done && steep > 0) s.level = nx_sum_of(s.level, nx_pair(-by.hi, -by.lo));
    done = done || !(steep > 0) || !(NX_ABS(by.hi) > nx_t(NX_LEAST_WEIGHT));
  }
  s.origin = nx_anew(s.origin);
  return s;
}
NX_FN void nx_budget_forward(NX_THREAD nx_row& r) {
  const nx_spending s = nx_spend(r);
  NX_WRITE(r) NX_PUT(r, nx_budget_weight(r, s, NX_SCORE(r)));
}
NX_FN void nx_budget_backward(NX_THREAD nx_row& r) {
  const nx_spending s = nx_spend(r);
  nx_words moving = nx_word(0), pulled = nx_word(0), sharing = nx_word(0), shared = nx_word(0), moment = nx_word(0);
  NX_EACH(r) {
    const nx_t v = NX_SCORE(r), y = nx_budget_weight(r, s, v);
    NX_KEEP(r, y);
    // Entries of +inf share what there is, wherever the others are.
    const bool between = y > 0 && y < 1, shares = between && v == NX_INF, moves = between && v != NX_INF;
    nx_add(r, moving, moves ? nx_t(1) : nx_t(0));
    nx_add(r, pulled, moves ? NX_COTANGENT(r) : nx_t(0));
    nx_add(r, sharing, shares ? nx_t(1) : nx_t(0));
    nx_add(r, shared, shares ? NX_COTANGENT(r) : nx_t(0));
  }
  const nx_t count = nx_total_of(r, moving).hi, sum = nx_total_of(r, pulled).hi, mean = sum / (count > 0 ? count : nx_t(1));
  const nx_t both = count + nx_total_of(r, sharing).hi, whole = sum + nx_total_of(r, shared).hi;
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), y = NX_KEPT(r, nx_budget_weight(r, s, v));
    const nx_t gradient = y > 0 && y < 1 && v != NX_INF ? NX_COTANGENT(r) - mean : nx_t(0);
    nx_add_moment(r, moment, gradient, v - s.top);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
  nx_put_gradient(r, 0, whole / (both > 1 ? both : nx_t(1)));
}
