// Where the lanes of a vector lie, and the folds over them. Row: sixteen (eight) neighbours of one row. Strip: one element
// each of sixteen (eight) rows that lie side by side. Ops are written once, in vectors, for either.
//
// Sums have one canonical order. A row is padded with zeros, virtually, to blocks of eight vectors of V lanes (16 floats,
// 8 doubles). Element 8V·block + V·k + l of it has rank k in lane l. Ranks 2j and 2j + 1 are added in T; these pairs in double
// (of doubles: with the error of each addition carried along), a block's four as a tree and the blocks in order; the lanes as
// a tree; the chunks in order. So the error does not grow with the length, and the bits depend on nothing but the row.
// (Longer trees in T save up to 6 % of the time in cache, and cost half an ulp a level where one entry dominates: with trees
// of four, one softmax in 10^7 exceeded 4 ULP.)

// A sum in double and what its additions have rounded off. V is double or Vec<double>.
template <class V> struct Pair {
  V sum, low;
};
// Knuth's TwoSum: nothing is lost, whichever operand is greater.
template <class V> NX_INLINE Pair<V> operator+(Pair<V> a, Pair<V> b) {
  const V sum = a.sum + b.sum;
  const V part = sum - a.sum;
  const V lost = (a.sum - (sum - part)) + (b.sum - part);
  return {sum, (a.low + b.low) + lost};
}

// a·b without loss (Dekker and Veltkamp: no FMA needed, so the bits are the same with and without).
NX_INLINE Pair<double> product(double a, double b) {
  const double as = a * 0x1.0000002p27, bs = b * 0x1.0000002p27;
  const double ah = as - (as - a), bh = bs - (bs - b), al = a - ah, bl = b - bh;
  const double high = a * b;
  return {high, ((ah * bh - high) + ah * bl + al * bh) + al * bl};
}

// The running sum of V lanes. add(e) takes the vectors e(0) .. e(7) of a block.
template <class T> struct Lanes;
template <> struct Lanes<float> {
  Vec<double> first, last;
  template <class F> NX_INLINE void add(F&& e) {
    const Wide a = widen(e(0) + e(1));
    const Wide b = widen(e(2) + e(3));
    const Wide c = widen(e(4) + e(5));
    const Wide d = widen(e(6) + e(7));
    first = first + ((a.first + b.first) + (c.first + d.first));
    last = last + ((a.last + b.last) + (c.last + d.last));
  }
};
template <> struct Lanes<double> {
  Pair<Vec<double>> total;
  template <class F> NX_INLINE void add(F&& e) {
    const Pair<Vec<double>> a{e(0) + e(1), all(0.0)};
    const Pair<Vec<double>> b{e(2) + e(3), all(0.0)};
    const Pair<Vec<double>> c{e(4) + e(5), all(0.0)};
    const Pair<Vec<double>> d{e(6) + e(7), all(0.0)};
    total = total + ((a + b) + (c + d));
  }
};

// What the lanes of a Row, or one lane of a Strip's rows, amount to: of floats double is enough, of doubles a Pair.
NX_INLINE Lanes<float> operator+(Lanes<float> a, Lanes<float> b) { return {a.first + b.first, a.last + b.last}; }
NX_INLINE Lanes<double> operator+(Lanes<double> a, Lanes<double> b) { return {a.total + b.total}; }

// Every lane times 2^k, for its own k ≤ 0.
NX_INLINE Lanes<float> scaled(Lanes<float> a, Vec<float> k) {
  const Wide wide = widen(k);
  return {ldexp(a.first, wide.first), ldexp(a.last, wide.last)};
}
NX_INLINE Lanes<double> scaled(Lanes<double> a, Vec<double> k) { return {{ldexp(a.total.sum, k), ldexp(a.total.low, k)}}; }

