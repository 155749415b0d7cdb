// A row, as a kernel sees it: lanes that own vectors of its scores, words for all of them, and what lanes do together.
//
// Vector k of a lane begins at score (k * lanes + lane) * NX_V of the row, whatever the layout: the order of sums, and so the
// bits, depend on the length alone. Where NX_LOOP is 0 a lane keeps all its vectors in registers; else it reads one after
// the other, in every pass again.
//
//   NX_EACH(r) { ... NX_SCORE(r), NX_COTANGENT(r) ... }   every score of the lane; -inf where left out, or beyond the row
//   NX_KEEP(r, e) ... NX_KEPT(r, e)                       something to be had again later, or computed again if it is not kept
//   NX_WRITE(r) { ... NX_PUT(r, y) ... }                  every result of the lane; policies are seen to
//   nx_maximum, nx_total, nx_any                          of all lanes; every lane of the block must get there

// A place in a row. Rows in registers have 2^22 scores at most, and 64 bits for each place take up to 30 registers of a thread: in
// float32 and float16, softmax with 64 scores in each of 512 threads spilled 156 and 888 bytes.
#if NX_LOOP
typedef nx_i64 nx_spot;
#else
typedef nx_int nx_spot;
#endif

struct nx_row {
  nx_context c;
  nx_i64 index;
  nx_spot n;
  nx_int lane, bank;  // the lane's place among all of the row; which bank of shared cells is free
  nx_int far_bank, meetings;  // the same for blocks of a row, and how often these have met
  bool live;      // a row of the call: the last block may have lanes for more
  bool flip;      // scores are negated once more, for a negative factor
  nx_int fate;    // what becomes of a row that has no ordinary result
  nx_t share;     // what an entry of an empty row receives
  bool some_kept;
  nx_t temperature;
  nx_i64 x, g, where, noise, y;
  nx_t v[NX_SLOTS], h[NX_SLOTS], e[NX_SLOTS], out[NX_MOST_V];
};
#define NX_ORDINARY 0
#define NX_HAS_NAN 1
#define NX_IS_EMPTY 2
#define NX_AT_REST 3

#if NX_LOOP
#define NX_SLOT (j_)
#define NX_KEEP(r, value) ((void)0)
#define NX_KEPT(r, value) (value)
#else
#define NX_SLOT (k_ * NX_V + j_)
#define NX_KEEP(r, value) ((r).e[NX_SLOT] = (value))
#define NX_KEPT(r, value) ((r).e[NX_SLOT])
#endif
#define NX_EACH(r)                                             \
  NX_UNROLL_STEPS for (nx_int k_ = nx_begun(r); k_ < nx_steps(r); ++k_) \
    NX_UNROLL for (nx_int j_ = nx_fetch(r, k_); j_ < NX_V; ++j_)
#define NX_WRITE(r) NX_EACH(r)
#define NX_SCORE(r) ((r).v[NX_SLOT])
#define NX_COTANGENT(r) ((r).h[NX_SLOT])
#define NX_PUT(r, value) nx_put(r, k_, j_, nx_settled(r, nx_place(r, k_) + j_, value))

// ---------------------------------------------------------------- where things lie

NX_FN nx_i64 nx_stride(NX_THREAD const nx_row& r, nx_int operand, nx_int axis) {
  return NX_WORD(NX_AT_STRIDES + NX_AXES * operand + axis);
}
// The offset of a row in an operand.
NX_FN nx_i64 nx_offset(NX_THREAD const nx_row& r, nx_int operand) {
  nx_i64 left = r.index, offset = 0;
  for (nx_int axis = NX_OUTER - 1; axis > 0; --axis) {
    const nx_i64 size = NX_WORD(NX_AT_SIZES + axis);
    offset += left % size * nx_stride(r, operand, axis);
    left /= size;
  }
  return NX_OUTER > 0 ? offset + left * nx_stride(r, operand, 0) : offset;
}
// And of score i within its row.
NX_FN nx_i64 nx_along(NX_THREAD const nx_row& r, nx_int operand, nx_spot i) {
  nx_i64 offset = 0;
  for (nx_int axis = NX_OUTER + NX_REDUCED - 1; axis > NX_OUTER; --axis) {
    const nx_spot size = nx_spot(NX_WORD(NX_AT_SIZES + axis));
    offset += nx_i64(i % size) * nx_stride(r, operand, axis);
    i /= size;
  }
  return offset + nx_i64(i) * nx_stride(r, operand, NX_OUTER);
}
NX_FN nx_spot nx_place(NX_THREAD const nx_row& r, nx_int k) { return (nx_spot(k) * NX_LANES * NX_PARTS + r.lane) * NX_V; }
NX_FN nx_int nx_steps(NX_THREAD const nx_row& r) {
#if NX_LOOP
  const nx_i64 stride = nx_i64(NX_LANES) * NX_PARTS * NX_V;
  return nx_int((r.n + stride - 1) / stride);
#else
  return NX_STEPS;
#endif
}
NX_FN bool nx_kept(NX_THREAD const nx_row& r, nx_spot i) {
  return !NX_HAS(NX_WHERE) || nx_flag(r.c.where, r.where + nx_along(r, NX_OF_WHERE, i));
}

