// Where the rows of a task lie, and how a chunk of them becomes contiguous vectors in the compute type.
//
//   Direct<S>          a row as it lies: nothing is moved
//   Packed<S, Row>     a row of any layout, mask or storage type, gathered into scratch
//   Packed<S, Strip>   a panel of neighbouring rows, strip after strip in scratch: vector i of a strip is element i of its
//                      rows. Read and written a panel's width at a time, so never transposed, and free of the cache
//                      conflicts that rows a power of two apart would have with each other.
// Left-out entries are −inf in scratch, whatever they were, and become `nothing` on the way out.

struct Place {
  std::int64_t x, y, where;
};

// A position in an odometer of axes, the last one running fastest.
struct Cursor {
  const Axis* axes;
  int count;
  Place at{0, 0, 0};
  std::int64_t index[max_axes];

  Cursor(const Axis* axes, int count, std::int64_t linear) : axes(axes), count(count) {
    for (int a = count - 1; a >= 0; --a) {
      index[a] = linear % axes[a].size;
      linear /= axes[a].size;
      move(axes[a], index[a]);
    }
  }
  // Elements up to the end of the last axis.
  std::int64_t left() const { return axes[count - 1].size - index[count - 1]; }
  // steps ≤ left()
  void advance(std::int64_t steps) {
    for (int a = count - 1; a >= 0; --a, steps = 1) {
      index[a] += steps;
      move(axes[a], steps);
      if (index[a] < axes[a].size) return;
      move(axes[a], -index[a]);
      index[a] = 0;
    }
  }

 private:
  void move(const Axis& axis, std::int64_t steps) {
    at.x += axis.x * steps;
    at.y += axis.y * steps;
    at.where += axis.where * steps;
  }
};

// Elements in memory: `element` bytes from one to the next in a line, `line` bytes from one line to the next.
struct Grid {
  const char* at;
  std::int64_t element, line;
};

// Lines of a panel to fetch ahead of the one that is packed: no hardware prefetcher follows strides of a matrix's width. Into L1 at
// once: by way of L2, as in fetch(), logsumexp along axis 0 of (4096, 4096) took 15.1 ns a line instead of 12.1.
constexpr std::int64_t lines_ahead = 16;

// 1 for every kept entry, 0 for the others and for the lanes from `count` on.
template <class T> NX_INLINE Vec<T> load_mask(const char* where, std::int64_t stride, int count) {
  T kept[Vec<T>::lanes] = {};
  for (int i = 0; i < count; ++i) kept[i] = where[i * stride] != 0;
  return load<T>(reinterpret_cast<const char*>(kept));
}

// `lines` lines of n elements, in memory by their strides, to vectors `step` bytes apart, the lines 64 bytes apart, times a sign.
// `most`, if there is one, becomes the maximum of each vector's lanes over the lines. What lies `ahead` bytes from x is fetched.
template <class S>
NX_NOINLINE void pack(char* to, std::int64_t step, Grid x, std::int64_t ahead, Grid where, Vec<Compute<S>> sign, std::int64_t lines, std::int64_t n,
                      Vec<Compute<S>>* most) {
  using T = Compute<S>;
  constexpr int V = Vec<T>::lanes;
  for (std::int64_t l = 0; l < lines; ++l, to += 64, x.at += x.line, where.at += where.line) {
    const char* from = x.at;
    const auto keep = [&](std::int64_t i, Vec<T> v) NX_INLINED {
      store(to + i / V * step, v);
      if (most) most[i / V] = max_skip_nan(most[i / V], v);
    };
    std::int64_t i = 0;
    if (x.element == sizeof(S) && !where.at) {
      for (; i + V <= n; i += V, from += V * sizeof(S)) {
        __builtin_prefetch(from + ahead);
        keep(i, load_as<S>(from) * sign);
      }
      if (i < n) keep(i, load_as<S>(from, Part{static_cast<int>(n - i)}) * sign);
      continue;
    }
    // Expected: the mask's bytes beside the time without one. softmax of (1024, 4096) floats with a mask, in ms: 8.4 entry by entry,
    // 2.0 now, of which 0.7 is that of softmax as the rows lie: they go through scratch.
    for (; x.element == sizeof(S) && where.element == 1 && i + V <= n; i += V, from += V * sizeof(S)) {
      __builtin_prefetch(from + ahead);
      keep(i, select_eq(flags<T>(where.at + i), all(T(0)), all(-infinity<T>), load_as<S>(from) * sign));
    }
    for (; i < n; i += V, from += V * x.element) {
      const int count = n - i < V ? static_cast<int>(n - i) : V;
      char part[64] = {};
      for (int k = 0; k < count; ++k) __builtin_memcpy(part + k * sizeof(S), from + k * x.element, sizeof(S));
      Vec<T> v = load_as<S>(part) * sign;
      if (where.at) v = select_eq(load_mask<T>(where.at + i * where.element, where.element, count), all(T(0)), all(-infinity<T>), v);
      keep(i, v);
    }
  }
}

