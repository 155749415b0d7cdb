// softmax: y = e(x) / Σ e.
//
// Three algorithms for a row in one piece (Dukhan and Ablavatski 2020) and the online one by chunks (Milakov and Gimelshein
// 2018) give the same bits; they differ in traffic and in work:
//   reload     max; e, stored and summed; y *= inv           one exponential, y written twice
//   recompute  max; sum of e; e·inv                          two exponentials, x read three times
//   twopass    sum of e with running exponents; e·inv        two exponentials, x read twice
//   online     (max; sum) of each chunk, merged; e·inv       two exponentials, x read twice from far away
// (The same but for contributions below 2^-126 of the maximum, whose rounding no 53-bit sum can show.)

NX_INLINE void inverse_of(Total<float> total, float& high, float& low) {
  // Split in the bits: GCC 12, for AVX-512, makes double(float(inverse)) into inverse when it vectorises a loop of this.
  const double inverse = 1 / total.sum;
  std::uint64_t bits;
  __builtin_memcpy(&bits, &inverse, sizeof bits);
  bits &= ~((std::uint64_t{1} << 29) - 1);
  double leading;
  __builtin_memcpy(&leading, &bits, sizeof leading);
  high = static_cast<float>(leading);
  low = static_cast<float>(inverse - leading);
}
NX_INLINE void inverse_of(Total<double> total, double& high, double& low) {
  high = 1 / total.value();
  const Pair<double> one = product(high, total.sum);  // 1 − high·Σ, exactly but for its last places
  low = high * (((1 - one.sum) - one.low) - high * total.low);
}

