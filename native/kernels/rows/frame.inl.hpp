// Around the programs: from memory to the present entries of a row in double, and back.

constexpr double inf = __builtin_inf();
constexpr std::int64_t padding = 31;  // entries after the last one that a program may look at

// What is seen of scores at one glance.
struct Glance {
  double max = -inf, min = inf;
  bool finite = true;

  void see(double x) {
    max = x > max ? x : max;
    min = x < min ? x : min;
    finite &= x * 0 == 0;
  }
  void see(Glance other) {
    max = other.max > max ? other.max : max;
    min = other.min < min ? other.min : min;
    finite &= other.finite;
  }
};

// n elements of any storage type to doubles. Neighbours in memory, times a sign: `to` has room for whole vectors. While a row is
// computed nothing asks for the next, so its elements are fetched as this row's are read: expected, half of the time of cheap
// programs on rows from memory. (1024, 4096) floats: squared_relu 1.78 -> 1.30 ms, the gradient of sparsemax 7.1 -> 5.1 ms.
template <class S, bool looks> NX_NOINLINE Glance widen_row(const char* from, double* to, std::int64_t n, double sign) {
  using T = Compute<S>;
  constexpr int V = Vec<T>::lanes, size = sizeof(S), ahead = 4;
  const Vec<T> signs = all(static_cast<T>(sign)), zero = all(T(0));
  Vec<T> most[ahead], least[ahead], nothing[ahead];
  for (int k = 0; k < ahead; ++k) {
    most[k] = least[k] = all(-infinity<T>);
    nothing[k] = zero;
  }
  const auto keep = [&](double* place, Vec<T> v) NX_INLINED {
    if constexpr (sizeof(T) == 4) {
      const Wide wide = widen(v);
      store(bytes(place), wide.first);
      store(bytes(place + 8), wide.last);
    } else {
      store(bytes(place), v);
    }
  };
  const auto see = [&](std::int64_t i, int k) NX_INLINED {
    const Vec<T> v = load_as<S>(from + i * size) * signs;
    keep(to + i, v);
    if constexpr (looks) {
      most[k] = max_skip_nan(most[k], v);
      least[k] = max_skip_nan(least[k], zero - v);
      nothing[k] = nothing[k] + v * zero;
    }
  };
  std::int64_t i = 0;
  for (; i + ahead * V <= n; i += ahead * V) {
    for (int k = 0; k < ahead; ++k) {
      fetch(from + (i + k * V) * size);
      see(i + k * V, k);
    }
  }
  for (; i + V <= n; i += V) see(i, 0);
  Glance seen;
  for (int k = 0; looks && k < ahead; ++k) {
    T part[V];
    store(reinterpret_cast<char*>(part), nothing[k]);
    for (const T p : part) seen.finite &= p == 0;
    seen.see({static_cast<double>(reduce_max(most[k])), -static_cast<double>(reduce_max(least[k]))});
  }
  if (i < n) {
    keep(to + i, load_as<S>(from + i * size, Part{static_cast<int>(n - i)}) * signs);
    for (; i < n; ++i) seen.see(to[i]);
  }
  return seen;
}
// The same at any stride.
template <class S> NX_NOINLINE void widen_row(const char* from, std::int64_t stride, double* to, std::int64_t n) {
  using T = Compute<S>;
  constexpr int V = Vec<T>::lanes;
  const auto keep = [&](Vec<T> v, std::int64_t i, std::int64_t count) NX_INLINED {
    T wide[V];
    store(reinterpret_cast<char*>(wide), v);
    for (std::int64_t k = 0; k < count; ++k) to[i + k] = wide[k];
  };
  std::int64_t i = 0;
  if (stride == sizeof(S)) {
    for (; i + V <= n; i += V) keep(load_as<S>(from + i * stride), i, V);
  }
  for (; i < n; i += V) {
    const std::int64_t count = n - i < V ? n - i : V;
    char part[64] = {};
    for (std::int64_t k = 0; k < count; ++k) __builtin_memcpy(part + k * sizeof(S), from + (i + k) * stride, sizeof(S));
    keep(load_as<S>(part), i, count);
  }
}
// And back, times a scale.
template <class S> NX_NOINLINE void narrow_row(const double* from, char* to, std::int64_t stride, std::int64_t n, double scale) {
  using T = Compute<S>;
  if (stride == sizeof(S) && sizeof(S) == sizeof(T)) {
    for (std::int64_t i = 0; i < n; ++i) {
      const T s = static_cast<T>(from[i] * scale);
      __builtin_memcpy(to + i * static_cast<std::int64_t>(sizeof(S)), &s, sizeof s);
    }
    return;
  }
  constexpr int V = Vec<T>::lanes;
  for (std::int64_t i = 0; i < n; i += V) {
    const int count = n - i < V ? static_cast<int>(n - i) : V;
    T part[V] = {};
    for (int k = 0; k < count; ++k) part[k] = static_cast<T>(from[i + k] * scale);
    char stored[64];
    store_as<S>(stored, load<T>(reinterpret_cast<const char*>(part)));
    if (stride == sizeof(S)) {
      __builtin_memcpy(to + i * stride, stored, static_cast<std::size_t>(count) * sizeof(S));
    } else {
      for (int k = 0; k < count; ++k) __builtin_memcpy(to + (i + k) * stride, stored + k * sizeof(S), sizeof(S));
    }
  }
}
template <bool looks> NX_NOINLINE Glance widen_row(Storage s, const char* from, double* to, std::int64_t n, double sign) {
  switch (s) {
    case Storage::f16: return widen_row<f16, looks>(from, to, n, sign);
    case Storage::bf16: return widen_row<bf16, looks>(from, to, n, sign);
    case Storage::f32: return widen_row<f32, looks>(from, to, n, sign);
    default: return widen_row<f64, looks>(from, to, n, sign);
  }
}
NX_NOINLINE void widen_row(Storage s, const char* from, std::int64_t stride, double* to, std::int64_t n) {
  switch (s) {
    case Storage::f16: return widen_row<f16>(from, stride, to, n);
    case Storage::bf16: return widen_row<bf16>(from, stride, to, n);
    case Storage::f32: return widen_row<f32>(from, stride, to, n);
    case Storage::f64: return widen_row<f64>(from, stride, to, n);
  }
}
NX_NOINLINE void narrow_row(Storage s, const double* from, char* to, std::int64_t stride, std::int64_t n, double scale) {
  switch (s) {
    case Storage::f16: return narrow_row<f16>(from, to, stride, n, scale);
    case Storage::bf16: return narrow_row<bf16>(from, to, stride, n, scale);
    case Storage::f32: return narrow_row<f32>(from, to, stride, n, scale);
    case Storage::f64: return narrow_row<f64>(from, to, stride, n, scale);
  }
}

