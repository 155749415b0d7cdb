// Powers of the scores over their sum, or over the length. Sums are relative to a scale, so that nothing overflows whose quotient
// is a number; where the scale is a power of two, what is relative to it has lost nothing.

// A score where rows with +inf share: those become 1, and the others have no mass.
NX_FN nx_t nx_shared_score(nx_t v, nx_t top) { return top == NX_INF ? (v == NX_INF ? nx_t(1) : -NX_INF) : v; }
// The exponent of the power of two below a size, for use with nx_ldexp; 0 for what has none.
NX_FN nx_int nx_exponent_of(nx_t size) { return size > 0 && size < NX_INF ? nx_int(NX_EXPONENT(size)) : 0; }
NX_FN nx_t nx_largest(NX_THREAD nx_row& r, nx_t top) {
  nx_t most = 0;
  NX_EACH(r) {
    const nx_t v = nx_shared_score(NX_SCORE(r), top);
    if (v != -NX_INF) most = nx_larger::of(NX_ABS(v), most);
  }
  return nx_maximum(r, most);
}
// The sums of the weights times the cotangents, for weights that are terms over their total.
#define NX_MEAN(r, mean, weight)                                          \
  nx_t mean;                                                              \
  {                                                                       \
    nx_words sum_ = nx_word(0);                                           \
    NX_EACH(r) nx_add(r, sum_, NX_KEPT(r, weight) * NX_COTANGENT(r));     \
    mean = nx_total_of(r, sum_).hi;                                       \
  }
NX_FN nx_t nx_inverse(nx_words total) {
  return total.hi == 0 ? nx_t(1) : nx_t(1) / total.hi;
}

// ---------------------------------------------------------------- Taylor

// The polynomial, homogeneous in u = x / divisor and delta = temperature / divisor, by Horner's rule in two words: for negative u
// its terms alternate.
struct nx_polynomial {
  nx_t divisor, delta;
  nx_int order;
};
NX_FN nx_polynomial nx_polynomial_of(NX_THREAD nx_row& r, nx_t top) {
  nx_polynomial p;
  p.order = nx_int(nx_constant(r, 0));
  const nx_t largest = nx_largest(r, top), limit = NX_POW(nx_t(NX_DOUBLE ? 1e300 : 1e37), nx_t(1) / nx_t(p.order));
  const bool far = largest > limit * r.temperature;
  p.divisor = far ? largest : r.temperature;
  p.delta = far ? r.temperature / largest : nx_t(1);
  return p;
}
NX_CALL nx_t nx_taylor(nx_polynomial p, nx_int degree, nx_t v) {
  if (v == -NX_INF) return 0;
  nx_words u = nx_word(0);
  if (p.divisor > 0 && p.divisor < NX_INF) {
    u.hi = v / p.divisor;
    u.lo = NX_FMA(-u.hi, p.divisor, v) / p.divisor;
  }
  nx_words c = nx_word(1);
  for (nx_int k = 2; k <= degree; ++k) c = nx_over(c, nx_word(nx_t(k)));
  nx_words value = c;
  nx_t power = p.delta;
  for (nx_int k = degree; k > 0; --k) {
    c = nx_times(c, nx_word(nx_t(k)));
    value = nx_sum_of(nx_times(value, u), nx_times(c, nx_word(power)));
    power = power * p.delta;
  }
  return value.hi;
}
NX_FN void nx_taylor_softmax_forward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_polynomial p = nx_polynomial_of(r, top);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_taylor(p, p.order, nx_shared_score(NX_SCORE(r), top));
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_t total = nx_total_of(r, sum).hi;
  NX_WRITE(r) NX_PUT(r, NX_KEPT(r, nx_taylor(p, p.order, nx_shared_score(NX_SCORE(r), top))) / total);
}
NX_FN void nx_taylor_softmax_backward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_polynomial p = nx_polynomial_of(r, top);
  nx_words sum = nx_word(0), moment = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_taylor(p, p.order, NX_SCORE(r));
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_t inverse = nx_inverse(nx_total_of(r, sum));
  NX_MEAN(r, mean, nx_taylor(p, p.order, NX_SCORE(r)))
  NX_WRITE(r) {
    // The derivative is the polynomial of one order less.
    const nx_t v = NX_SCORE(r), slope = nx_taylor(p, p.order - 1, v) * p.delta;
    const nx_t gradient = slope * inverse * (NX_COTANGENT(r) - mean * inverse);
    nx_add_moment(r, moment, gradient, v);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
}