// A total per row, in the precision in which totals of T are carried.
template <class T> struct Total;
template <> struct Total<float> {
  double sum;
  NX_INLINE double value() const { return sum; }
};
template <> struct Total<double> : Pair<double> {
  NX_INLINE double value() const { return sum + low; }
};
NX_INLINE Total<float> operator+(Total<float> a, Total<float> b) { return {a.sum + b.sum}; }
NX_INLINE Total<double> operator+(Total<double> a, Total<double> b) {
  return {static_cast<Pair<double>>(a) + static_cast<Pair<double>>(b)};
}
template <class T> NX_INLINE Total<T> total_of(double sum) {
  Total<T> total{};
  total.sum = sum;
  return total;
}
NX_INLINE Total<float> scaled(Total<float> a, int k) { return {__builtin_ldexp(a.sum, k)}; }
NX_INLINE Total<double> scaled(Total<double> a, int k) { return {{__builtin_ldexp(a.sum, k), __builtin_ldexp(a.low, k)}}; }

template <class A> NX_INLINE A tree(A* lane, int count) {
  for (int step = count / 2; step; step /= 2) {
    for (int i = 0; i < step; ++i) lane[i] = lane[i] + lane[i + step];
  }
  return lane[0];
}
NX_INLINE Total<float> across(Lanes<float> lanes) { return {reduce_add(lanes.first + lanes.last)}; }
NX_INLINE Total<double> across(Lanes<double> lanes) {
  double sum[8], low[8];
  store(reinterpret_cast<char*>(sum), lanes.total.sum);
  store(reinterpret_cast<char*>(low), lanes.total.low);
  Pair<double> lane[8];
  for (int i = 0; i < 8; ++i) lane[i] = {sum[i], low[i]};
  return {tree(lane, 8)};
}
NX_INLINE void apart(Lanes<float> lanes, Total<float>* total) {
  store(reinterpret_cast<char*>(total), lanes.first);
  store(reinterpret_cast<char*>(total + 8), lanes.last);
}
NX_INLINE void apart(Lanes<double> lanes, Total<double>* total) {
  double sum[8], low[8];
  store(reinterpret_cast<char*>(sum), lanes.total.sum);
  store(reinterpret_cast<char*>(low), lanes.total.low);
  for (int i = 0; i < 8; ++i) total[i] = {{sum[i], low[i]}};
}

// A stream of loads is at p, and computing in between keeps the hardware's prefetcher from running far ahead. On a Zen 5, 2^26
// floats in rows of 4096 took 22.7 ms without, and fetched into L1 19.2 at 1 KiB ahead, 16.4 at 2, 13.3 at 4, 11.9 at 8 and at 16.
//
// From memory a line goes to L2 first: one on its way into L1 holds a fill buffer, of which there are some sixteen, until it is
// there. Expected on a Granite Rapids: what reading takes, 3.4 ns a line, or the exponentials, 3.9, instead of their sum. Measured
// there, ns a line of 2^24 floats, medians of interleaved runs:
//
//                        softmax, rows of   1024   4096   65536   2^24    logsumexp, 4096   2^24
//   8 KiB ahead, to L1                       8.6    7.6     7.9   10.6                7.1    6.7
//   2 KiB ahead, to L1                       6.7    6.7     7.0    9.9                6.9    6.5
//   2 to L1, 8 to L2                         6.8    6.8     6.9    8.3                5.4    4.9
constexpr std::int64_t fetch_ahead = 8192;
NX_INLINE void fetch_from_l2(const char* p) { __builtin_prefetch(p + 2048); }
NX_INLINE void fetch(const char* p, std::int64_t ahead = fetch_ahead) {
  __builtin_prefetch(p + ahead, 0, 2);
  fetch_from_l2(p);
}

// n elements at y: those before the first whole line, the whole lines, those after. A line is what a vector's elements take
// there, 64 bytes or 32, aligned to itself. If y is not aligned to its elements, "lines" begin with it.
struct Lines {
  int head, tail;
  std::int64_t whole;
  NX_INLINE Lines(const char* y, int size, std::int64_t n, int line = 64) {
    const int past = static_cast<int>(reinterpret_cast<std::uintptr_t>(y) % static_cast<std::uintptr_t>(line));
    const int wanted = past % size ? 0 : (line - past) % line / size;
    head = wanted < n ? wanted : static_cast<int>(n);
    whole = (n - head) * size / line;
    tail = static_cast<int>(n - head - whole * line / size);
  }
};