// ---------------------------------------------------------------- parameters

NX_FN bool nx_given(NX_THREAD const nx_row& r, nx_int k) { return NX_HAS(nx_i64(NX_P0) << k); }
NX_FN nx_t nx_parameter(NX_THREAD const nx_row& r, nx_int k) {
  if (NX_HAS(nx_i64(NX_P0_ARRAY) << k)) return nx_value(r.c.p[k], nx_offset(r, NX_OF_P0 + k));
  return NX_NUMBER(NX_NUMBER_P0 + k);
}
NX_FN nx_t nx_constant(NX_THREAD const nx_row& r, nx_int k) { return NX_NUMBER(NX_NUMBER_CONSTANTS + k); }
NX_FN nx_t nx_sink(NX_THREAD const nx_row& r, nx_i64 i) {
  if (NX_HAS(NX_INHIBITED)) return nx_parameter(r, 0);
  if (!NX_HAS(NX_SINK_ARRAY)) return NX_NUMBER(NX_NUMBER_SINK);
  return nx_value(r.c.sink, nx_offset(r, NX_OF_SINK) + i * NX_WORD(NX_AT_SINK_STRIDE));
}
NX_FN nx_i64 nx_sinks(NX_THREAD const nx_row& r) {
  return NX_HAS(NX_INHIBITED) ? 1 : NX_HAS(NX_SINK) ? NX_WORD(NX_AT_SINKS) : 0;
}
NX_FN bool nx_at_rest(NX_THREAD const nx_row& r) { return r.fate == NX_IS_EMPTY || r.fate == NX_AT_REST; }
// The gradients of what has one value per row.
NX_FN void nx_put_gradient(NX_THREAD const nx_row& r, nx_int k, nx_t value) {
  if (NX_HAS(nx_i64(NX_D0) << k) && r.live && r.lane == 0) {
    nx_set(r.c.d[k], nx_offset(r, NX_OF_D0 + k), nx_at_rest(r) ? nx_t(0) : value);
  }
}

// ---------------------------------------------------------------- scores