// ---------------------------------------------------------------- spherical

struct nx_sphere {
  nx_int exponent;  // of what squares are relative to the square of
  nx_t addend;      // eps, relative to it
  nx_t slope;       // the temperature, relative to it
  bool flat;        // a row of zeros without eps: at its limit for a vanishing one
};
NX_FN nx_sphere nx_sphere_of(NX_THREAD nx_row& r, nx_t top) {
  nx_sphere s;
  const nx_t eps = nx_parameter(r, 0), t = r.temperature;
  const nx_t root = eps == 0 ? nx_t(0) : NX_SQRT(eps) * t, largest = nx_larger::of(root, nx_largest(r, top));
  s.flat = largest == 0 || t == NX_INF;
  s.exponent = s.flat ? 0 : nx_exponent_of(largest);
  s.slope = nx_ldexp(t, -s.exponent);
  s.addend = eps == 0 ? nx_t(0) : eps * s.slope * s.slope;
  return s;
}
NX_FN nx_t nx_square(nx_sphere s, nx_t v) {
  if (v == -NX_INF) return 0;
  const nx_t u = nx_ldexp(v, -s.exponent);
  return s.flat ? nx_t(1) : NX_FMA(u, u, s.addend);
}
NX_FN void nx_spherical_softmax_forward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_sphere s = nx_sphere_of(r, top);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_square(s, nx_shared_score(NX_SCORE(r), top));
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_t total = nx_total_of(r, sum).hi;
  NX_WRITE(r) NX_PUT(r, NX_KEPT(r, nx_square(s, nx_shared_score(NX_SCORE(r), top))) / total);
}
NX_FN void nx_spherical_softmax_backward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_sphere s = nx_sphere_of(r, top);
  nx_words sum = nx_word(0), moment = nx_word(0), of_eps = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_square(s, NX_SCORE(r));
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_t inverse = nx_inverse(nx_total_of(r, sum));
  NX_MEAN(r, mean, nx_square(s, NX_SCORE(r)))
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r);
    const nx_t inner = v == -NX_INF ? nx_t(0) : (NX_COTANGENT(r) - mean * inverse) * inverse * s.slope;
    const nx_t gradient = nx_is_finite(v) ? 2 * nx_ldexp(v, -s.exponent) * inner : nx_t(0);
    nx_add(r, of_eps, inner * s.slope);
    nx_add_moment(r, moment, gradient, v);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
  nx_put_gradient(r, 0, nx_total_of(r, of_eps).hi);
}

// ---------------------------------------------------------------- squared ReLUs over the length

// A number; NaN stays.
NX_FN nx_t nx_rectified(NX_THREAD const nx_row& r, nx_t v) {
  const nx_t z = nx_tempered(r, v);
  return z < 0 ? nx_t(0) : z;
}
NX_FN void nx_relu_forward(NX_THREAD nx_row& r, nx_t divisor) {
  nx_judge(r, nx_top(r));
  NX_WRITE(r) {
    const nx_t u = nx_rectified(r, NX_SCORE(r));
    NX_PUT(r, u * (u / divisor));
  }
}
// The sum of the gradients times the weights, without those that are infinite whatever the divisor is.
NX_FN nx_t nx_relu_backward(NX_THREAD nx_row& r, nx_t divisor) {
  nx_judge(r, nx_top(r));
  nx_words whole = nx_word(0), moment = nx_word(0);
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), g = NX_COTANGENT(r), u = nx_rectified(r, v), gradient = 2 * g * u / divisor;
    if (v != NX_INF) nx_add(r, whole, g * (u * (u / divisor)));
    nx_add_moment(r, moment, gradient, v);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
  return nx_total_of(r, whole).hi;
}
NX_FN void nx_squared_relu_forward(NX_THREAD nx_row& r) { nx_relu_forward(r, nx_length(r, 1) * nx_parameter(r, 0)); }
NX_FN void nx_squared_relu_backward(NX_THREAD nx_row& r) {
  const nx_t length = nx_length(r, 1), scale = nx_parameter(r, 0), whole = nx_relu_backward(r, length * scale);
  nx_put_gradient(r, 0, -whole / scale);
  nx_put_gradient(r, 1, -whole / length);
}
NX_FN void nx_lips_relu_forward(NX_THREAD nx_row& r) { nx_relu_forward(r, 2 * nx_length(r, 0)); }
NX_FN void nx_lips_relu_backward(NX_THREAD nx_row& r) {
  const nx_t length = nx_length(r, 0), whole = nx_relu_backward(r, 2 * length);
  nx_put_gradient(r, 0, -whole / length);
}

