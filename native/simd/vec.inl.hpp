// Vec<T>: 64 bytes, on every target, a line: sixteen floats or eight doubles, in as many registers as the target needs, so that
// kernels know one width, a cache line, and sums have one order everywhere. Included inside the target's namespace, after
// its vec_<isa>.hpp, which brings for reg<float> and reg<double>:
//
//   lanes, all(s), load(p), store(p)    any alignment
//   load_n(p, n, fill), store_n(p, n)   the first n lanes only, n ≤ 0 and n ≥ lanes allowed; nothing else is touched
//   stream(p)                           a store to an aligned place that goes past the caches, where there is such a thing;
//                                       stream_fence() before another thread may read it
//   + - * /, fma(a, b, c) = a·b + c     rounded once where has_fma, twice elsewhere
//   rint(x)                             to nearest, ties to even
//   ldexp(p, k) = p·2^k                 for an integer k ≤ 63, however small, rounded once into the subnormals, then 0
//   clamp_low(x, low)                   max, and NaN where x is NaN
//   max_skip_nan(most, x)               max, and `most` where x is NaN
//   reduce_max(x)                       the greatest lane, where no lane is NaN
//   reduce_add(x)                       doubles only: halves are added lane by lane until one lane is left
//   select_eq, select_lt(a, b, yes, no) a NaN chooses `no`
//   lower(x), upper(x)                  float to double, half a register each
//   load_half<H>(p), store_half<H>(p, x)   f16 and bf16 as float, nearest-even
//   flags(p)                            1 for each byte that is not 0, as many bytes as lanes
//   ones_together(x, bytes)             doubles only: the lanes whose byte is 1, in the first ones; what is in the others is open
//   ones_apart(x, bytes, others)        the way back: the first lanes in the places of ones, `others` elsewhere. The two where a
//                                       target has instructions for them

// How much there is of a vector: `lines` whole cache lines of it, or the first n lanes of one (1 ≤ n < lanes).
template <int lines = 1> struct Full {};
template <int lines, int step> struct Apart {};  // lines that lie step lines from one to the next
struct Part {
  int n;
};

// Several lines are computed in step: the latencies of one hide behind the others. `group` lines are as many as a target has
// registers for. (Zen 5: the sum of exponentials takes 1.66 ns a line one after another, 1.42 in groups of four. The window
// of the out-of-order core alone does not reach far enough.) Where a word takes vectors of different numbers of lines, the
// single line stands for all.
template <class T, int lines = 1> struct Vec {
  static constexpr int lanes = 64 / static_cast<int>(sizeof(T));  // of one line
  static constexpr int regs = lines * lanes / reg<T>::lanes;
  reg<T> r[regs];

  NX_INLINE reg<T> part(int i) const { return r[i % regs]; }
};

template <class T, int lines = 1, class F> NX_INLINE Vec<T, lines> build(F&& f) {
  Vec<T, lines> v;
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T, lines>::regs; ++i) v.r[i] = f(i);
  return v;
}
constexpr int most_lines(int a, int b) { return a > b ? a : b; }

template <class T> NX_INLINE Vec<T> all(T s) {
  return build<T>([&](int) { return reg<T>::all(s); });
}
template <class T, int lines> NX_INLINE Vec<T> line(Vec<T, lines> x, int which) {
  return build<T>([&](int i) { return x.r[which * Vec<T>::regs + i]; });
}
template <class T, int lines> NX_INLINE void set_line(Vec<T, lines>& x, int which, Vec<T> value) {
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T>::regs; ++i) x.r[which * Vec<T>::regs + i] = value.r[i];
}
template <class T, int lines> constexpr int lines_of(const Vec<T, lines>&) { return lines; }
template <class T> NX_INLINE const char* piece(const char* p, int i) { return p + 64 / Vec<T>::regs * i; }
template <class T> NX_INLINE char* piece(char* p, int i) { return p + 64 / Vec<T>::regs * i; }