// The way back. `streams`: y may be written past the caches, if its lines are whole cache lines. `forced` (with a step of its
// own) is added to the mask: rows that are written although nothing is kept.
template <class S>
NX_NOINLINE void unpack(const char* from, std::int64_t step, Grid y, Grid where, const char* forced, std::int64_t forced_step,
                        Compute<S> nothing, std::int64_t lines, std::int64_t n, bool streams) {
  using T = Compute<S>;
  constexpr int V = Vec<T>::lanes;
  const bool whole_lines = streams && sizeof(S) == sizeof(T) && (reinterpret_cast<std::uintptr_t>(y.at) | y.line) % 64 == 0;
  for (std::int64_t l = 0; l < lines; ++l, from += 64, y.at += y.line, where.at += where.line) {
    char* to = const_cast<char*>(y.at);
    std::int64_t i = 0;
    if (y.element == sizeof(S) && !where.at) {
      for (; i + V <= n; i += V, to += V * sizeof(S)) {
        const Vec<T> v = load<T>(from + i / V * step);
        whole_lines ? stream(to, v) : store_as<S>(to, v);
      }
      if (i < n) store_as<S>(to, load<T>(from + i / V * step), Part{static_cast<int>(n - i)});
      continue;
    }
    for (; y.element == sizeof(S) && where.element == 1 && i + V <= n; i += V, to += V * sizeof(S)) {
      const Vec<T> keep = flags<T>(where.at + i) + load<T>(forced + i / V * forced_step);
      store_as<S>(to, select_eq(keep, all(T(0)), all(nothing), load<T>(from + i / V * step)));
    }
    for (; i < n; i += V, to += V * y.element) {
      const int count = n - i < V ? static_cast<int>(n - i) : V;
      Vec<T> v = load<T>(from + i / V * step);
      if (where.at) {
        const Vec<T> keep = load_mask<T>(where.at + i * where.element, where.element, count) + load<T>(forced + i / V * forced_step);
        v = select_eq(keep, all(T(0)), all(nothing), v);
      }
      char part[64];
      store_as<S>(part, v);
      for (int k = 0; k < count; ++k) __builtin_memcpy(to + k * y.element, part + k * sizeof(S), sizeof(S));
    }
  }
  if (whole_lines) stream_fence();
}

template <class S> class Direct {
 public:
  using T = Compute<S>;
  using G = Row<T, S>;
  static constexpr std::int64_t item = sizeof(S);
  static constexpr bool in_place = true;
  static constexpr int max_groups = 1;
  static constexpr std::int64_t longest_piece = chunk_size<T>;

  Direct(const Task& t, std::int64_t unit, char*) : t(t), outer(t.axes, t.outer, unit), kept_(static_cast<double>(t.n)) {}
  void next() { outer.advance(1); }
  void open(std::int64_t first, std::int64_t) { offset = first * item; }
  G geometry(int, std::int64_t n, std::int64_t ahead) const { return {n, ahead, t.streams}; }
  int groups() const { return 1; }
  const char* in(int) const { return t.x + outer.at.x + offset; }
  char* out(int) const { return t.y + outer.at.y + offset; }
  char* room(int) const { return out(0); }
  const double* kept(int) const { return &kept_; }
  void close(T) {}
  void put(int, const T* value) { store_as<S>(t.y + outer.at.y, all(*value), Part{1}); }

 private:
  const Task& t;
  Cursor outer;
  std::int64_t offset = 0;
  double kept_;
};

