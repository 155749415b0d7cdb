// logsumexp = m + L and log_softmax: y = (x − m) − L, with L = log(1 + rest), rest = Σ exp(x − m) over all entries but one
// of the maxima. Both terms of y are ≤ 0, so nothing cancels.

template <class T> struct logsumexp {
  using State = MaxSum<T>;
  static constexpr bool reduces = true, any_length = false, cuts_show = true;  // each chunk leaves its own maxima out

  template <class G> static void lift(G g, const char* x, State* state) { lift_near<true>(g, x, state); }
  template <class G> static void lift_again(G g, const char* x, State* state) { lift_far<true>(g, x, state); }
  static void merge(State& a, const State& b) { merge_max_sum<true>(a, b); }

  // L, for a finite m. The sum is relative to the row's reference, where e(m) is peak(m), or 1 in a far row.
  static double log_rest(const State& row) {
    return __builtin_log1p((row.count - 1) + row.sum.value() / (is_near(row.m) ? peak(row.m) : 1));
  }

  static T value(const State& row) {
    if (is_finite(row.m)) return static_cast<T>(row.m + log_rest(row));
    return row.nans > 0 ? not_a_number<T> : row.m;
  }
  template <class G> static NX_NOINLINE void value_of_whole(G g, const char* x, T* y) {
    State row[G::rows];
    lift_whole<true>(g, x, row);
    for (int r = 0; r < G::rows; ++r) y[r] = value(row[r]);
  }
  template <class S> static void in_turn(const Task& t, std::int64_t first, std::int64_t last) {
    lift_rows<true, S>(t, first, last, [](auto, const char*, char* y, const State& row) { store_as<S>(y, all(value(row)), Part{1}); });
  }
};