template <class T> struct softmax {
  using State = MaxSum<T>;
  static constexpr bool reduces = false, any_length = false, cuts_show = false;
  static constexpr T nothing = 0;
  static T share(double k) { return static_cast<T>(1 / k); }

  template <class G> static void lift(G g, const char* x, State* state) { lift_near<false>(g, x, state); }
  template <class G> static void lift_again(G g, const char* x, State* state) { lift_far<false>(g, x, state); }
  static void merge(State& a, const State& b) { merge_max_sum<false>(a, b); }

  // 1/Σ in two parts. The second costs one multiplication and takes up to an ulp off the error of every y.
  struct Inverse {
    Vec<T> high, low;
    template <int L> NX_INLINE Vec<T, L> times(Vec<T, L> e) const { return fma(e, high, e * low); }
  };
  template <class G> static NX_INLINE Inverse inverse(const Total<T>* sum) {
    T high[G::rows], low[G::rows];
    for (int r = 0; r < G::rows; ++r) inverse_of(sum[r], high[r], low[r]);
    return {G::spread(high), G::spread(low)};
  }

  template <class G> static NX_NOINLINE void write_ordinary(G g, const char* x, char* y, Reference<T> ref, Inverse inv) {
    g.map(x, y, [&](auto v) NX_INLINED { return inv.times(exp_at(v, ref)); });
  }

  template <class G> static NX_NOINLINE void write(G g, const char* x, char* y, const State* row, Empty empty, const double* kept) {
    const Reference<T> ref = reference_of(spread_max<T, G>(row));
    Total<T> total[G::rows];
    for (int r = 0; r < G::rows; ++r) total[r] = row[r].sum;
    const Inverse inv = inverse<G>(total);
    const Special<T> s = special_rows<T, G>(row, empty, kept, share, nothing);
    if (!s.any) return write_ordinary(g, x, y, ref, inv);
    g.map(x, y, [&](auto v) NX_INLINED { return s.choose(v, inv.times(exp_at(v, ref))); });
  }

  template <class G> static NX_NOINLINE void recompute(G g, const char* x, char* y, Empty empty, const double* kept) {
    State row[G::rows];
    lift_whole<false>(g, x, row);
    write(g, x, y, row, empty, kept);
  }

  template <class G> static NX_NOINLINE void reload(G g, const char* x, char* e, char* y, Empty empty, const double* kept) {
    const Vec<T> m = g.max(x);
    if (any_infinite(m)) return recompute(g, x, y, empty, kept);
    const Reference<T> ref = reference_of(m);
    Total<T> total[G::rows];
    g.sum(
        [&](std::int64_t i, auto where) NX_INLINED {
          const auto part = exp_at(g.read(x, i, where, -infinity<T>), ref);
          store(e + g.pitch * i, part, where);
          return part;
        },
        total);
    const Inverse inv = inverse<G>(total);
    g.map(e, y, [&](auto part) NX_INLINED { return inv.times(part); });
  }

  // Rows as they lie, each passed over once: while the exponentials of a row are computed into scratch, the row before it is
  // written and the maximum of the row after it is found, so that memory works all the time. Expected: the compute time alone
  // once rows come from memory, 11 ms of 20 for 2^26 floats. Measured in dispatch/call.cpp, where `streams` is chosen: stores
  // that go past the caches. 16-bit rows change their type in registers, on the way in and out, which was expected to cost no more
  // than 1.3 of the time of floats. Measured, float16 and bfloat16 in units of it: (64, 1024) 1.11 and 1.31, (64, 4096) 1.03 and
  // 1.16, (1024, 4096) 1.21 and 1.43, (128, 32768) 1.35 and 1.55; packed into scratch first 1.6, 1.3, 1.4 and 2.6. What a row in
  // cache has left is the rounding to bfloat16. Streaming halves of lines takes (1024, 4096) to 1.0 and 1.1, and costs more than
  // that as soon as somebody reads the result, which is small enough to stay in L3: 1.02 + 0.20 ms instead of 0.72 + 0.09.
  //
  // In cache the bound is the vector instructions, 152 to a block of eight vectors (96 of exponentials, 32 of the sum in double): 76
  // cycles of two ports, 2.75 ns a vector on a Granite Rapids at 3.45 GHz. This loop alone takes 3.0 there, calls take 3.5, and 3.95
  // where x and y begin within a line. To write the row before some lines later, so that nothing waits for its sum, changes nothing.
  template <class S, bool streams> static NX_NOINLINE void reload_rows(const Task& t, std::int64_t first, std::int64_t last, char* scratch) {
    using G = Row<T, S>;
    const G g{t.n};
    const double kept = static_cast<double>(t.n);
    Cursor outer(t.axes, t.outer, first);
    Waiting<S, streams> before{};
    Edge edge;
    T m;
    g.gather(g.max(t.x + outer.at.x), &m);
    for (std::int64_t unit = first; unit < last; ++unit) {
      const char* const x = t.x + outer.at.x;
      char* const y = t.y + outer.at.y;
      outer.advance(1);
      const char* const next = unit + 1 < last ? t.x + outer.at.x : x;
      Vec<T> most = all(-infinity<T>);
      if (is_finite(m)) {
        Total<T> total;
        with_reference(m, [&](const auto& ref) NX_INLINED {
          g.sum(
              [&](std::int64_t i, auto where) NX_INLINED {
                before.write(i, where);
                const auto ahead = g.read(next, i, where, -infinity<T>);
                for (int k = 0; k < lines_of(ahead); ++k) {
                  const char* const at = next + g.pitch * (i + k);
                  streams ? fetch(at) : fetch_from_l2(at);  // in cache the other fetch would cost 4 % of the time
                  most = max_skip_nan(most, line(ahead, k));
                }
                const auto e = exp_at(g.read(x, i, where, -infinity<T>), ref);
                store(scratch + 64 * i, e);
                return e;
              },
              &total);
        });
        before = Waiting<S, streams>(y, scratch, t.n, inverse<G>(&total), edge);
      } else {
        before.write_all();
        before = {};
        most = g.max(next);
        recompute(g, x, y, t.empty, &kept);
      }
      m = reduce_max(most);
    }
    before.write_all();
    edge.flush();
    if (streams) stream_fence();
  }

  // One running exponent for each lane, so no maximum is needed beforehand. This covers |x| < near_limit; a row that has left
  // that range, or holds a NaN, is done again with its maximum at hand.
  template <class G> static NX_NOINLINE void twopass(G g, const char* x, char* y, Empty empty, const double* kept) {
    Exponent total{{}, lowest_exponent<T>};
    for (std::int64_t first = 0; first < g.n; first += chunk_size<T>) {
      const G chunk{g.n - first < chunk_size<T> ? g.n - first : chunk_size<T>, g.ahead};
      const Exponent next = running_sum(chunk, x + first / Vec<T>::lanes * g.pitch);
      const T n = next.n > total.n ? next.n : total.n;
      total = {scaled(total.sum, static_cast<int>(total.n - n)) + scaled(next.sum, static_cast<int>(next.n - n)), n};
    }
    const bool near = total.n > near_exponent(T(-near_limit)) && total.n < near_exponent(T(near_limit));
    if (!near || !is_finite(total.sum.value())) return recompute(g, x, y, empty, kept);
    write_ordinary(g, x, y, Reference<T>{all(T(0)), all(total.n)}, inverse<G>(&total.sum));
  }

  template <class G> static void whole(G g, const char* x, char* room, char* y, Empty empty, const double* kept) {
    reload(g, x, room, y, empty, kept);
  }

 private:
  // The line of y that two rows share, if they follow each other: it is streamed when the second one has filled it up. (Written
  // in parts it would first have to be read: 17.4 ms instead of 12.2 for 2^26 floats in rows of 1024 that begin within a line.)
  struct Edge {
    alignas(64) char line[64];
    char* at = nullptr;
    std::size_t filled = 0;

    // The first elements of the row at y; `count` ends a line, or the row.
    void head(char* y, Vec<T> v, int count) {
      if (at + filled != y) flush();
      if (!filled) return store(y, v, Part{count});
      store(line + filled, v, Part{count});
      filled += static_cast<std::size_t>(count) * sizeof(T);
      if (filled == 64) {
        stream(at, load<T>(line));
        filled = 0;
      }
    }
    void tail(char* y, Vec<T> v, int count) {
      flush();
      store(line, v);
      at = y;
      filled = static_cast<std::size_t>(count) * sizeof(T);
    }
    void flush() {
      if (filled) __builtin_memcpy(at, line, filled);
      filled = 0;
    }
  };

  // A row of e in scratch on its way out: its first and last elements go to the edges at once, whole lines of y when asked for.
  template <class S, bool streams> struct Waiting {
    static_assert(!streams || sizeof(S) == sizeof(T));
    char* to = nullptr;
    const char* from = nullptr;
    std::int64_t lines = 0;
    Inverse inv;

    NX_INLINE Waiting() = default;
    NX_INLINE Waiting(char* y, const char* e, std::int64_t n, Inverse inv, Edge& edge) : inv(inv) {
      const Lines cut(y, sizeof(S), n, line_bytes<S>);
      to = y + cut.head * sizeof(S);
      from = e + cut.head * sizeof(T);
      lines = cut.whole;
      if (cut.head) {
        const Vec<T> v = inv.times(load<T>(e));
        if constexpr (streams) {
          edge.head(y, v, cut.head);
        } else {
          store_as<S>(y, v, Part{cut.head});
        }
      }
      if (cut.tail) {
        const Vec<T> v = inv.times(load<T>(from + 64 * lines));
        if constexpr (streams) {
          edge.tail(to + 64 * lines, v, cut.tail);
        } else {
          store_as<S>(to + line_bytes<S> * lines, v, Part{cut.tail});
        }
      }
    }
    template <int count> NX_INLINE void write(std::int64_t i, Full<count> where) const {
      if (i + count <= lines) {
        const auto y = inv.times(load(from + 64 * i, where, T(0)));
        if constexpr (streams) {
          stream(to + 64 * i, y);
        } else {
          store_as<S>(to + line_bytes<S> * i, y);
        }
      } else if (count > 1) {
        for (; i < lines; ++i) write(i, Full<1>{});
      }
    }
    NX_INLINE void write(std::int64_t i, Part) const { write(i, Full<1>{}); }
    void write_all() const {
      for (std::int64_t i = 0; i < lines; ++i) write(i, Full<1>{});
    }
  };

  struct Exponent {  // sum · 2^n
    Total<T> sum;
    T n;
  };

  template <class G> static Exponent running_sum(G chunk, const char* x) {
    constexpr int V = Vec<T>::lanes;
    Vec<T> highest = all(lowest_exponent<T>);
    Lanes<T> lanes{};
    const auto add = [&](const Parts<Vec<T>>* e) {
      Vec<T> before = highest;
      for (int k = 0; k < 8; ++k) highest = max_skip_nan(highest, e[k].n);
      lanes = scaled(lanes, before - highest);
      lanes.add([&](int k) { return ldexp(e[k].p, e[k].n - highest); });
    };
    Parts<Vec<T>> e[8];
    std::int64_t i = 0;
    for (; i + 8 <= chunk.n / V; i += 8) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; k += group) {
        chunk.prefetch(x + chunk.pitch * (i + k), Full<group>{});
        const auto parts = exp_parts(bounded(chunk.read(x, i + k, Full<group>{}, T(0))));
        for (int j = 0; j < group; ++j) e[k + j] = {line(parts.p, j), line(parts.n, j)};
      }
      add(e);
    }
    if (i * V < chunk.n) {
      for (int k = 0; k < 8; ++k) e[k] = {all(T(0)), all(lowest_exponent<T>)};
      int k = 0;
      for (; i < chunk.n / V; ++i) e[k++] = exp_parts(bounded(chunk.read(x, i, Full<1>{}, T(0))));
      if (chunk.n % V) e[k] = exp_parts(bounded(chunk.read(x, i, Part{static_cast<int>(chunk.n % V)}, -infinity<T>)));
      add(e);
    }
    const T n = reduce_max(highest);
    return {across(scaled(lanes, highest - all(n))), n};
  }
};
