// Gradients from the result: of y = softmax(x), dx = y·(dy − Σ y·dy); of y = log softmax(x), dx = dy − e(y)·Σ dy. Next to the
// row programs, which start from x: two reads and one write, and for weights no exponential. What is left out of a row, and what
// has no mass, is told by y as well, so no mask is read. And one that starts from x and needs no sum, of y = sigmoid(x).
//
// Expected: what reading y and dy and writing dx takes. Measured: see dispatch/vjp.cpp.

template <class T, bool negated> struct weights_vjp {
  using Type = T;
  static constexpr T nothing = 0;

  template <class V> static NX_INLINE V term(V y, V dy) { return y * dy; }
  template <class V> static NX_INLINE V gradient(V y, V dy, Vec<T> sum, Vec<T> low) {
    const V d = (dy - sum) - low;
    return y * (negated ? all(T(0)) - d : d);
  }
};

template <class T> struct logarithms_vjp {
  using Type = T;
  static constexpr T nothing = -infinity<T>;

  template <class V> static NX_INLINE V term(V, V dy) { return dy; }
  template <class V> static NX_INLINE V gradient(V y, V dy, Vec<T> sum, Vec<T> low) {
    const V p = exp_at(y, Reference<T>{all(T(0)), all(T(0))});
    return fma(all(T(0)) - p, sum, dy) - p * low;
  }
};

// dx = dy·n·e/den², from the scores: what is left of 1 − y has few digits where y is nearly 1.
template <class T> struct pointwise_vjp {
  using Type = T;

  // As in sigmoid: the row is taken to be finite, and done again if it is not.
  static void row(Row<T> row, const char* x, const char* dy, char* dx) {
    const Vec<T> zero = all(T(0)), one = all(T(1));
    Vec<T> odd = zero;
    const auto write = [&](Vec<T> present) NX_INLINED {
      row.write(dx, [&](std::int64_t at, auto where) NX_INLINED {
        row.prefetch(x + at, where);
        row.prefetch(dy + at, where);
        const auto v = load(x + at, where, T(0));
        odd = odder(odd, v);
        const auto o = odds(v, present);
        const auto inverse = one / o.den;
        return load(dy + at, where, T(0)) * ((present * inverse) * (o.e * inverse));
      });
    };
    write(all(static_cast<T>(row.n)));
    if (all_were_finite(odd)) return;
    Total<T> n;
    count_present<false>(row, x, &n);
    write(spread_present<Row<T>>(&n));
  }
};

template <class F> struct vjp {
  using T = typename F::Type;

  static void run(const VjpTask& t, std::int64_t first, std::int64_t last) {
    const std::int64_t row = t.n * static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = first; i < last; ++i) one(t.x + i * row, t.y + i * row, t.dy + i * row, t.dx + i * row, Row<T>{t.n, fetch_ahead, t.streams});
  }

 private:
  // Whether scores of +inf share the row: nothing moves it then. They are all that has a weight.
  static bool is_at_limit(const char* x, const char* y, std::int64_t n) {
    T weight, score;
    for (std::int64_t i = 0; i < n; ++i) {
      __builtin_memcpy(&weight, y + i * sizeof(T), sizeof(T));
      if (weight == F::nothing) continue;
      __builtin_memcpy(&score, x + i * sizeof(T), sizeof(T));
      return weight == weight && __builtin_fabs(score) == infinity<T>;
    }
    return false;
  }

  static NX_NOINLINE void one(const char* x, const char* y, const char* dy, char* dx, Row<T> row) {
    if constexpr (requires { F::row(row, x, dy, dx); }) {
      F::row(row, x, dy, dx);
    } else {
      of_result(x, y, dy, dx, row);
    }
  }

  static void of_result(const char* x, const char* y, const char* dy, char* dx, Row<T> row) {
    if (is_at_limit(x, y, row.n)) {
      __builtin_memset(dx, 0, static_cast<std::size_t>(row.n) * sizeof(T));
      return;
    }
    const Vec<T> zero = all(T(0)), nothing = all(F::nothing);
    Total<T> total;
    row.sum(
        [&](std::int64_t i, auto where) NX_INLINED {
          const auto weight = load(y + 64 * i, where, F::nothing);
          const auto cotangent = load(dy + 64 * i, where, T(0));
          for (int k = 0; k < lines_of(weight); ++k) {
            fetch(y + 64 * (i + k));
            fetch(dy + 64 * (i + k));
          }
          return select_eq(weight, nothing, zero, F::term(weight, cotangent));
        },
        &total);
    const T high = static_cast<T>(total.value());
    const Vec<T> sum = all(high), low = all(rest(total, high));
    row.write(dx, [&](std::int64_t at, auto where) NX_INLINED {
      const auto weight = load(y + at, where, F::nothing);
      return select_eq(weight, nothing, zero, F::gradient(weight, load(dy + at, where, T(0)), sum, low));
    });
  }

  // What of the sum the first word does not hold.
  static float rest(Total<float> total, float high) { return is_finite(high) ? static_cast<float>(total.sum - high) : 0; }
  static double rest(Total<double> total, double high) { return is_finite(high) ? (total.sum - high) + total.low : 0; }
};