// A score over the temperature, in two words, with the limits where that is 0 or infinite.
NX_FN nx_words nx_tempered_words(NX_THREAD const nx_row& r, nx_t v) {
  const nx_t t = r.temperature;
  if (!NX_HAS(NX_TEMPERED) || !nx_is_finite(v)) return nx_word(v);
  if (t == 0) return nx_word(v > 0 ? NX_INF : v < 0 ? -NX_INF : v);
  const nx_t q = v / t, low = NX_FMA(-q, t, v) / t;
  return nx_pair(q, nx_is_finite(low) ? low : nx_t(0));
}
NX_FN nx_t nx_tempered(NX_THREAD const nx_row& r, nx_t v) { return nx_tempered_words(r, v).hi; }
NX_FN nx_t nx_score_of(NX_THREAD const nx_row& r, nx_t v, nx_spot i) {
  if (NX_HAS(NX_NEGATED)) v = -v;
  if (NX_HAS(NX_SOFTCAP)) {
    const nx_t cap = NX_NUMBER(NX_NUMBER_SOFTCAP);
    v = cap * NX_TANH(v / cap);
  }
  if (!nx_kept(r, i)) return -NX_INF;
  if (NX_HAS(NX_POSITIVE) && nx_tempered(r, v) <= 0) return -NX_INF;
  if (NX_HAS(NX_THRESHOLD) && nx_tempered(r, v) < nx_parameter(r, 0)) return -NX_INF;
  if (NX_HAS(NX_SCALED) && r.flip && v != -NX_INF) return -v;
  return v;
}
NX_FN void nx_read(NX_THREAD nx_row& r, nx_int k, nx_int slot) {
  const nx_spot first = nx_place(r, k);
  if (NX_HAS(NX_WIDE)) {
    if (first < r.n) {
      nx_load_wide(r.c.x, r.x + first, &r.v[slot], NX_V);
      if (NX_HAS(NX_BACKWARD) && !NX_HAS(NX_REDUCES)) nx_load_wide(r.c.g, r.g + first, &r.h[slot], NX_V);
    }
  } else {
    NX_UNROLL for (nx_int j = 0; j < NX_V; ++j) {
      const nx_spot i = first + j;
      if (i >= r.n) continue;
      r.v[slot + j] = nx_load(r.c.x, r.x + nx_along(r, NX_OF_X, i));
      if (NX_HAS(NX_BACKWARD) && !NX_HAS(NX_REDUCES)) r.h[slot + j] = nx_load(r.c.g, r.g + nx_along(r, NX_OF_G, i));
    }
  }
  NX_UNROLL for (nx_int j = 0; j < NX_V; ++j) {
    const bool inside = NX_HAS(NX_WIDE) ? first < r.n : first + j < r.n;
    const nx_t v = inside ? nx_score_of(r, r.v[slot + j], first + j) : -NX_INF;
    r.v[slot + j] = v;
    // What is left out has no cotangent, whatever is there.
    const bool counts = inside && (NX_HAS(NX_FILLS) || v != -NX_INF);
    if (NX_HAS(NX_BACKWARD) && !NX_HAS(NX_REDUCES) && !counts) r.h[slot + j] = 0;
  }
}
// A pass begins. Places are not kept from one to the next: of 64 scores they would take 32 registers.
NX_FN nx_int nx_begun(NX_THREAD nx_row& r) {
  r.lane = nx_anew(r.lane);
  return 0;
}
NX_FN nx_int nx_fetch(NX_THREAD nx_row& r, nx_int k) {
#if NX_LOOP
  nx_read(r, k, 0);
#else
  (void)r;
  (void)k;
#endif
  return 0;
}
NX_FN void nx_flush(NX_THREAD nx_row& r, nx_int k) {
  const nx_spot first = nx_place(r, k);
  if (!r.live || first >= r.n) return;
  if (NX_HAS(NX_WIDE)) {
    nx_store_wide(r.c.y, r.y + first, r.out, NX_V);
  } else {
    NX_UNROLL for (nx_int j = 0; j < NX_V; ++j) {
      if (first + j < r.n) nx_store(r.c.y, r.y + nx_along(r, NX_OF_Y, first + j), r.out[j]);
    }
  }
}
// The last one of a vector writes it: a loop that did so at its end would not be unrolled, and rows
// that are addressed by a loop's counter lie in memory instead of registers.
NX_FN void nx_put(NX_THREAD nx_row& r, nx_int k, nx_int j, nx_t value) {
  r.out[j] = value;
  if (j == NX_V - 1) nx_flush(r, k);
}
// The value of a reduction.
NX_FN void nx_put_value(NX_THREAD const nx_row& r, nx_t value) {
  if (r.live && r.lane == 0) nx_store(r.c.y, r.y, value);
}
// Row `index` of the call, or the last one again.
NX_FN void nx_open(NX_THREAD nx_row& r, nx_i64 index) {
  r.live = index < NX_WORD(NX_AT_ROWS);
  r.index = r.live ? index : NX_WORD(NX_AT_ROWS) - 1;
  r.n = nx_spot(NX_WORD(NX_AT_LENGTH));
  r.flip = false;
  r.fate = NX_ORDINARY;
  r.share = 0;
  r.some_kept = true;
  r.x = nx_offset(r, NX_OF_X);
  r.y = nx_offset(r, NX_OF_Y);
  r.g = NX_HAS(NX_BACKWARD) ? nx_offset(r, NX_OF_G) : 0;
  r.where = NX_HAS(NX_WHERE) ? nx_offset(r, NX_OF_WHERE) : 0;
  r.noise = NX_HAS(NX_NOISY) ? nx_offset(r, NX_OF_NOISE) : 0;
  r.temperature = 1;
  if (NX_HAS(NX_TEMPERED)) {
    r.temperature = NX_HAS(NX_TEMPERATURE_ARRAY) ? nx_value(r.c.temperature, nx_offset(r, NX_OF_TEMPERATURE))
                                                 : NX_NUMBER(NX_NUMBER_TEMPERATURE);
  }
#if !NX_LOOP
  NX_UNROLL for (nx_int k = 0; k < NX_STEPS; ++k) nx_read(r, k, k * NX_V);
#endif
}

// ---------------------------------------------------------------- together