// A position among the rows, or among the lines of a row: an offset for each operand.
struct Places {
  const RowsAxis* axes;
  int count;
  std::int64_t index[max_axes];
  std::int64_t offset[operand::count] = {};

  Places(const RowsAxis* axes, int count, std::int64_t linear) : axes(axes), count(count) {
    for (int a = count - 1; a >= 0; --a) {
      index[a] = linear % axes[a].size;
      linear /= axes[a].size;
      move(axes[a], index[a]);
    }
  }
  void next() {
    for (int a = count - 1; a >= 0; --a) {
      move(axes[a], 1);
      if (++index[a] < axes[a].size) return;
      move(axes[a], -index[a]);
      index[a] = 0;
    }
  }

 private:
  void move(const RowsAxis& axis, std::int64_t steps) {
    for (int o = 0; o < operand::count; ++o) offset[o] += axis.stride[o] * steps;
  }
};

// The entries of one operand of `side` neighbouring rows, to or from their buffers. Neighbours are read and written a line of
// memory at a time, never one after the other: the columns of a matrix are as near to each other as its rows are far.
class Frame {
 public:
  Frame(const RowsTask& t, const Program& program, char* scratch) : t(t), program(program), pitch(rows_pitch(t.n) / 8) {
    scratch += (64 - reinterpret_cast<std::uintptr_t>(scratch) % 64) % 64;
    buffers = reinterpret_cast<double*>(scratch);
    of_sinks = room(3);
    fates = reinterpret_cast<char*>(of_sinks + 2 * t.sinks);
  }

