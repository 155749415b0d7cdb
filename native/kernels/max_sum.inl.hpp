// The state behind the softmax family: the maximum of the entries seen so far, and the sum of their exponentials.
//
// It is kept per row, in plain numbers, and merged in the order of the chunks. `without_maxima` (log_softmax, logsumexp)
// leaves the entries equal to the maximum out of the sum and counts them instead: log(1 + rest) then keeps the last digits of
// a row with one high peak, where log(sum) would have rounded them off.
//
// A chunk does not know the maximum of its row. It is lifted with a near reference first (c = 0); if the row turns out to be
// far from 0, or infinite, it is lifted `again` with that maximum given. Rare rows alone pay for it.

template <class T> struct MaxSum {
  T m;
  Total<T> sum;  // relative to exp's reference for m
  double count;  // entries equal to m, where they are counted: without_maxima, or lifted again
  double nans;   // only where lifted again

  static MaxSum neutral() { return {-infinity<T>, {}, 0, 0}; }
  // The chunks of a far row must be lifted again, now that its maximum is known.
  bool is_far() const { return !is_near(m); }
};

template <class T, class G> NX_INLINE Vec<T> spread_max(const MaxSum<T>* state) {
  T m[G::rows];
  for (int r = 0; r < G::rows; ++r) m[r] = state[r].m;
  return G::spread(m);
}
template <class T, class G> NX_NOINLINE void count_maxima(G g, const char* x, Vec<T> m, MaxSum<T>* state) {
  Total<T> count[G::rows];
  const Vec<T> zero = all(T(0)), one = all(T(1));
  g.sum([&](std::int64_t i, auto where) NX_INLINED { return select_eq(g.read(x, i, where, not_a_number<T>), m, one, zero); }, count);
  for (int r = 0; r < G::rows; ++r) state[r].count = count[r].value();
}
template <class T, class G> NX_NOINLINE void count_nans(G g, const char* x, MaxSum<T>* state) {
  Total<T> nans[G::rows];
  const Vec<T> zero = all(T(0)), one = all(T(1));
  g.sum(
      [&](std::int64_t i, auto where) NX_INLINED {
        const auto v = g.read(x, i, where, T(0));
        return select_eq(v, v, zero, one);
      },
      nans);
  for (int r = 0; r < G::rows; ++r) state[r].nans = nans[r].value();
}

// What the lanes add up. `m` is only looked at for entries that equal it, which are counted on the way.
// Beside each term `look(i, where)` may see to what comes next.
template <bool without_maxima, class T, class G, class R, class F>
NX_INLINE void sum_exp(G g, const char* x, Vec<T> m, const R& ref, MaxSum<T>* state, F&& look) {
  Total<T> total[G::rows];
  if constexpr (without_maxima) {
    const Vec<T> zero = all(T(0)), one = all(T(1));
    Vec<T> maxima[group];
    for (Vec<T>& count : maxima) count = zero;
    g.sum(
        [&](std::int64_t i, auto where) NX_INLINED {
          look(i, where);
          const auto v = g.read(x, i, where, -infinity<T>);
          for (int k = 0; k < lines_of(v); ++k) maxima[k] = maxima[k] + select_eq(line(v, k), m, one, zero);
          return select_eq(v, m, zero, exp_at(v, ref));
        },
        total);
    for (int k = 1; k < group; ++k) maxima[0] = maxima[0] + maxima[k];
    T count[Vec<T>::lanes];
    store(reinterpret_cast<char*>(count), maxima[0]);
    for (int r = 0; r < G::rows; ++r) state[r].count = 0;
    for (int l = 0; l < Vec<T>::lanes; ++l) state[l % G::rows].count += static_cast<double>(count[l]);
  } else {
    g.sum(
        [&](std::int64_t i, auto where) NX_INLINED {
          look(i, where);
          return exp_at(g.read(x, i, where, -infinity<T>), ref);
        },
        total);
  }
  for (int r = 0; r < G::rows; ++r) state[r].sum = total[r];
}
template <bool without_maxima, class T, class G> NX_NOINLINE void sum_exp(G g, const char* x, Vec<T> m, Reference<T> ref, MaxSum<T>* state) {
  sum_exp<without_maxima>(g, x, m, ref, state, [&](std::int64_t i, auto where) NX_INLINED { g.prefetch(x + g.pitch * i, where); });
}

template <bool without_maxima, class T, class G> NX_NOINLINE void lift_near(G g, const char* x, MaxSum<T>* state) {
  const Vec<T> most = g.max(x);
  T m[G::rows], n[G::rows];
  G::gather(most, m);
  for (int r = 0; r < G::rows; ++r) {
    state[r] = {m[r], {}, 0, 0};
    n[r] = near_exponent(m[r]);
  }
  sum_exp<without_maxima>(g, x, most, Reference<T>{all(T(0)), G::spread(n)}, state);
}

// With the row's maximum in state[r].m. If that is infinite, `count` and `nans` say all there is to know.
template <bool without_maxima, class T, class G> NX_NOINLINE void lift_far(G g, const char* x, MaxSum<T>* state) {
  const Vec<T> m = spread_max<T, G>(state);
  sum_exp<without_maxima>(g, x, m, reference_of(m), state);
  if constexpr (!without_maxima) count_maxima(g, x, m, state);
  count_nans(g, x, state);
}

