template <class T> struct log_softmax : logsumexp<T> {
  using State = MaxSum<T>;
  static constexpr bool reduces = false;
  static constexpr T nothing = -infinity<T>;
  static T share(double k) { return static_cast<T>(-__builtin_log(k)); }

  template <class G> static NX_NOINLINE void write(G g, const char* x, char* y, const State* row, Empty empty, const double* kept) {
    T l[G::rows];
    for (int r = 0; r < G::rows; ++r) l[r] = is_finite(row[r].m) ? static_cast<T>(logsumexp<T>::log_rest(row[r])) : 0;
    const Vec<T> m = spread_max<T, G>(row), rest = G::spread(l);
    const Special<T> s = special_rows<T, G>(row, empty, kept, share, nothing);
    if (!s.any) return g.map(x, y, [&](auto v) NX_INLINED { return (v - m) - rest; });
    g.map(x, y, [&](auto v) NX_INLINED { return s.choose(v, (v - m) - rest); });
  }

  template <class G> static NX_NOINLINE void whole(G g, const char* x, char*, char* y, Empty empty, const double* kept) {
    State row[G::rows];
    lift_whole<true>(g, x, row);
    write(g, x, y, row, empty, kept);
  }
  template <class S> static void in_turn(const Task& t, std::int64_t first, std::int64_t last) {
    const double kept = static_cast<double>(t.n);
    lift_rows<true, S>(t, first, last, [&](auto g, const char* x, char* y, const State& row) { write(g, x, y, &row, t.empty, &kept); });
  }
};