template <class T, int lines> NX_INLINE Vec<T, lines> load(const char* p, Full<lines>, T = 0) {
  return build<T, lines>([&](int i) { return reg<T>::load(piece<T>(p, i)); });
}
template <class T, int lines, int step> NX_INLINE Vec<T, lines> load(const char* p, Apart<lines, step>, T = 0) {
  constexpr int regs = Vec<T>::regs;
  return build<T, lines>([&](int i) { return reg<T>::load(piece<T>(p + 64 * step * (i / regs), i % regs)); });
}
template <class T> NX_INLINE Vec<T> load(const char* p) { return load<T>(p, Full<1>{}); }
template <class T> NX_INLINE Vec<T> load(const char* p, Part part, T fill) {
  return build<T>([&](int i) { return reg<T>::load_n(piece<T>(p, i), part.n - i * reg<T>::lanes, fill); });
}
template <class T, int lines> NX_INLINE void store(char* p, Vec<T, lines> v) {
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T, lines>::regs; ++i) v.r[i].store(piece<T>(p, i));
}
template <class T, int lines> NX_INLINE void store(char* p, Vec<T, lines> v, Full<lines>) { store(p, v); }
template <class T, int lines, int step> NX_INLINE void store(char* p, Vec<T, lines> v, Apart<lines, step>) {
  constexpr int regs = Vec<T>::regs;
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T, lines>::regs; ++i) v.r[i].store(piece<T>(p + 64 * step * (i / regs), i % regs));
}
template <class T> NX_INLINE void store(char* p, Vec<T> v, Part part) {
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T>::regs; ++i) v.r[i].store_n(piece<T>(p, i), part.n - i * reg<T>::lanes);
}
template <class T, int lines> NX_INLINE void stream(char* p, Vec<T, lines> v) {
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T, lines>::regs; ++i) stream(piece<T>(p, i), v.r[i]);
}

template <class T, int A, int B> NX_INLINE auto operator+(Vec<T, A> a, Vec<T, B> b) {
  return build<T, most_lines(A, B)>([&](int i) { return a.part(i) + b.part(i); });
}
template <class T, int A, int B> NX_INLINE auto operator-(Vec<T, A> a, Vec<T, B> b) {
  return build<T, most_lines(A, B)>([&](int i) { return a.part(i) - b.part(i); });
}
template <class T, int A, int B> NX_INLINE auto operator*(Vec<T, A> a, Vec<T, B> b) {
  return build<T, most_lines(A, B)>([&](int i) { return a.part(i) * b.part(i); });
}
template <class T, int A, int B> NX_INLINE auto operator/(Vec<T, A> a, Vec<T, B> b) {
  return build<T, most_lines(A, B)>([&](int i) { return a.part(i) / b.part(i); });
}
template <class T, int A, int B, int C> NX_INLINE auto fma(Vec<T, A> a, Vec<T, B> b, Vec<T, C> c) {
  return build<T, most_lines(A, most_lines(B, C))>([&](int i) { return fma(a.part(i), b.part(i), c.part(i)); });
}
template <class T, int A> NX_INLINE Vec<T, A> rint(Vec<T, A> x) {
  return build<T, A>([&](int i) { return rint(x.r[i]); });
}
template <class T, int A, int B> NX_INLINE auto ldexp(Vec<T, A> p, Vec<T, B> k) {
  return build<T, most_lines(A, B)>([&](int i) { return ldexp(p.part(i), k.part(i)); });
}
template <class T, int A, int B> NX_INLINE auto clamp_low(Vec<T, A> x, Vec<T, B> low) {
  return build<T, most_lines(A, B)>([&](int i) { return clamp_low(x.part(i), low.part(i)); });
}
template <class T, int A, int B> NX_INLINE auto max_skip_nan(Vec<T, A> most, Vec<T, B> x) {
  return build<T, most_lines(A, B)>([&](int i) { return max_skip_nan(most.part(i), x.part(i)); });
}
template <class T, int A, int B, int C, int D> NX_INLINE auto select_eq(Vec<T, A> a, Vec<T, B> b, Vec<T, C> yes, Vec<T, D> no) {
  return build<T, most_lines(most_lines(A, B), most_lines(C, D))>([&](int i) { return select_eq(a.part(i), b.part(i), yes.part(i), no.part(i)); });
}
template <class T, int A, int B, int C, int D> NX_INLINE auto select_lt(Vec<T, A> a, Vec<T, B> b, Vec<T, C> yes, Vec<T, D> no) {
  return build<T, most_lines(most_lines(A, B), most_lines(C, D))>([&](int i) { return select_lt(a.part(i), b.part(i), yes.part(i), no.part(i)); });
}

template <class T> NX_INLINE Vec<T> flags(const char* p) {
  return build<T>([&](int i) { return reg<T>::flags(p + i * reg<T>::lanes); });
}

// From here on single lines.
template <class T> NX_INLINE T reduce_max(Vec<T> x) {
  reg<T> most = x.r[0];
  NX_UNROLL_REGS
  for (int i = 1; i < Vec<T>::regs; ++i) most = max_skip_nan(most, x.r[i]);
  return reduce_max(most);
}

