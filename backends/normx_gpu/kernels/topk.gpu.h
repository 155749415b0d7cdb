// The largest weights of a softmax and where they are: constant 0 says how many. Needs softmax.gpu.h, whose weights have the same bits.
//
// Each round finds the score that comes next in the order (largest first, equal ones by index; NaN stands as -inf), so that nothing is
// marked and nothing is sorted: few are wanted.

struct nx_next {  // of two scores with their indices; an index has to be exact in nx_t
  NX_METHOD nx_words of(nx_words a, nx_words b) { return a.hi > b.hi || (a.hi == b.hi && a.lo < b.lo) ? a : b; }
};
NX_FN void nx_softmax_topk_forward(NX_THREAD nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  const nx_softmax_state s = nx_max_sum(r, c, false);
  nx_judge(r, s.top);
  const nx_t scale = nx_scale_of(s);
  const nx_int wanted = nx_int(nx_constant(r, 0));
  nx_words last = nx_pair(NX_INF, -1);
  for (nx_int rank = 0; rank < wanted; ++rank) {
    nx_words best = nx_pair(-NX_INF, NX_INF);
    NX_EACH(r) {
      const nx_spot i = nx_place(r, k_) + j_;
      const nx_t v = nx_is_nan(NX_SCORE(r)) ? -NX_INF : NX_SCORE(r), index = nx_t(i);
      const bool left = v < last.hi || (v == last.hi && index > last.lo);
      if (i < r.n && left) best = nx_next::of(nx_pair(v, index), best);
    }
    last = nx_reduce<nx_next>(r, best);
    if (r.live && r.lane == 0) {
      const nx_i64 i = nx_i64(last.lo);
      const nx_t y = nx_exp(nx_relative(r, last.hi, s.top, c)) * scale;
      nx_store(r.c.y, r.y + rank * nx_stride(r, NX_OF_Y, NX_OUTER), nx_settled(r, nx_spot(i), y));
      nx_set_index(r.c.index, nx_offset(r, NX_OF_INDEX) + rank * nx_stride(r, NX_OF_INDEX, NX_OUTER), i);
    }
  }
}
NX_FN void nx_softmax_topk_backward(NX_THREAD nx_row& r) { (void)r; }
