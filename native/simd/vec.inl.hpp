// Vec<T>: 64 bytes, on every target. Sixteen floats or eight doubles, in as many registers as the target needs, so that
// kernels know one width, a cache line, and sums have one order everywhere. Included inside the target's namespace, after
// its vec_<isa>.hpp, which brings for reg<float> and reg<double>:
//
//   lanes, all(s), load(p), store(p)    any alignment
//   load_n(p, n, fill), store_n(p, n)   the first n lanes only, n ≤ 0 and n ≥ lanes allowed; nothing else is touched
//   stream(p)                           a store to an aligned place that goes past the caches, where there is such a thing;
//                                       stream_fence() before another thread may read it
//   + - *, fma(a, b, c) = a·b + c       rounded once where has_fma, twice elsewhere
//   rint(x)                             to nearest, ties to even
//   ldexp(p, k) = p·2^k                 for an integer k ≤ 63, however small, rounded once into the subnormals, then 0
//   clamp_low(x, low)                   max, and NaN where x is NaN
//   max_skip_nan(most, x)               max, and `most` where x is NaN
//   reduce_max(x)                       the greatest lane, where no lane is NaN
//   reduce_add(x)                       doubles only: halves are added lane by lane until one lane is left
//   select_eq, select_lt(a, b, yes, no) a NaN chooses `no`
//   lower(x), upper(x)                  float to double, half a register each
//   load_half<H>(p), store_half<H>(p, x)   f16 and bf16 as float, nearest-even

// How much of a vector there is: all of it (costs nothing), or the first n lanes (1 ≤ n < lanes).
struct Full {};
struct Part {
  int n;
};

template <class T> struct Vec {
  static constexpr int lanes = 64 / static_cast<int>(sizeof(T));
  static constexpr int regs = lanes / reg<T>::lanes;
  reg<T> r[regs];
};

template <class T, class F> NX_INLINE Vec<T> build(F&& f) {
  Vec<T> v;
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T>::regs; ++i) v.r[i] = f(i);
  return v;
}

template <class T> NX_INLINE Vec<T> all(T s) {
  return build<T>([&](int) { return reg<T>::all(s); });
}
template <class T> NX_INLINE const char* piece(const char* p, int i) { return p + 64 / Vec<T>::regs * i; }
template <class T> NX_INLINE char* piece(char* p, int i) { return p + 64 / Vec<T>::regs * i; }

template <class T> NX_INLINE Vec<T> load(const char* p, Full = {}, T = 0) {
  return build<T>([&](int i) { return reg<T>::load(piece<T>(p, i)); });
}
template <class T> NX_INLINE Vec<T> load(const char* p, Part part, T fill) {
  return build<T>([&](int i) { return reg<T>::load_n(piece<T>(p, i), part.n - i * reg<T>::lanes, fill); });
}
template <class T> NX_INLINE void store(char* p, Vec<T> v, Full = {}) {
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T>::regs; ++i) v.r[i].store(piece<T>(p, i));
}
template <class T> NX_INLINE void store(char* p, Vec<T> v, Part part) {
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T>::regs; ++i) v.r[i].store_n(piece<T>(p, i), part.n - i * reg<T>::lanes);
}

template <class T> NX_INLINE void stream(char* p, Vec<T> v) {
  NX_UNROLL_REGS
  for (int i = 0; i < Vec<T>::regs; ++i) stream(piece<T>(p, i), v.r[i]);
}

template <class T> NX_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return build<T>([&](int i) { return a.r[i] + b.r[i]; });
}
template <class T> NX_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return build<T>([&](int i) { return a.r[i] - b.r[i]; });
}
template <class T> NX_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return build<T>([&](int i) { return a.r[i] * b.r[i]; });
}
template <class T> NX_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return build<T>([&](int i) { return fma(a.r[i], b.r[i], c.r[i]); });
}
template <class T> NX_INLINE Vec<T> rint(Vec<T> x) {
  return build<T>([&](int i) { return rint(x.r[i]); });
}
template <class T> NX_INLINE Vec<T> ldexp(Vec<T> p, Vec<T> k) {
  return build<T>([&](int i) { return ldexp(p.r[i], k.r[i]); });
}
template <class T> NX_INLINE Vec<T> clamp_low(Vec<T> x, Vec<T> low) {
  return build<T>([&](int i) { return clamp_low(x.r[i], low.r[i]); });
}
template <class T> NX_INLINE Vec<T> max_skip_nan(Vec<T> most, Vec<T> x) {
  return build<T>([&](int i) { return max_skip_nan(most.r[i], x.r[i]); });
}
template <class T> NX_INLINE Vec<T> select_eq(Vec<T> a, Vec<T> b, Vec<T> yes, Vec<T> no) {
  return build<T>([&](int i) { return select_eq(a.r[i], b.r[i], yes.r[i], no.r[i]); });
}
template <class T> NX_INLINE Vec<T> select_lt(Vec<T> a, Vec<T> b, Vec<T> yes, Vec<T> no) {
  return build<T>([&](int i) { return select_lt(a.r[i], b.r[i], yes.r[i], no.r[i]); });
}

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

// Storage types to compute types and back.
template <class S> NX_INLINE Vec<Compute<S>> load_as(const char* p) {
  if constexpr (sizeof(S) == 2) {
    return build<float>([&](int i) { return load_half<S>(p + 32 / Vec<float>::regs * i); });
  } else {
    return load<S>(p);
  }
}
template <class S> NX_INLINE void store_as(char* p, Vec<Compute<S>> v) {
  if constexpr (sizeof(S) == 2) {
  NX_UNROLL_REGS
    for (int i = 0; i < Vec<float>::regs; ++i) store_half<S>(p + 32 / Vec<float>::regs * i, v.r[i]);
  } else {
    store(p, v);
  }
}