  void run(const Places& outer, int side) {
    for (int o = 0; o < operand::count; ++o) at[o] = t.at[o] ? t.at[o] + outer.offset[o] : nullptr;
    neighbour = t.axes[t.outer - 1].stride;
    for (int k = 0; k < side; ++k) seen[k] = {};
    read(operand::x, side, x(0), program.negated ? -1 : 1, seen);
    if (t.backward && !program.reduces) read(operand::g, side, g(0), 1, nullptr);
    if (t.at[operand::result]) read(operand::result, side, result(0), 1, nullptr);
    bool all_done = true;
    for (int k = 0; k < side; ++k) all_done &= row(k);
    if (program.reduces && !t.backward) return;
    if (all_done) return write(0, side);
    for (int k = 0; k < side; ++k) {  // what is left to the formula may have to be read again
      if (!*place(operand::flag, k)) write(k, 1);
    }
  }

 private:
  double* x(int k) const { return buffers + pitch * k; }
  double* g(int k) const { return buffers + pitch * (t.side + k); }
  double* result(int k) const { return buffers + pitch * (2 * t.side + k); }
  double* room(int i) const { return buffers + pitch * (t.side * t.kept() + i); }
  const char* place(int o, int k) const { return at[o] + neighbour[o] * k; }
  double number(int o, int k) const {
    double value;
    __builtin_memcpy(&value, place(o, k), sizeof value);
    return value;
  }
  void put_number(int o, int k, double value) const {
    if (at[o]) __builtin_memcpy(at[o] + neighbour[o] * k, &value, sizeof value);
  }

  template <class F> void each_line(F&& body) const {
    const RowsAxis& inner = t.axes[t.outer + t.reduced - 1];
    Places line(t.axes + t.outer, t.reduced - 1, 0);
    for (std::int64_t first = 0; first < t.n; first += inner.size, line.next()) body(line.offset, inner, first);
  }
  // With a glance at each row, if `glances` is not null; without one there is no sign.
  void read(int o, int side, double* to, double sign, Glance* glances) const {
    bool left = false;
    each_line([&](const std::int64_t* offset, const RowsAxis& inner, std::int64_t first) {
      const char* from = at[o] + offset[o];
      if (side == 1 && inner.stride[o] == item_size(t.storage[o])) {
        if (!glances) return void(widen_row<false>(t.storage[o], from, to + first, inner.size, sign));
        return glances[0].see(widen_row<true>(t.storage[o], from, to + first, inner.size, sign));
      }
      left = glances;
      if (side == 1) return widen_row(t.storage[o], from, inner.stride[o], to + first, inner.size);
      // A line of each at a time, and then it is dealt out.
      for (std::int64_t i = 0; i < inner.size; ++i, from += inner.stride[o]) {
        double part[most_side];
        widen_row(t.storage[o], from, neighbour[o], part, side);
        double* place = to + first + i;
        for (int k = 0; k < side; ++k, place += pitch) *place = part[k];
      }
    });
    for (int k = 0; k < side && left; ++k) {
      double* const row = to + pitch * k;
      glances[k] = widen_row<f64, true>(bytes(const_cast<const double*>(row)), row, t.n, sign);
    }
  }
  void write(int row, int side) const {
    each_line([&](const std::int64_t* offset, const RowsAxis& inner, std::int64_t first) {
      char* to = const_cast<char*>(place(operand::y, row)) + offset[operand::y];
      const std::int64_t stride = inner.stride[operand::y];
      if (side == 1) return narrow_row(t.storage[operand::y], outcome[row] + first, to, stride, inner.size, scale[row]);
      for (std::int64_t i = 0; i < inner.size; ++i, to += stride) {
        double part[most_side];
        for (int k = 0; k < side; ++k) part[k] = outcome[row + k][first + i] * scale[row + k];
        narrow_row(t.storage[operand::y], part, to, neighbour[operand::y], side, 1);
      }
    });
  }

  // What becomes of an entry: `where` leaves it out; it is present; it is kept, but -inf or without mass.
  enum : char { out = 0, present = 1, massless = 2 };

