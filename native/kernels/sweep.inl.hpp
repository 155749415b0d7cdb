// softmax of rows that lie across the contiguous axis, swept over twice as memory lies: along a wide panel of columns, line after
// line. The first sweep sums with running exponents, the second writes e·inv; it is twopass with columns in the place of lanes,
// and has its bits. Nothing is packed, and no line is needed twice, so that rows a power of two apart cannot push each other out
// of the caches.
//
// A block of the canonical sum is 8V rows, row V·k + l the one of rank k in lane l. The ranks of a lane are swept together, eight
// streams that the hardware can follow, and a vector of columns keeps V running sums, one to a lane.

template <class Op, class S> struct sweep {
  using T = Compute<S>;
  static_assert(sizeof(S) == sizeof(T));
  static constexpr std::int64_t V = Vec<T>::lanes;

  static void run(const Task& t, std::int64_t first, std::int64_t last, char* scratch) {
    const Axis& side = t.axes[t.outer - 1];
    const std::int64_t panels = panel_count(side.size, t.head, t.panel);
    Cursor outer(t.axes, t.outer - 1, first / panels);
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t panel = unit % panels;
      if (unit > first && !panel) outer.advance(1);
      const std::int64_t from = panel_first(panel, t.head, t.panel), end = panel_first(panel + 1, t.head, t.panel);
      const Panel p{t.x + outer.at.x + from * side.x, t.y + outer.at.y + from * side.y, t.axes[t.outer].x, t.axes[t.outer].y,
                    t.n,                              (end < side.size ? end : side.size) - from};
      if (!p.sum(scratch)) {
        by_columns(t, p, scratch);
      } else if (t.streams && (reinterpret_cast<std::uintptr_t>(p.y) | static_cast<std::uintptr_t>(p.y_line)) % 64 == 0) {
        p.template write<true>(scratch);
        stream_fence();
      } else {
        p.template write<false>(scratch);
      }
    }
  }

 private:
  // One canonical lane of a vector of columns.
  struct Running {
    Lanes<T> sum;
    Vec<T> exponent;
  };
  // What the second sweep knows of a vector of columns.
  struct Known {
    Vec<T> exponent;
    typename Op::Inverse inverse;
  };
  struct Sum {
    Total<T> total[V];
    T exponent[V];
  };

  // Each step of a sweep fetches this far ahead in its run of columns, or from the run that follows.
  static constexpr std::int64_t reach = 2048;

  struct Panel {
    const char* x;
    char* y;
    std::int64_t x_line, y_line, n, columns;

    std::int64_t vectors() const { return (columns + V - 1) / V; }
    template <class F> NX_INLINE void each_vector(F&& body) const {
      std::int64_t c = 0;
      for (; c < columns / V; ++c) body(c, Full<1>{});
      if (columns % V) body(c, Part{static_cast<int>(columns % V)});
    }
    // `at` lies 64·c bytes into a run that the run at `next` bytes from its beginning follows.
    NX_INLINE void fetch(const char* at, std::int64_t c, std::int64_t next) const {
      const std::int64_t run = 64 * vectors();
      __builtin_prefetch(at + reach + (64 * c + reach < run ? 0 : next - run));
    }

    // The rows of a lane's ranks, V lines from one to the next.
    template <bool all_ranks> NX_NOINLINE void add(const char* row, int ranks, std::int64_t next, Running* to) const {
      each_vector([&](std::int64_t c, auto where) NX_INLINED {
        Parts<Vec<T>> e[8];
#pragma GCC unroll 8
        for (int k = 0; k < 8; k += group) {
          if (!all_ranks && k + group > ranks) {
            for (int j = k; j < k + group; ++j) {
              e[j] = j < ranks ? exp_parts(bounded(load(row + 64 * c + j * V * x_line, where, T(0)))) : Parts<Vec<T>>{all(T(0)), all(lowest_exponent<T>)};
            }
            continue;
          }
          Vec<T, group> v;
          for (int j = 0; j < group; ++j) {
            const char* const at = row + 64 * c + (k + j) * V * x_line;
            fetch(at, c, next);
            set_line(v, j, load(at, where, T(0)));
          }
          const auto parts = exp_parts(bounded(v));
          for (int j = 0; j < group; ++j) e[k + j] = {line(parts.p, j), line(parts.n, j)};
        }
        Running& lane = to[c];
        const Vec<T> before = lane.exponent;
        Vec<T> highest = before;
        for (int k = 0; k < 8; ++k) highest = max_skip_nan(highest, e[k].n);
        lane.sum = scaled(lane.sum, before - highest);
        lane.sum.add([&](int k) NX_INLINED { return ldexp(e[k].p, e[k].n - highest); });
        lane.exponent = highest;
      });
    }

    // False if some column is not near: it needs its maximum.
    NX_NOINLINE bool sum(char* scratch) const {
      Known* const known = reinterpret_cast<Known*>(scratch);
      Running* const running = reinterpret_cast<Running*>(known + vectors());
      Sum* const sums = reinterpret_cast<Sum*>(running + V * vectors());
      for (std::int64_t first = 0; first < n; first += chunk_size<T>) {
        const std::int64_t end = n - first < chunk_size<T> ? n : first + chunk_size<T>;
        for (std::int64_t i = 0; i < V * vectors(); ++i) running[i] = {{}, all(lowest_exponent<T>)};
        for (std::int64_t block = first; block < end; block += 8 * V) {
          for (std::int64_t l = 0; l < V && block + l < end; ++l) {
            const char* const row = x + (block + l) * x_line;
            const int ranks = static_cast<int>((end - block - l + V - 1) / V);
            const std::int64_t next = (l + 1 < V ? 1 : 7 * V + 1) * x_line;
            ranks >= 8 ? add<true>(row, 8, next, running + l * vectors()) : add<false>(row, ranks, next, running + l * vectors());
          }
        }
        for (std::int64_t c = 0; c < vectors(); ++c) merge(running + c, sums[c], first == 0);
      }
      bool near = true;
      for (std::int64_t c = 0; c < vectors(); ++c) near &= finish(sums[c], known[c]);
      return near;
    }
    NX_NOINLINE void merge(const Running* running, Sum& sum, bool is_first) const {
      Vec<T> n = running[0].exponent;
      for (std::int64_t l = 1; l < V; ++l) n = max_skip_nan(n, running[l * vectors()].exponent);
      Lanes<T> lane[V];
      for (std::int64_t l = 0; l < V; ++l) lane[l] = scaled(running[l * vectors()].sum, running[l * vectors()].exponent - n);
      Sum chunk;
      apart(tree(lane, V), chunk.total);
      store(reinterpret_cast<char*>(chunk.exponent), n);
      for (std::int64_t r = 0; r < V && !is_first; ++r) {
        const T most = sum.exponent[r] > chunk.exponent[r] ? sum.exponent[r] : chunk.exponent[r];
        chunk.total[r] = scaled(sum.total[r], static_cast<int>(sum.exponent[r] - most)) +
                         scaled(chunk.total[r], static_cast<int>(chunk.exponent[r] - most));
        chunk.exponent[r] = most;
      }
      sum = chunk;
    }
    NX_NOINLINE static bool finish(const Sum& sum, Known& known) {
      T high[V], low[V];
      bool near = true;
      for (std::int64_t r = 0; r < V; ++r) {
        near &= sum.exponent[r] > near_exponent(T(-near_limit)) && sum.exponent[r] < near_exponent(T(near_limit)) && is_finite(sum.total[r].value());
        inverse_of(sum.total[r], high[r], low[r]);
      }
      known = {load<T>(reinterpret_cast<const char*>(sum.exponent)),
               {load<T>(reinterpret_cast<const char*>(high)), load<T>(reinterpret_cast<const char*>(low))}};
      return near;
    }

    template <bool streams> NX_NOINLINE void write(const char* scratch) const {
      const Known* const known = reinterpret_cast<const Known*>(scratch);
      const auto some = [&]<int lines>(std::int64_t i, Full<lines>) NX_INLINED {
        each_vector([&](std::int64_t c, auto where) NX_INLINED {
          Vec<T, lines> v;
          for (int j = 0; j < lines; ++j) {
            const char* const at = x + (i + j) * x_line + 64 * c;
            fetch(at, c, lines * x_line);
            set_line(v, j, load(at, where, T(0)));
          }
          const auto y_of = known[c].inverse.times(exp_at(v, Reference<T>{all(T(0)), known[c].exponent}));
          for (int j = 0; j < lines; ++j) {
            char* const to = y + (i + j) * y_line + 64 * c;
            if constexpr (streams && std::is_same_v<decltype(where), Full<1>>) {
              stream(to, line(y_of, j));
            } else {
              store(to, line(y_of, j), where);
            }
          }
        });
      };
      std::int64_t i = 0;
      for (; i + group <= n; i += group) some(i, Full<group>{});
      for (; i < n; ++i) some(i, Full<1>{});
    }
  };

  static NX_NOINLINE void by_columns(const Task& t, const Panel& p, char* scratch) {
    const Axis axes[2] = {{p.columns, sizeof(T), sizeof(T), 0}, t.axes[t.outer]};
    Task part = t;
    part.x = p.x;
    part.y = p.y;
    part.axes = axes;
    part.outer = 1;
    part.head = 0;
    part.panel = V;
    part.streams = false;
    columns<Op, S>::run(part, 0, panel_count(p.columns, 0, V), scratch);
  }
};