// True if some row's maximum is infinite.
template <class T> NX_INLINE bool any_infinite(Vec<T> m) {
  const Vec<T> zero = all(T(0));
  return reduce_max(select_eq(m - m, zero, zero, all(T(1)))) > 0;
}
// Whole rows in one piece: their maxima are known before anything is summed.
template <bool without_maxima, class T, class G> void lift_whole(G g, const char* x, MaxSum<T>* state) {
  const Vec<T> most = g.max(x);
  T m[G::rows];
  G::gather(most, m);
  for (int r = 0; r < G::rows; ++r) state[r] = {m[r], {}, 0, 0};
  if (any_infinite(most)) return lift_far<without_maxima>(g, x, state);
  sum_exp<without_maxima>(g, x, most, reference_of(most), state);
}

// Rows as they lie, lifted one after the other, each with done(g, x, y, state): while one is summed, the maximum of the next is found,
// so that memory works all the time. Expected: the time of the sum alone. Measured, logsumexp: (1024, 4096) floats 0.66 ms instead of
// 0.73, (64, 1024) 13 µs instead of 15 (and 0.79 and 16 with a pass of its own to count the maxima, which is done in the sum now); what
// is left is the exponential, 2.4 ns a vector.
template <bool without_maxima, class S, class F> NX_NOINLINE void lift_rows(const Task& t, std::int64_t first, std::int64_t last, F&& done) {
  using T = Compute<S>;
  using G = Row<T, S>;
  const G g{t.n, fetch_ahead, t.streams};
  Cursor outer(t.axes, t.outer, first);
  Vec<T> m = g.max(t.x + outer.at.x);
  for (std::int64_t unit = first; unit < last; ++unit) {
    const Place at = outer.at;
    const char* const x = t.x + at.x;
    outer.advance(1);
    const char* const next = unit + 1 < last ? t.x + outer.at.x : x;
    Vec<T> most = all(-infinity<T>);
    MaxSum<T> row{};
    if (any_infinite(m)) {
      lift_whole<without_maxima>(g, x, &row);
      most = g.max(next);
    } else {
      G::gather(m, &row.m);
      with_reference(row.m, [&](const auto& ref) NX_INLINED {
        sum_exp<without_maxima>(g, x, m, ref, &row, [&](std::int64_t i, auto where) NX_INLINED {
          const auto v = g.read(next, i, where, -infinity<T>);
          for (int k = 0; k < lines_of(v); ++k) {
            fetch(next + g.pitch * (i + k));
            most = max_skip_nan(most, line(v, k));
          }
        });
      });
    }
    done(g, x, t.y + at.y, row);
    m = all(reduce_max(most));
  }
}

// exp(m) relative to 2^near_exponent(m), in double. 0 if m is too low to count beside a near row.
template <class T> NX_NOINLINE double peak(T m) {
  if (m <= -2 * near_limit) return 0;
  using R = reg<double>;
  const Parts<R> e = exp_parts<double>(R::all(m), [](double s) { return R::all(s); });
  double p[R::lanes];
  ldexp(e.p, e.n - R::all(near_exponent(m))).store(p);
  return p[0];
}

// a ⊕ b. After lifting again both have the row's maximum, and nothing is moved.
template <bool without_maxima, class T> NX_NOINLINE void merge_max_sum(MaxSum<T>& a, const MaxSum<T>& b) {
  const MaxSum<T> high = a.m > b.m ? a : b, low = a.m > b.m ? b : a;
  Total<T> moved = low.sum;
  if (without_maxima && low.m < high.m) moved = moved + total_of<T>(low.count * peak(low.m));
  moved = scaled(moved, static_cast<int>(near_exponent(low.m) - near_exponent(high.m)));
  a.sum = moved + high.sum;
  a.m = high.m;
  a.count = low.m < high.m ? high.count : high.count + low.count;
  a.nans = high.nans + low.nans;
}

// The pointwise map that a row's state amounts to. Where some row has an infinite maximum, the vectors `special`, `hit` and
// `miss` decide for those rows: entries equal to the maximum become `hit`, the others `miss`.
template <class T> struct Special {
  bool any;
  Vec<T> m, special, hit, miss;

  template <int L> NX_INLINE Vec<T, L> choose(Vec<T, L> x, Vec<T, L> ordinary) const {
    return select_eq(special, all(T(1)), select_eq(x, m, hit, miss), ordinary);
  }
};

// share(k): what an entry gets if k share everything. nothing: what it gets if it has no share.
template <class T, class G, class F>
NX_INLINE Special<T> special_rows(const MaxSum<T>* row, Empty empty, const double* kept, F&& share, T nothing) {
  Special<T> s{};
  T m[G::rows], special[G::rows], hit[G::rows], miss[G::rows];
  for (int r = 0; r < G::rows; ++r) {
    const bool is_special = !is_finite(row[r].m);
    s.any |= is_special;
    m[r] = row[r].m;
    special[r] = is_special;
    hit[r] = miss[r] = nothing;
    if (!is_special) continue;
    if (row[r].nans > 0) {
      hit[r] = miss[r] = not_a_number<T>;
    } else if (row[r].m > 0) {
      hit[r] = share(row[r].count);
    } else {
      hit[r] = empty == Empty::zero ? nothing : empty == Empty::nan ? not_a_number<T> : share(kept[r]);
    }
  }
  if (s.any) {
    s.m = G::spread(m);
    s.special = G::spread(special);
    s.hit = G::spread(hit);
    s.miss = G::spread(miss);
  }
  return s;
}
