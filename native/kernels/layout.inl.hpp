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

// 1 for every kept entry, 0 for the others and for the lanes from `count` on.
template <class T> NX_INLINE Vec<T> load_mask(const char* where, std::int64_t stride, int count) {
  T kept[Vec<T>::lanes] = {};
  for (int i = 0; i < count; ++i) kept[i] = where[i * stride] != 0;
  return load<T>(reinterpret_cast<const char*>(kept));
}

// n elements, `stride` bytes apart, to vectors `step` bytes apart.
template <class S>
NX_NOINLINE void pack(char* to, std::int64_t step, const char* x, std::int64_t stride, const char* where, std::int64_t where_stride, std::int64_t n) {
  using T = Compute<S>;
  constexpr int V = Vec<T>::lanes;
  for (std::int64_t i = 0; i < n; i += V, to += step, x += V * stride) {
    const int count = n - i < V ? static_cast<int>(n - i) : V;
    Vec<T> v;
    if (count == V && stride == sizeof(S)) {
      v = load_as<S>(x);
    } else {
      char part[64] = {};
      for (int k = 0; k < count; ++k) __builtin_memcpy(part + k * sizeof(S), x + k * stride, sizeof(S));
      v = load_as<S>(part);
    }
    if (where) v = select_eq(load_mask<T>(where + i * where_stride, where_stride, count), all(T(0)), all(-infinity<T>), v);
    store(to, v);
  }
}

// The way back. `forced` (with a step of its own) is added to the mask: rows that are written although nothing is kept.
template <class S>
NX_NOINLINE void unpack(const char* from, std::int64_t step, char* y, std::int64_t stride, const char* where, std::int64_t where_stride,
            const char* forced, std::int64_t forced_step, Compute<S> nothing, std::int64_t n) {
  using T = Compute<S>;
  constexpr int V = Vec<T>::lanes;
  for (std::int64_t i = 0; i < n; i += V, from += step, y += V * stride, forced += forced_step) {
    const int count = n - i < V ? static_cast<int>(n - i) : V;
    Vec<T> v = load<T>(from);
    if (where) {
      const Vec<T> keep = load_mask<T>(where + i * where_stride, where_stride, count) + load<T>(forced);
      v = select_eq(keep, all(T(0)), all(nothing), v);
    }
    if (count == V && stride == sizeof(S)) {
      store_as<S>(y, v);
    } else {
      char part[64];
      store_as<S>(part, v);
      for (int k = 0; k < count; ++k) __builtin_memcpy(y + k * stride, part + k * sizeof(S), sizeof(S));
    }
  }
}

template <class S> class Direct {
 public:
  using T = Compute<S>;
  using G = Row<T>;

  Direct(const Task& t, std::int64_t unit, char*) : t(t), outer(t.axes, t.outer, unit), kept_(static_cast<double>(t.n)) {}
  void next() { outer.advance(1); }
  void open(std::int64_t first, std::int64_t) { offset = first * static_cast<std::int64_t>(sizeof(S)); }
  G geometry(std::int64_t n, std::int64_t ahead) const { return {n, ahead, t.streams}; }
  int groups() const { return 1; }
  const char* in(int) const { return t.x + outer.at.x + offset; }
  char* out(int) const { return t.y + outer.at.y + offset; }
  const double* kept(int) const { return &kept_; }
  void close(T) {}
  void put(int, const T* value) { __builtin_memcpy(t.y + outer.at.y, value, sizeof(T)); }

 private:
  const Task& t;
  Cursor outer;
  std::int64_t offset = 0;
  double kept_;
};