// n elements of one row, stored as S. Vector i of it lies pitch·i bytes from its start.
template <class T, class S = T> struct Row {
  static constexpr int rows = 1;
  static constexpr std::int64_t pitch = line_bytes<S>;
  static constexpr int V = Vec<T>::lanes;
  std::int64_t n;
  std::int64_t ahead = 0;  // bytes from here to what will be read after this, for the prefetcher
  bool streams = false;    // map() writes past the caches, if the row is long enough for its edges not to matter

  NX_INLINE static Vec<T> spread(const T* per_row) { return all(per_row[0]); }
  NX_INLINE static void gather(Vec<T> v, T* per_row) { per_row[0] = reduce_max(v); }  // of equal lanes
  template <int lines> NX_INLINE void prefetch(const char* p, Full<lines>) const {
    for (int i = 0; i < lines; ++i) fetch(p + pitch * i, ahead);
  }
  NX_INLINE static void prefetch(const char*, Part) {}
  // Vector i, and those after it if more than one is wanted. A part of one is filled up.
  template <class Where> NX_INLINE static auto read(const char* x, std::int64_t i, Where where, T fill) { return load_as<S>(x + pitch * i, where, fill); }

  // The elements of y from byte `at` on are f(at, how many). Whole lines of y are written at once, wherever it begins.
  template <class F> NX_INLINE void write(char* y, F&& f) const {
    const Lines lines(y, sizeof(S), n, pitch);
    const bool past_caches = streams && pitch == 64 && n * sizeof(T) >= 8192;
    std::int64_t at = 0;
    if (lines.head) store_as<S>(y, f(at, Part{lines.head}), Part{lines.head});
    at += lines.head * static_cast<std::int64_t>(sizeof(S));
    const auto whole = [&]<int count>(Full<count> where) NX_INLINED {
      const Vec<T, count> v = f(at, where);
      past_caches ? stream(y + at, v) : store_as<S>(y + at, v);
      at += pitch * count;
    };
    std::int64_t left = lines.whole;
    for (; left >= group; left -= group) whole(Full<group>{});
    for (; left; --left) whole(Full<1>{});
    if (lines.tail) store_as<S>(y + at, f(at, Part{lines.tail}), Part{lines.tail});
    if (past_caches) stream_fence();
  }
  // y = f(x), element by element.
  template <class F> NX_INLINE void map(const char* x, char* y, F&& f) const {
    write(y, [&](std::int64_t at, auto where) NX_INLINED {
      prefetch(x + at, where);
      return f(load_as<S>(x + at, where, T(0)));
    });
  }

  // The maximum of a row in every lane. −inf if the row is empty, or all NaN.
  NX_NOINLINE Vec<T> max(const char* x) const {
    Vec<T> most[8];
    for (Vec<T>& m : most) m = all(-infinity<T>);
    const std::int64_t full = n / V;
    std::int64_t i = 0;
    for (; i + 8 <= full; i += 8) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) most[k] = max_skip_nan(most[k], load_as<S>(x + pitch * (i + k)));
    }
    for (; i < full; ++i) most[0] = max_skip_nan(most[0], load_as<S>(x + pitch * i));
    if (n % V) most[1] = max_skip_nan(most[1], load_as<S>(x + pitch * i, Part{static_cast<int>(n % V)}, -infinity<T>));
    for (int step = 4; step; step /= 2) {
#pragma GCC unroll 4
      for (int k = 0; k < step; ++k) most[k] = max_skip_nan(most[k], most[k + step]);
    }
    return all(reduce_max(most[0]));
  }

  // f(i, Full or Part) for every vector.
  template <class F> NX_INLINE void each(F&& f) const {
    std::int64_t i = 0;
    for (; i + group <= n / V; i += group) f(i, Full<group>{});
    for (; i < n / V; ++i) f(i, Full<1>{});
    if (n % V) f(i, Part{static_cast<int>(n % V)});
  }

  // The canonical sum of term(i, Full or Part) over the vectors.
  template <class F> NX_INLINE void sum(F&& term, Total<T>* per_row) const {
    Total<T> total{};
    for (std::int64_t first = 0; first < n; first += chunk_size<T>) {
      const std::int64_t end = n - first < chunk_size<T> ? n : first + chunk_size<T>;
      Lanes<T> lanes{};
      std::int64_t i = first / V;
      for (; i + 8 <= end / V; i += 8) {
        Vec<T, group> e[8 / group];
#pragma GCC unroll 8
        for (int k = 0; k < 8 / group; ++k) e[k] = term(i + group * k, Full<group>{});
        lanes.add([&](int k) { return line(e[k / group], k % group); });
      }
      if (i * V < end) {
        Vec<T> e[8];
        for (Vec<T>& zero : e) zero = all(T(0));
        int k = 0;
        for (; i + group <= end / V; i += group) {
          const Vec<T, group> some = term(i, Full<group>{});
          for (int j = 0; j < group; ++j) e[k++] = line(some, j);
        }
        for (; i < end / V; ++i) e[k++] = term(i, Full<1>{});
        if (end % V) e[k] = term(i, Part{static_cast<int>(end % V)});
        lanes.add([&](int j) { return e[j]; });
      }
      total = first ? total + across(lanes) : across(lanes);
    }
    per_row[0] = total;
  }
};

