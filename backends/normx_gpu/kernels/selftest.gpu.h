// Every word once, on any flavour: result i of a row is 1 where check i holds, in each lane that owns it. Scores are i mod 7, and
// there are at least NX_CHECKS of them.
#define NX_CHECKS 26

NX_FN bool nx_near(nx_t a, nx_t b) { return NX_ABS(a - b) <= NX_ABS(b) * nx_t(NX_DOUBLE ? 4e-16 : 2.4e-7); }
NX_FN bool nx_checked(nx_int check, nx_t sum, nx_t top, nx_t count, bool some, bool none) {
  const nx_words third = nx_over(nx_word(1), nx_word(3));
  const nx_words one = nx_times(third, nx_word(3));
  switch (check) {
    case 0: return top == 6;
    case 1: return sum == count;
    case 2: return some && !none;
    case 3: return one.hi == 1 && NX_ABS(one.lo) < nx_t(NX_DOUBLE ? 1e-31 : 1e-13);
    case 4: return nx_two_sum(nx_t(1), nx_t(NX_DOUBLE ? 1e-20 : 1e-10)).lo != 0;
    case 5: return nx_two_product(third.hi, nx_t(3)).lo != 0;
    case 6: return nx_exp(nx_word(0)) == 1 && nx_exp(nx_word(-NX_INF)) == 0;
    case 7: return nx_near(nx_exp(nx_word(1)), nx_t(2.718281828459045));
    case 8: return nx_near(nx_exp(nx_word(-80)), nx_t(1.8048513878454153e-35));
    case 9: return nx_is_nan(nx_exp(nx_word(NX_NAN))) && nx_exp(nx_word(NX_INF)) == NX_INF;
    case 10: return nx_near(nx_log1p(nx_t(1e-6)), nx_t(9.999995000003333e-07)) && nx_log1p(NX_INF) == NX_INF;
    case 11: return nx_near(nx_log_words(nx_word(1000)).hi, nx_t(6.907755278982137)) && nx_log_words(nx_word(0)).hi == -NX_INF;
    case 12: return nx_near(nx_complement(nx_t(1e-5)), nx_t(9.99995000016667e-06)) && nx_complement(NX_INF) == 1;
    case 13: return nx_ldexp(nx_t(1.5), -3) == nx_t(0.1875) && nx_power_of_two(-2) == nx_t(0.25);
    case 14: return NX_RINT(nx_t(2.5)) == 2 && NX_ABS(nx_t(-3)) == 3;
    case 15: return NX_SQRT(nx_t(9)) == 3 && nx_near(NX_POW(nx_t(2), nx_t(0.5)), nx_t(1.4142135623730951));
    case 16: return nx_near(NX_TANH(nx_t(1)), nx_t(0.7615941559557649)) && NX_LOG(nx_t(1)) == 0;
    case 17: return NX_EXPONENT(nx_t(10)) == 3;
    case 18: return NX_FMA(third.hi, nx_t(3), nx_t(-1)) != 0;
    case 19: return nx_is_finite(nx_t(1)) && !nx_is_finite(NX_INF) && !nx_is_finite(NX_NAN);
    case 20: return nx_larger::of(NX_NAN, nx_t(1)) != nx_larger::of(NX_NAN, nx_t(1)) && nx_larger::of(nx_t(1), nx_t(2)) == 2;
    case 21: return nx_sum_of(nx_word(NX_INF), nx_word(1)).hi == NX_INF && nx_sum_of(nx_word(NX_INF), nx_word(1)).lo == 0;
    case 22: return nx_renormalized(nx_t(1), nx_t(1)).hi == 2;
    case 23: return nx_pair(1, 2).lo == 2;
    case 24: return nx_rank(nx_t(-1)) < nx_rank(nx_t(-0.5)) && nx_rank(nx_t(-0.0)) == nx_rank(0) && nx_rank(1) < nx_rank(NX_INF);
    case 25: return nx_at_rank(nx_rank(nx_t(-2.5))) == nx_t(-2.5) && nx_at_rank(nx_rank(NX_INF) - 1) < NX_INF;
    default: return true;
  }
}
NX_FN void nx_selftest_forward(NX_THREAD nx_row& r) {
  nx_words sum = nx_word(0);
  NX_EACH(r) {
    NX_KEEP(r, NX_SCORE(r));
    if (NX_SCORE(r) != -NX_INF) nx_add(r, sum, 1);
  }
  const nx_t count = nx_total_of(r, sum).hi, top = nx_top(r);
  const bool some = nx_any(r.c, r.lane == 0), none = nx_any(r.c, false);
  nx_barrier(r.c);
  NX_WRITE(r) {
    const nx_spot i = nx_place(r, k_) + j_;
    const bool same = NX_KEPT(r, NX_SCORE(r)) == NX_SCORE(r) || i >= r.n;
    NX_PUT(r, same && nx_checked(nx_int(i), count, top, nx_t(r.n), some, none) ? nx_t(1) : nx_t(0));
  }
}
NX_FN void nx_selftest_backward(NX_THREAD nx_row& r) {
  NX_WRITE(r) NX_PUT(r, NX_COTANGENT(r));
}