  // The fates of a row, in eights, the last one filled up with `out`. Most masks are made of runs, and eight entries of one fate
  // go at once; of a mixed eight no branch depends on an entry, which of a random mask would cost forty times as much. Expected: a
  // third of the time, of which one entry after the other took most. (1024, 4096) floats, a padding mask, on AVX-512, in ms: ssmax
  // 8.5 -> 3.3, sparsemax 9.7 -> 4.5; half of them at random 8.6 -> 3.6 and 9.9 -> 5.0; without a mask 2.1 and 3.2.
  using Eight = std::uint64_t;
  static constexpr Eight all_present = 0x0101010101010101;
  std::int64_t padded() const { return (t.n + 7) / 8 * 8; }
  char* fates_of(int k) const { return fates + padded() * k; }
  static Eight eight_at(const char* fate) {
    Eight eight;
    __builtin_memcpy(&eight, fate, sizeof eight);
    return eight;
  }

  // What is present of n entries, moved together; how many that are.
  NX_NOINLINE std::int64_t close_ranks(double* entries, const char* fate) const {
    std::int64_t n = 0;
    for (std::int64_t i = 0; i < t.n; i += 8) {
      const Eight eight = eight_at(fate + i);
      if (eight == all_present) {
        store(bytes(entries + n), load<double>(bytes(entries + i)));
        n += 8;
      } else if (eight & all_present) {
        store(bytes(entries + n), ones_together(load<double>(bytes(entries + i)), fate + i));
        n += __builtin_popcountll(eight & all_present);
      }
    }
    return n;
  }
  // What becomes of a row's entries, and how many of them are not left out. False: NaN or +inf is among those.
  bool judge(const RowView& r, int k, std::int64_t& kept) const {
    char* const fate = fates_of(k);
    __builtin_memset(fate + t.n, out, static_cast<std::size_t>(padded() - t.n));
    __builtin_memset(fate, present, static_cast<std::size_t>(t.n));
    if (at[operand::where]) {
      each_line([&](const std::int64_t* offset, const RowsAxis& inner, std::int64_t first) {
        keep(place(operand::where, k) + offset[operand::where], inner.stride[operand::where], fate + first, inner.size);
      });
    }
    kept = count(fate, t.n);
    if (seen[k].finite && !program.least) return true;
    const double least = program.least ? program.least(r) : -inf;
    // A division for every entry, only where it makes a difference.
    return r.temperature == 1 || !program.least ? leave<false>(x(k), fate, t.n, least, 1) : leave<true>(x(k), fate, t.n, least, r.temperature);
  }
  // (Loops over chars, which may be anything, are vectors only where nothing else is looked at.)
  NX_NOINLINE static void keep(const char* where, std::int64_t stride, char* __restrict fate, std::int64_t n) {
    if (stride == 1) {
      for (std::int64_t i = 0; i < n; ++i) fate[i] = where[i] != 0;
    } else {
      for (std::int64_t i = 0; i < n; ++i) fate[i] = where[i * stride] != 0;
    }
  }
  NX_NOINLINE static std::int64_t count(const char* fate, std::int64_t n) {
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < n; ++i) kept += fate[i];
    return kept;
  }
  template <bool divides> NX_NOINLINE static bool leave(const double* scores, char* __restrict fate, std::int64_t n, double least, double temperature) {
    std::int64_t strange = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double score = scores[i];
      const bool stays = (score > -inf) & !((divides ? score / temperature : score) < least);
      strange += fate[i] & !(score < inf);
      fate[i] = static_cast<char>(fate[i] << !stays);
    }
    static_assert(present << 1 == massless && out << 1 == out);
    return !strange;
  }
  // Moves the entries that are present together, if some are not. False: NaN or +inf is among those that are kept.
  NX_NOINLINE bool sift(RowView& r, int k, bool& whole) const {
    std::int64_t kept;
    if (!judge(r, k, kept)) return false;
    whole = kept == t.n && seen[k].finite && !program.least;
    if (whole) return true;
    const char* const fate = fates_of(k);
    double* const cotangents = t.backward && !program.reduces ? g(k) : nullptr;
    r.left_out = t.n - kept;
    r.n = close_ranks(x(k), fate);
    if (cotangents) {
      for (std::int64_t i = 0; program.fills && i < t.n; ++i) r.left_out_cotangents += fate[i] == out ? cotangents[i] : 0;
      close_ranks(cotangents, fate);
    }
    if (t.at[operand::result]) close_ranks(result(k), fate);
    const Glance those = widen_row<f64, true>(bytes(const_cast<const double*>(x(k))), x(k), r.n, 1);
    r.max = those.max;
    r.min = those.min;
    return true;
  }
  // The way back: entries to where they were, and something in the places of the others.
  NX_NOINLINE void spread(RowView& r, int k) const {
    const char* const fate = fates_of(k);
    const double filler = t.backward ? 0 : r.filler, nothing = program.log_space && !t.backward ? -inf : 0;
    const double* const together = r.y;
    double* const apart = x(k);
    const Vec<double> scale = all(r.scale);
    std::int64_t n = r.n;
    for (std::int64_t i = padded() - 8; i >= 0; i -= 8) {
      const Eight eight = eight_at(fate + i);
      n -= __builtin_popcountll(eight & all_present);
      const Vec<double> those = load<double>(bytes(together + n)) * scale;
      if (eight == all_present) {
        store(bytes(apart + i), those);
      } else {
        const Vec<double> others = select_eq(flags<double>(fate + i), all(0.0), all(filler), all(nothing));
        store(bytes(apart + i), ones_apart(those, fate + i, others));
      }
    }
    r.y = apart;
    r.scale = 1;
  }

  bool row(int k) {
    double p[4] = {}, dp[4] = {};
    RowView r{};
    r.x = x(k);
    r.y = r.x;
    r.room[0] = room(0);
    r.room[1] = room(1);
    r.p = p;
    r.dp = dp;
    for (int i = 0; i < 4; ++i) {
      if (!at[operand::parameter + i]) continue;
      p[i] = number(operand::parameter + i, k);
      r.given |= 1u << i;
    }
    double one;
    if (t.backward) {
      r.g = g(k);
      if (t.at[operand::result]) r.result = result(k);
      if (program.reduces) {
        widen_row(t.storage[operand::g], place(operand::g, k), 0, &one, 1);
        r.g = &one;
      }
    }
    r.n = t.n;
    r.temperature = at[operand::temperature] ? number(operand::temperature, k) : 1;
    r.constants = t.constants;
    r.n_constants = t.n_constants;
    r.filler = program.log_space ? -inf : 0;
    r.scale = 1;
    take_sinks(r, k);
    char* const flag = at[operand::flag] + neighbour[operand::flag] * k;
    *flag = !done(r, k);
    if (*flag) return false;
    if (t.side > 1 && r.y != x(k)) __builtin_memcpy(x(k), r.y, static_cast<std::size_t>(t.n) * sizeof(double));  // rows share their room
    outcome[k] = t.side > 1 ? x(k) : r.y;
    scale[k] = r.scale;
    if (program.reduces && !t.backward) {
      narrow_row(t.storage[operand::y], &r.value, const_cast<char*>(place(operand::y, k)), 0, 1, 1);
    }
    for (int i = 0; i < 4; ++i) put_number(operand::dparameter + i, k, dp[i]);
    put_sinks(r, k);
    return true;
  }

  // The sinks of a row come side by side, and their gradients go so to their array.
  void take_sinks(RowView& r, int k) const {
    r.sinks = t.sinks;
    if (!r.sinks) return;
    r.sink = of_sinks;
    r.dsink = of_sinks + r.sinks;
    const char* from = place(operand::sink, k);
    for (std::int64_t i = 0; i < r.sinks; ++i, from += t.sink_stride) __builtin_memcpy(of_sinks + i, from, sizeof(double));
    for (std::int64_t i = 0; i < r.sinks; ++i) r.dsink[i] = 0;
  }
  void put_sinks(const RowView& r, int k) const {
    if (at[operand::dsink]) {
      __builtin_memcpy(const_cast<char*>(place(operand::dsink, k)), r.dsink, static_cast<std::size_t>(r.sinks) * sizeof(double));
    }
  }

  bool done(RowView& r, int k) {
    if (!(r.temperature > 0 && r.temperature < inf)) return false;
    double* const scores = x(k);
    if (t.softcap != 0) seen[k] = cap(scores);
    bool whole = seen[k].finite && !at[operand::where] && !program.least;
    r.max = seen[k].max;
    r.min = seen[k].min;
    if (!whole && !sift(r, k, whole)) return false;
    if (r.n == 0) {
      if (t.gives_up_empty) return false;
      if (program.fills && r.left_out) return false;
      r.value = -inf;
      spread(r, k);
      return true;
    }
    // The programs square and subtract; at the end of the range the formula knows better.
    const double limit = t.exact ? 1e150 : 1e300;
    if (r.max > limit || r.min < -limit) return false;
    for (std::int64_t i = r.n; i < r.n + padding; ++i) scores[i] = r.max;
    if (t.backward && !program.reduces) {
      for (std::int64_t i = r.n; i < r.n + padding; ++i) g(k)[i] = 0;
    }
    for (std::int64_t i = r.n; r.result && i < r.n + padding; ++i) result(k)[i] = 0;
    if (!(t.backward ? backward(r, k) : program.forward[t.exact](r))) return false;
    if (!whole && (!program.reduces || t.backward)) spread(r, k);
    return true;
  }

  // From the gradient of x over the temperature to that of the scores as they came, and of the temperature.
  bool backward(RowView& r, int k) const {
    double* const scores = x(k);
    double* const gradient = room(0);
    r.room[0] = room(1);
    r.room[1] = room(2);
    r.y = gradient;
    const double t1 = r.temperature, slope = (program.negated ? -1 : 1) / t1;
    if (!__builtin_isfinite(slope) || !program.backward[t.exact](r)) return false;
    const double origin = program.invariant && !r.sinks ? r.max : 0;  // sinks do not shift along
    if (at[operand::dtemperature]) {
      const Real moment = sum<false>(r.n, [&](std::int64_t i, auto where) NX_INLINED {
        return vec_at(gradient, i, where) * (vec_at(scores, i, where) - all(origin));
      });
      put_number(operand::dtemperature, k, static_cast<double>(-moment / t1 / t1));
    }
    for (std::int64_t i = 0; t.softcap != 0 && i < r.n; ++i) {
      const double u = scores[i] / t.softcap;
      gradient[i] *= (1 - u) * (1 + u);
    }
    r.scale = slope;
    return true;
  }

  // cap·tanh(x/cap)
  NX_NOINLINE Glance cap(double* scores) const {
    const double limit = 22 * t.softcap;  // beyond, tanh is 1 to the last place
    for (std::int64_t i = t.n; i < t.n + padding; ++i) scores[i] = 0;
    double* const e = room(0);
    each(t.n, [&](std::int64_t i, auto where) NX_INLINED {
      put(e, i, expm1_of(bounded_by(vec_at(scores, i, where), limit) * all(2 / t.softcap)), where);
    });
    for (std::int64_t i = 0; i < t.n; ++i) {
      const double v = scores[i];
      const double capped = t.softcap * (e[i] / (e[i] + 2));
      scores[i] = v != v ? v : v < -limit ? -t.softcap : v > limit ? t.softcap : capped;
    }
    Glance capped;
    for (std::int64_t i = 0; i < t.n; ++i) capped.see(scores[i]);
    return capped;
  }
  template <int L> static NX_INLINE Vec<double, L> bounded_by(Vec<double, L> x, double limit) {
    const Vec<double> high = all(limit), low = all(-limit);
    return select_lt(x, high, select_lt(low, x, x, low), high);
  }

  const RowsTask& t;
  const Program& program;
  const std::int64_t pitch;  // in doubles
  Glance seen[most_side];
  const double* outcome[most_side];  // times its scale
  double scale[most_side];
  double* buffers;
  double* of_sinks;
  char* fates;
  char* at[operand::count];
  const std::int64_t* neighbour;
};

void run_rows(const RowsTask& t, const Program& program, std::int64_t first, std::int64_t last, char* scratch) {
  const std::int64_t along = t.axes[t.outer - 1].size, groups = (along + t.side - 1) / t.side;
  Frame frame(t, program, scratch);
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t start = unit % groups * t.side;
    const Places outer(t.axes, t.outer, unit / groups * along + start);
    frame.run(outer, static_cast<int>(along - start < t.side ? along - start : t.side));
  }
}