NX_INLINE double reduce_add(Vec<double> x) {
  for (int step = Vec<double>::regs / 2; step; step /= 2) {
    NX_UNROLL_REGS
    for (int i = 0; i < step; ++i) x.r[i] = x.r[i] + x.r[i + step];
  }
  return reduce_add(x.r[0]);
}

template <class T> NX_INLINE Vec<T> ones_together(Vec<T> x, const char* bytes) {
  if constexpr (requires { ones_together(x.r[0], bytes); }) {
    return {{ones_together(x.r[0], bytes)}};
  } else {
    constexpr int lanes = Vec<T>::lanes;
    T lane[lanes], together[lanes] = {};
    store(reinterpret_cast<char*>(lane), x);
    for (int i = 0, n = 0; i < lanes; ++i) {
      together[n] = lane[i];
      n += bytes[i] == 1;
    }
    return load<T>(reinterpret_cast<const char*>(together));
  }
}
template <class T> NX_INLINE Vec<T> ones_apart(Vec<T> x, const char* bytes, Vec<T> others) {
  if constexpr (requires { ones_apart(x.r[0], bytes, others.r[0]); }) {
    return {{ones_apart(x.r[0], bytes, others.r[0])}};
  } else {
    constexpr int lanes = Vec<T>::lanes;
    T lane[lanes], apart[lanes];
    store(reinterpret_cast<char*>(lane), x);
    store(reinterpret_cast<char*>(apart), others);
    for (int i = 0, n = 0; i < lanes; ++i) {
      const T choice[2] = {apart[i], lane[n]};
      apart[i] = choice[bytes[i] == 1];
      n += bytes[i] == 1;
    }
    return load<T>(reinterpret_cast<const char*>(apart));
  }
}

// Sixteen floats as doubles: the first eight, the last eight.
struct Wide {
  Vec<double> first, last;
};
template <int half, class F> NX_INLINE Vec<double> widen_half(Vec<F> x) {
  constexpr int regs = Vec<F>::regs, from = half * regs / 2;
  if constexpr (reg<F>::lanes == 1) {
    return build<double>([&](int i) { return reg<double>::all(x.r[from + i].v); });
  } else if constexpr (regs == 1) {
    return build<double>([&](int) { return half ? upper(x.r[0]) : lower(x.r[0]); });
  } else {
    return build<double>([&](int i) { return i % 2 ? upper(x.r[from + i / 2]) : lower(x.r[from + i / 2]); });
  }
}
NX_INLINE Wide widen(Vec<float> x) { return {widen_half<0>(x), widen_half<1>(x)}; }

// Storage types to compute types and back. A line of the compute type takes this many bytes of storage:
template <class S> constexpr int line_bytes = Vec<Compute<S>>::lanes * static_cast<int>(sizeof(S));

template <class S, int lines> NX_INLINE Vec<Compute<S>, lines> load_as(const char* p, Full<lines> where, Compute<S> = 0) {
  if constexpr (sizeof(S) == 2) {
    return build<float, lines>([&](int i) { return load_half<S>(p + line_bytes<S> / Vec<float>::regs * i); });
  } else {
    return load<S>(p, where);
  }
}
template <class S> NX_INLINE Vec<Compute<S>> load_as(const char* p) { return load_as<S>(p, Full<1>{}); }
template <class S, int lines> NX_INLINE void store_as(char* p, Vec<Compute<S>, lines> v) {
  if constexpr (sizeof(S) == 2) {
    NX_UNROLL_REGS
    for (int i = 0; i < Vec<float, lines>::regs; ++i) store_half<S>(p + line_bytes<S> / Vec<float>::regs * i, v.r[i]);
  } else {
    store(p, v);
  }
}

// The first lanes of them.
template <class S> NX_INLINE Vec<Compute<S>> load_as(const char* p, Part part, Compute<S> fill = 0) {
  if constexpr (sizeof(S) == 2) {
    char halves[line_bytes<S>] = {};
    __builtin_memcpy(halves, p, static_cast<std::size_t>(part.n) * sizeof(S));
    char floats[64];
    store(floats, load_as<S>(halves));
    return load(floats, part, fill);
  } else {
    return load(p, part, fill);
  }
}
template <class S> NX_INLINE void store_as(char* p, Vec<Compute<S>> v, Part part) {
  if constexpr (sizeof(S) == 2) {
    char lanes[64];
    store_as<S>(lanes, v);
    __builtin_memcpy(p, lanes, static_cast<std::size_t>(part.n) * sizeof(S));
  } else {
    store(p, v, part);
  }
}