// n elements of each of V rows, in scratch. Vector i holds element i of all of them.
template <class T> struct Strip {
  static constexpr int rows = Vec<T>::lanes;
  static constexpr std::int64_t pitch = 64;
  static constexpr int V = Vec<T>::lanes;
  std::int64_t n;
  Vec<T> most;  // the rows' maxima, found while they were packed

  NX_INLINE static Vec<T> spread(const T* per_row) { return load<T>(reinterpret_cast<const char*>(per_row)); }
  NX_INLINE static void gather(Vec<T> v, T* per_row) { store(reinterpret_cast<char*>(per_row), v); }
  template <class Where> NX_INLINE static void prefetch(const char*, Where) {}
  template <class Where> NX_INLINE static auto read(const char* x, std::int64_t i, Where where, T fill) { return load(x + pitch * i, where, fill); }

  template <class F> NX_INLINE void map(const char* x, char* y, F&& f) const {
    std::int64_t i = 0;
    for (; i + group <= n; i += group) store(y + pitch * i, f(load(x + pitch * i, Full<group>{}, T(0))));
    for (; i < n; ++i) store(y + pitch * i, f(load<T>(x + pitch * i)));
  }

  Vec<T> max(const char*) const { return most; }

  template <class F> NX_INLINE void each(F&& f) const {
    std::int64_t i = 0;
    for (; i + group <= n; i += group) f(i, Full<group>{});
    for (; i < n; ++i) f(i, Full<1>{});
  }

  template <class F> NX_INLINE void sum(F&& term, Total<T>* per_row) const {
    for (int r = 0; r < rows; ++r) per_row[r] = {};
    for (std::int64_t first = 0; first < n; first += chunk_size<T>) {
      const std::int64_t end = n - first < chunk_size<T> ? n : first + chunk_size<T>;
      Lanes<T> lane[V] = {};
      std::int64_t block = first;
      for (; block + 8 * V <= end; block += 8 * V) {
        for (int l = 0; l < V; ++l) {
          Vec<T, group> e[8 / group];
#pragma GCC unroll 8
          for (int k = 0; k < 8 / group; ++k) e[k] = term(block + V * group * k + l, Apart<group, V>{});
          lane[l].add([&](int k) { return line(e[k / group], k % group); });
        }
      }
      for (int l = 0; l < V && block + l < end; ++l) {
        Vec<T, group> e[8 / group];
#pragma GCC unroll 8
        for (int k = 0; k < 8 / group; ++k) {
          const std::int64_t i = block + V * group * k + l;
          if (i + V * (group - 1) < end) {
            e[k] = term(i, Apart<group, V>{});
          } else {
            for (int j = 0; j < group; ++j) set_line(e[k], j, i + V * j < end ? term(i + V * j, Full<1>{}) : all(T(0)));
          }
        }
        lane[l].add([&](int k) { return line(e[k / group], k % group); });
      }
      Total<T> chunk[rows];
      apart(tree(lane, V), chunk);
      for (int r = 0; r < rows; ++r) per_row[r] = first ? per_row[r] + chunk[r] : chunk[r];
    }
  }
};