// ---------------------------------------------------------------- squared ReLU over its sum

NX_FN nx_t nx_relative_square(nx_t v, nx_int exponent) {
  const nx_t u = v == -NX_INF ? nx_t(0) : nx_ldexp(v, -exponent);
  return u * u;
}
NX_FN void nx_normalized_squared_relu_forward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_int exponent = nx_exponent_of(top);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_relative_square(nx_shared_score(NX_SCORE(r), top), exponent);
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_t total = nx_total_of(r, sum).hi;
  NX_WRITE(r) NX_PUT(r, NX_KEPT(r, nx_relative_square(nx_shared_score(NX_SCORE(r), top), exponent)) / total);
}
NX_FN void nx_normalized_squared_relu_backward(NX_THREAD nx_row& r) {
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  const nx_int exponent = nx_exponent_of(top);
  nx_words sum = nx_word(0), moment = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_relative_square(NX_SCORE(r), exponent);
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_t inverse = nx_inverse(nx_total_of(r, sum)), slope = nx_ldexp(r.temperature, -exponent);
  NX_MEAN(r, mean, nx_relative_square(NX_SCORE(r), exponent))
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r), u = nx_is_finite(v) ? nx_ldexp(v, -exponent) : nx_t(0);
    const nx_t gradient = 2 * u * inverse * (NX_COTANGENT(r) - mean * inverse) * slope;
    nx_add_moment(r, moment, gradient, v);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
}

// ---------------------------------------------------------------- the positive part of exp(x) - 1

// Relative to the exponential of the largest: nothing overflows, and nothing cancels.
NX_FN nx_t nx_expm1_term(NX_THREAD const nx_row& r, nx_t v, nx_t top, nx_words c) {
  if (v == -NX_INF) return 0;
  return nx_exp(nx_relative(r, v, top, c)) * nx_complement(nx_tempered(r, v));
}
NX_FN void nx_expm1_relu_forward(NX_THREAD nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_expm1_term(r, NX_SCORE(r), top, c);
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_words total = nx_total_of(r, sum);
  const nx_t divisor = total.hi == 0 ? nx_t(1) : total.hi;
  NX_WRITE(r) NX_PUT(r, NX_KEPT(r, nx_expm1_term(r, NX_SCORE(r), top, c)) / divisor);
}
NX_FN void nx_expm1_relu_backward(NX_THREAD nx_row& r) {
  const nx_words c = nx_inverse_temperature(r);
  const nx_t top = nx_top(r);
  nx_judge(r, top);
  nx_words sum = nx_word(0), moment = nx_word(0);
  NX_EACH(r) {
    const nx_t term = nx_expm1_term(r, NX_SCORE(r), top, c);
    NX_KEEP(r, term);
    nx_add(r, sum, term);
  }
  const nx_t inverse = nx_inverse(nx_total_of(r, sum));
  NX_MEAN(r, mean, nx_expm1_term(r, NX_SCORE(r), top, c))
  NX_WRITE(r) {
    const nx_t v = NX_SCORE(r);
    const nx_t slope = nx_is_finite(v) ? nx_exp(nx_relative(r, v, top, c)) : nx_t(0);
    const nx_t gradient = slope * inverse * (NX_COTANGENT(r) - mean * inverse);
    nx_add_moment(r, moment, gradient, v);
    NX_PUT(r, nx_chained(r, v, gradient));
  }
  nx_put_dtemperature(r, moment);
}