struct nx_larger {  // NaN is larger than anything
  NX_METHOD nx_t of(nx_t a, nx_t b) { return a > b || nx_is_nan(a) ? a : b; }
};
struct nx_plus {
  NX_METHOD nx_words of(nx_words a, nx_words b) { return nx_sum_of(a, b); }
};
// Every lane gets the same bits: a butterfly, whose steps are commutative.
template <class F, class T>
NX_FN T nx_reduce_block(NX_THREAD nx_row& r, T v) {
  if (NX_HAS(NX_COLUMNS)) {
    for (nx_int mask = 1; mask < NX_LANES; mask <<= 1) {
      const nx_int other = nx_thread(r.c) ^ (mask * NX_ROWS), base = r.bank * NX_BLOCK;
      nx_share(r.c, base + nx_thread(r.c), v);
      nx_barrier(r.c);
      v = F::of(v, nx_shared(r.c, base + other, v));
      r.bank ^= 1;
    }
    return v;
  }
  for (nx_int mask = 1; mask < NX_LANES && mask < NX_WARP; mask <<= 1) v = F::of(v, nx_shuffle(r.c, v, mask));
  if (NX_LANES > NX_WARP) {
    // Two banks in turn: who writes the one has passed the barrier behind which all had read it.
    const nx_int warps = (NX_LANES + NX_WARP - 1) / NX_WARP, base = r.bank * NX_WARP, lane = nx_thread(r.c);
    if (lane % NX_WARP == 0) nx_share(r.c, base + lane / NX_WARP, v);
    nx_barrier(r.c);
    v = nx_shared(r.c, base + lane % warps, v);
    for (nx_int mask = 1; mask < warps; mask <<= 1) v = F::of(v, nx_shuffle(r.c, v, mask));
    r.bank ^= 1;
  }
  return v;
}
// The same for the blocks of a row, all of which run at once: they leave what they found in memory, and meet.
template <class F, class T>
NX_FN T nx_reduce(NX_THREAD nx_row& r, T v) {
  v = nx_reduce_block<F>(r, v);
  if (NX_PARTS > 1) {
    const nx_int base = r.far_bank * NX_PARTS, lane = nx_thread(r.c);
    if (lane == 0) nx_publish(r.c, base + nx_part(r.c), v);
    r.meetings += 1;
    nx_meet(r.c, r.meetings);
    const nx_int near = NX_PARTS < NX_WARP ? NX_PARTS : NX_WARP;
    v = nx_published(r.c, base + lane % near, v);
    for (nx_int part = lane % near + near; part < NX_PARTS; part += near) v = F::of(v, nx_published(r.c, base + part, v));
    for (nx_int mask = 1; mask < near; mask <<= 1) v = F::of(v, nx_shuffle(r.c, v, mask));
    r.far_bank ^= 1;
  }
  return v;
}
NX_FN nx_t nx_maximum(NX_THREAD nx_row& r, nx_t v) { return nx_reduce<nx_larger>(r, v); }
NX_FN nx_words nx_total(NX_THREAD nx_row& r, nx_words v) { return nx_reduce<nx_plus>(r, v); }
// A sum in one lane, and what rounding has taken off it; half precision does not need that. (Kahan's has three operations less, but
// four that wait for each other, where here each term waits for one.)
NX_FN void nx_add(NX_THREAD const nx_row& r, NX_THREAD nx_words& sum, nx_t term) {
  if (NX_EXACT) {
    const nx_words s = nx_two_sum(sum.hi, term);
    sum = nx_pair(s.hi, sum.lo + s.lo);
  } else {
    sum.hi += term;
  }
}
// A sum with an infinite or NaN term has no low word.
NX_FN nx_words nx_total_of(NX_THREAD nx_row& r, nx_words sum) {
  return nx_total(r, nx_is_finite(sum.lo) ? nx_renormalized(sum.hi, sum.lo) : nx_pair(sum.hi, 0));
}
NX_FN nx_t nx_top(NX_THREAD nx_row& r) {
  nx_t top = -NX_INF;
  NX_EACH(r) top = nx_larger::of(NX_SCORE(r), top);
  return nx_maximum(r, top);
}

// ---------------------------------------------------------------- policies