template <class S, template <class> class Shape> class Packed {
 public:
  using T = Compute<S>;
  using G = Shape<T>;

  Packed(const Task& t, std::int64_t unit, char* scratch)
      : t(t), panels(strip ? (t.axes[t.outer - 1].size + t.panel - 1) / t.panel : 1), panel(unit % panels),
        line(strip ? t.axes[t.outer - 1] : t.axes[t.outer + t.reduced - 1]), outer(t.axes, strip ? t.outer - 1 : t.outer, unit / panels),
        scratch(scratch) {
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
    each_line([&](char* vectors, Place at, std::int64_t n) {
      pack<S>(vectors, step(), t.x + base.x + at.x, line.x, mask(at), line.where, n);
    });
  }
  static G geometry(std::int64_t n, std::int64_t) { return {n}; }
  int groups() const { return static_cast<int>((rows + G::rows - 1) / G::rows); }
  char* in(int group) const { return scratch + group * step(); }
  char* out(int group) const { return in(group); }
  const double* kept(int group) const { return kept_ + group * G::rows; }
  NX_NOINLINE void close(T nothing) {
    each_line([&](char* vectors, Place at, std::int64_t n) {
      unpack<S>(vectors, step(), t.y + base.y + at.y, line.y, mask(at), line.where, reinterpret_cast<const char*>(forced),
                strip ? 64 : 0, nothing, n);
    });
  }
  NX_NOINLINE void put(int group, const T* value) {
    const std::int64_t first = group * G::rows;
    const std::int64_t count = rows - first < G::rows ? rows - first : G::rows;
    T vector[Vec<T>::lanes] = {};
    for (int r = 0; r < G::rows; ++r) vector[r] = value[r];
    unpack<S>(reinterpret_cast<const char*>(vector), 0, t.y + base.y + first * line.y, line.y, nullptr, 0, nullptr, 0, 0, count);
  }

 private:
  static constexpr bool strip = G::rows > 1;
  static constexpr int max_rows = strip ? max_panel<T> : 1;

  std::int64_t step() const { return strip ? 64 * chunk_count : 64; }
  const char* mask(Place at) const { return t.where ? t.where + base.where + at.where : nullptr; }

  NX_NOINLINE void begin() {
    const std::int64_t first = strip ? panel * t.panel : 0;
    rows = strip ? (line.size - first < t.panel ? line.size - first : t.panel) : 1;
    base = {outer.at.x + first * (strip ? line.x : 0), outer.at.y + first * (strip ? line.y : 0),
            outer.at.where + first * (strip ? line.where : 0)};
    for (double& k : kept_) k = static_cast<double>(t.n);
    if (t.where && t.empty != Empty::zero) count_kept();
  }

  // Only where a policy asks how many entries an empty row keeps. A row that keeps none is written as if it kept them all.
  NX_NOINLINE void count_kept() {
    for (double& k : kept_) k = 0;
    chunk_first = 0;
    chunk_count = t.n;
    each_line([&](char*, Place at, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i) kept_[strip ? i : 0] += mask(at)[i * line.where] != 0;
    });
    for (int r = 0; r < Vec<T>::lanes * ((max_rows + Vec<T>::lanes - 1) / Vec<T>::lanes); ++r) {
      double& k = kept_[strip ? r : 0];
      forced[r] = k == 0;
    }
    for (double& k : kept_) k = k == 0 ? static_cast<double>(t.n) : k;
  }

  // body(vectors, place, n) for every piece of the chunk that is n elements along `line`.
  template <class F> void each_line(F&& body) {
    Cursor reduced(t.axes + t.outer, t.reduced, chunk_first);
    for (std::int64_t done = 0; done < chunk_count;) {
      const std::int64_t along = strip ? 1 : reduced.left() < chunk_count - done ? reduced.left() : chunk_count - done;
      body(scratch + done * (strip ? 64 : static_cast<std::int64_t>(sizeof(T))), reduced.at, strip ? rows : along);
      reduced.advance(along);
      done += along;
    }
  }

  const Task& t;
  const std::int64_t panels;
  std::int64_t panel;
  const Axis& line;
  Cursor outer;
  char* const scratch;
  Place base{};
  std::int64_t rows = 0, chunk_first = 0, chunk_count = 0;
  double kept_[max_rows];
  T forced[max_rows < Vec<T>::lanes ? Vec<T>::lanes : max_rows] = {};
};
