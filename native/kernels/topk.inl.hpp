// The k largest weights of a softmax, from one read of the row: while a chunk of it is in cache, its largest scores are found
// and its exponentials summed. The sum and the pointwise map are softmax's own, so the weights have its bits.
//
// Expected: little more than logsumexp, which reads a row in the same way. Measured on one thread of a busy 2-core Zen 5, whole
// calls on floats, medians of 15 interleaved runs in ms, beside torch.softmax followed by torch.topk:
//
//   rows          k   here   logsumexp   torch
//   256 × 50257   8    3.0         2.4    59.1
//   256 × 50257  64   10.6         2.4    70.4
//   16 × 128256   8   0.57        0.45    2.65
//   256 × 4096    8   0.55        0.22    1.59
//   4096 × 128    4    2.0        0.16     8.5
//   64 × 1024     8  0.078       0.017   0.107

// The k largest scores seen so far: largest first, equal ones in the order in which they came.
template <class T> struct Best {
  const std::int64_t k;
  std::int64_t count = 0;
  T score[most_k];
  std::int64_t index[most_k];

  explicit Best(std::int64_t k) : k(k) {}
  NX_INLINE bool admits(T x) const { return count < k || x > score[k - 1]; }
  void insert(T x, std::int64_t at) {
    std::int64_t i = count < k ? count++ : k - 1;
    for (; i && score[i - 1] < x; --i) {
      score[i] = score[i - 1];
      index[i] = index[i - 1];
    }
    score[i] = x;
    index[i] = at;
  }
  // What no score of the k can be below.
  NX_INLINE T least() const { return count < k ? -infinity<T> : score[k - 1]; }
};

template <class S> struct softmax_topk {
  using T = Compute<S>;
  using Layout = std::conditional_t<sizeof(S) == sizeof(T), Direct<S>, Packed<S, Row>>;
  using State = MaxSum<T>;
  static constexpr int V = Vec<T>::lanes, lines = 8;

  static void run(const TopKTask& t, std::int64_t first, std::int64_t last, char* scratch) {
    Layout rows(t.rows, first, scratch);
    for (std::int64_t row = first; row < last; ++row) {
      if (row > first) rows.next();
      one(t, rows, row);
    }
  }

 private:
  static void one(const TopKTask& t, Layout& rows, std::int64_t at) {
    Best<T> best(t.k);
    State row = State::neutral();
    each_chunk(t.rows.n, rows, [&](Row<T> g, const char* x, std::int64_t first) {
      State chunk = State::neutral();
      chunk.m = look(g.n, x, first, best);
      sum_exp<false>(g, x, all(chunk.m), Reference<T>{all(T(0)), all(near_exponent(chunk.m))}, &chunk);
      softmax<T>::merge(row, chunk);
    });
    if (row.is_far()) {
      State again = State::neutral();
      each_chunk(t.rows.n, rows, [&](Row<T> g, const char* x, std::int64_t) {
        State chunk = row;
        softmax<T>::lift_again(g, x, &chunk);
        softmax<T>::merge(again, chunk);
      });
      row = again;
    }
    const double kept = static_cast<double>(t.rows.n);
    T weight[most_k];
    softmax<T>::write(Row<T>{t.k}, reinterpret_cast<const char*>(best.score), reinterpret_cast<char*>(weight), &row, t.rows.empty, &kept);
    put(weight, t.rows.y + at * t.k * static_cast<std::int64_t>(sizeof(S)), t.k);
    __builtin_memcpy(t.indices + at * t.k, best.index, static_cast<std::size_t>(t.k) * sizeof(std::int64_t));
  }

  // body(geometry, scores, index of the first) for the chunks of a row. While one is summed, the next one is fetched.
  template <class F> static NX_INLINE void each_chunk(std::int64_t n, Layout& rows, F&& body) {
    for (std::int64_t first = 0; first < n; first += chunk_size<T>) {
      const std::int64_t count = n - first < chunk_size<T> ? n - first : chunk_size<T>;
      rows.open(first, count);
      body(rows.geometry(0, count, chunk_size<T> * std::int64_t{sizeof(T)}), rows.in(0), first);
    }
  }

  // Line i of n elements, or what there is of it. NaN stands as −inf.
  static NX_INLINE Vec<T> line_of(const char* x, std::int64_t i, std::int64_t n) {
    const Vec<T> least = all(-infinity<T>);
    if (V * (i + 1) <= n) return max_skip_nan(least, load<T>(x + 64 * i));
    return V * i < n ? max_skip_nan(least, load(x + 64 * i, Part{static_cast<int>(n - V * i)}, -infinity<T>)) : least;
  }

  // Takes the best scores of a chunk; returns its maximum. A chunk is seen as blocks of a few lines. The k-th largest of their
  // maxima is not above the k-th largest score, so only blocks that reach it are looked into: about k of the 128, where one
  // pass with the k best so far would stop k·log(n/k) times.
  static NX_NOINLINE T look(std::int64_t n, const char* x, std::int64_t first, Best<T>& best) {
    T most[chunk_size<T> / (lines * V)];
    const std::int64_t whole = n / (lines * V), blocks = (n + lines * V - 1) / (lines * V);
    for (std::int64_t b = 0; b < whole; ++b) {
      const char* const from = x + 64 * lines * b;
      Vec<T> m = all(-infinity<T>), other = m;
#pragma GCC unroll 4
      for (int l = 0; l < lines; l += 2) {
        m = max_skip_nan(m, load<T>(from + 64 * l));
        other = max_skip_nan(other, load<T>(from + 64 * (l + 1)));
      }
      most[b] = reduce_max(max_skip_nan(m, other));
    }
    if (whole < blocks) {
      Vec<T> m = all(-infinity<T>);
      for (int l = 0; l < lines; ++l) m = max_skip_nan(m, line_of(x, lines * whole + l, n));
      most[whole] = reduce_max(m);
    }

    T maximum = -infinity<T>;
    Best<T> maxima(best.k);
    for (std::int64_t b = 0; b < blocks; ++b) {
      maximum = most[b] > maximum ? most[b] : maximum;
      if (best.admits(most[b]) && maxima.admits(most[b])) maxima.insert(most[b], b);
    }
    const T least = maxima.least();
    for (std::int64_t b = 0; b < blocks; ++b) {
      if (most[b] >= least && best.admits(most[b])) look_into(n, x, lines * b, first, least, best);
    }
    return maximum;
  }

  static NX_NOINLINE void look_into(std::int64_t n, const char* x, std::int64_t begin, std::int64_t first, T least, Best<T>& best) {
    for (std::int64_t i = begin; i < begin + lines && V * i < n; ++i) {
      const Vec<T> v = line_of(x, i, n);
      const T most = reduce_max(v);
      if (most < least || !best.admits(most)) continue;
      T score[V];
      store(reinterpret_cast<char*>(score), v);
      const std::int64_t count = n - V * i < V ? n - V * i : V;
      for (std::int64_t k = 0; k < count; ++k) {
        if (score[k] >= least && best.admits(score[k])) best.insert(score[k], first + V * i + k);
      }
    }
  }

  static NX_INLINE void put(const T* weight, char* to, std::int64_t k) {
    const char* const from = reinterpret_cast<const char*>(weight);
    std::int64_t i = 0;
    for (; i + V <= k; i += V) store_as<S>(to + i * sizeof(S), load<T>(from + i * sizeof(T)));
    if (i < k) {
      const Part part{static_cast<int>(k - i)};
      store_as<S>(to + i * sizeof(S), load(from + i * sizeof(T), part, T(0)), part);
    }
  }
};