// What becomes of a row with this maximum. All lanes together, where empty rows receive something.
NX_FN void nx_judge(NX_THREAD nx_row& r, nx_t top) {
  const bool still = NX_HAS(NX_BACKWARD) && top == NX_INF && !NX_HAS(NX_POINTWISE) && !NX_HAS(NX_REDUCES);
  r.fate = nx_is_nan(top) ? NX_HAS_NAN : top == -NX_INF ? NX_IS_EMPTY : still ? NX_AT_REST : NX_ORDINARY;
  if (NX_HAS(NX_EMPTY_NAN) || NX_HAS(NX_EMPTY_UNIFORM)) {
    nx_words kept = nx_word(0);
    NX_EACH(r) {
      const nx_spot i = nx_place(r, k_) + j_;
      if (i < r.n && nx_kept(r, i)) nx_add(r, kept, 1);
    }
    const nx_t count = nx_total_of(r, kept).hi;
    r.some_kept = count > 0;
    r.share = nx_t(1) / (count > 0 ? count : nx_t(r.n));
    if (NX_HAS(NX_LOG_SPACE)) r.share = NX_LOG(r.share);
    if (NX_HAS(NX_EMPTY_NAN)) r.share = NX_NAN;
  }
}
// A result with all policies.
NX_FN nx_t nx_settled(NX_THREAD const nx_row& r, nx_spot i, nx_t y) {
  if (r.fate == NX_ORDINARY || i >= r.n) return y;
  const nx_t zero = NX_HAS(NX_LOG_SPACE) && !NX_HAS(NX_BACKWARD) ? -NX_INF : nx_t(0);
  if (r.fate == NX_HAS_NAN) return (NX_HAS(NX_FILLS) && !NX_HAS(NX_BACKWARD)) || nx_kept(r, i) ? NX_NAN : zero;
  if (NX_HAS(NX_BACKWARD) || !(NX_HAS(NX_EMPTY_NAN) || NX_HAS(NX_EMPTY_UNIFORM))) return zero;
  return !r.some_kept || nx_kept(r, i) ? r.share : zero;
}
// From the gradient of a score over the temperature to that of the score as it came.
NX_FN nx_t nx_chained(NX_THREAD const nx_row& r, nx_t v, nx_t gradient) {
  if (NX_HAS(NX_TEMPERED)) {
    const nx_t t = r.temperature;
    gradient = t == 0 || t == NX_INF ? nx_t(0) : gradient / t;
  }
  if (NX_HAS(NX_SOFTCAP)) {
    const nx_t u = (r.flip ? -v : v) / NX_NUMBER(NX_NUMBER_SOFTCAP);
    gradient = gradient * ((1 - u) * (1 + u));
  }
  if (v == -NX_INF) return 0;
  return NX_HAS(NX_NEGATED) ? -gradient : gradient;
}
// The moment is the sum of those gradients times the scores.
NX_FN void nx_put_dtemperature(NX_THREAD nx_row& r, nx_words moment) {
  if (!NX_HAS(NX_DTEMPERATURE)) return;
  const nx_t whole = nx_total_of(r, moment).hi, t = r.temperature;
  if (!r.live || r.lane != 0) return;
  const bool still = nx_at_rest(r) || ((t == 0 || t == NX_INF) && r.fate != NX_HAS_NAN);
  nx_set(r.c.dtemperature, nx_offset(r, NX_OF_DTEMPERATURE), still ? nx_t(0) : -whole / t / t);
}
NX_FN void nx_add_moment(NX_THREAD const nx_row& r, NX_THREAD nx_words& moment, nx_t gradient, nx_t v) {
  if (NX_HAS(NX_DTEMPERATURE) && nx_is_finite(v)) nx_add(r, moment, gradient * v);
}
// How many scores take part, at least 1; all lanes together.
NX_FN nx_t nx_count(NX_THREAD nx_row& r) {
  nx_words count = nx_word(0);
  NX_EACH(r) {
    if (NX_SCORE(r) != -NX_INF) nx_add(r, count, 1);
  }
  const nx_t total = nx_total_of(r, count).hi;
  return total > 1 ? total : nx_t(1);
}
// The n of the formulas: parameter k if it was given. And its logarithm, which the host knows for whole rows.
NX_FN nx_t nx_length(NX_THREAD nx_row& r, nx_int k) {
  const nx_t count = nx_count(r), n = nx_given(r, k) ? nx_parameter(r, k) : count;
  return n > 1 ? n : nx_t(1);
}
NX_FN nx_words nx_log_of(NX_THREAD const nx_row& r, nx_t n) {
  if (n == nx_t(r.n)) return nx_pair(NX_NUMBER(NX_NUMBER_LOG_LENGTH), NX_NUMBER(NX_NUMBER_LOG_LENGTH_LOW));
  return nx_log_words(nx_word(n));
}