template <class S, template <class...> class Shape> class Packed {
 public:
  using T = Compute<S>;
  using G = Shape<T>;
  static constexpr std::int64_t item = sizeof(T);
  static constexpr bool in_place = false;
  static constexpr bool strip = G::rows > 1;
  static constexpr int max_groups = strip ? max_panel<T> / G::rows : 1;
  // A row that stays in L2 is packed and exponentiated once, not twice. Expected: half of the time. Measured, rows of bfloat16 in
  // units of rows of float32, which lie as they are: 2.3 (32768) and 2.1 (50257) instead of 4.7; 1.3 to 1.6 for shorter ones.
  static constexpr std::int64_t longest_piece = strip ? chunk_size<T> : resident_bytes / static_cast<std::int64_t>(sizeof(T));

  Packed(const Task& t, std::int64_t unit, char* scratch)
      : t(t), line(strip ? t.axes[t.outer - 1] : t.axes[t.outer + t.reduced - 1]), panels(strip ? panel_count(line.size, t.head, t.panel) : 1),
        panel(unit % panels), outer(t.axes, strip ? t.outer - 1 : t.outer, unit / panels), scratch(scratch) {
    begin();
  }
  void next() {
    if (++panel == panels) {
      panel = 0;
      outer.advance(1);
    }
    begin();
  }
  NX_NOINLINE void open(std::int64_t first, std::int64_t count) {
    chunk_first = first;
    chunk_count = count;
    for (Vec<T>& m : most) m = all(-infinity<T>);
    each_piece([&](char* vectors, Grid x, Grid, Grid where, std::int64_t lines, std::int64_t n) {
      pack<S>(vectors, step(), x, strip ? lines_ahead * x.line : fetch_ahead, where, all(t.negated ? T(-1) : T(1)), lines, n, strip ? most : nullptr);
    });
  }
  G geometry(int group, std::int64_t n, std::int64_t) const {
    if constexpr (strip) {
      return {n, most[group]};
    } else {
      return {n};
    }
  }
  int groups() const { return static_cast<int>((rows + G::rows - 1) / G::rows); }
  char* in(int group) const { return scratch + group * step(); }
  char* room(int group) const { return in(group); }
  char* out(int group) const { return in(group); }
  const double* kept(int group) const { return kept_ + group * G::rows; }
  NX_NOINLINE void close(T nothing) {
    each_piece([&](char* vectors, Grid, Grid y, Grid where, std::int64_t lines, std::int64_t n) {
      unpack<S>(vectors, step(), y, where, reinterpret_cast<const char*>(forced), strip ? 64 : 0, nothing, lines, n, strip && t.streams);
    });
  }
  NX_NOINLINE void put(int group, const T* value) {
    const std::int64_t first = group * G::rows;
    const std::int64_t count = rows - first < G::rows ? rows - first : G::rows;
    T vector[Vec<T>::lanes] = {};
    for (int r = 0; r < G::rows; ++r) vector[r] = value[r];
    unpack<S>(reinterpret_cast<const char*>(vector), 0, {t.y + base.y + first * line.y, line.y, 0}, {}, reinterpret_cast<const char*>(forced), 0, 0, 1, count, false);
  }

 private:
  const Axis& inner() const { return t.axes[t.outer + t.reduced - 1]; }
  // From one strip to the next: an odd number of lines, so that what lies side by side in memory lies in different sets.
  std::int64_t step() const { return strip ? 64 * (chunk_count | 1) : 64; }

  NX_NOINLINE void begin() {
    std::int64_t first = 0;
    rows = 1;
    if (strip) {
      first = panel_first(panel, t.head, t.panel);
      const std::int64_t end = panel_first(panel + 1, t.head, t.panel);
      rows = (end < line.size ? end : line.size) - first;
      base = {outer.at.x + first * line.x, outer.at.y + first * line.y, outer.at.where + first * line.where};
    } else {
      base = outer.at;
    }
    for (double& k : kept_) k = static_cast<double>(t.n);
    if (t.where && t.empty != Empty::zero) count_kept();
  }

  // Only where a policy asks how many entries an empty row keeps. A row that keeps none is written as if it kept them all.
  NX_NOINLINE void count_kept() {
    for (double& k : kept_) k = 0;
    chunk_first = 0;
    chunk_count = t.n;
    each_piece([&](char*, Grid, Grid, Grid where, std::int64_t lines, std::int64_t n) {
      for (std::int64_t l = 0; l < lines; ++l) {
        for (std::int64_t i = 0; i < n; ++i) kept_[strip ? i : 0] += where.at[l * where.line + i * where.element] != 0;
      }
    });
    for (int r = 0; r < max_groups * Vec<T>::lanes; ++r) forced[r] = kept_[strip ? r : 0] == 0;
    for (double& k : kept_) k = k == 0 ? static_cast<double>(t.n) : k;
  }

  // body(vectors, x, y, where, lines, n) for every piece of the chunk in which strides are constant: a stretch of a row's last
  // axis, which is a line of a Row, and as many lines of a Strip.
  template <class F> void each_piece(F&& body) {
    Cursor reduced(t.axes + t.outer, t.reduced, chunk_first);
    for (std::int64_t done = 0; done < chunk_count;) {
      const std::int64_t along = reduced.left() < chunk_count - done ? reduced.left() : chunk_count - done;
      const Place at = reduced.at;
      body(scratch + done * (strip ? 64 : static_cast<std::int64_t>(sizeof(T))), Grid{t.x + base.x + at.x, line.x, inner().x},
           Grid{t.y + base.y + at.y, line.y, inner().y},
           Grid{t.where ? t.where + base.where + at.where : nullptr, line.where, inner().where}, strip ? along : 1, strip ? rows : along);
      reduced.advance(along);
      done += along;
    }
  }

  const Task& t;
  const Axis& line;  // along which the elements of a vector lie
  const std::int64_t panels;
  std::int64_t panel;
  Cursor outer;
  char* const scratch;
  Place base{};
  std::int64_t rows = 0, chunk_first = 0, chunk_count = 0;
  Vec<T> most[max_groups];
  double kept_[max_groups * G::rows];
  T forced[max_groups * Vec<T>::lanes] = {};
};
