// The host: one fiber per lane, run one after the other on a CPU, and every access and every meeting checked.
//
// What a GPU would not tell is an error here: a read or a write out of bounds, a result written twice, an unaligned vector, a
// shared cell read before it was written, or written and read by two lanes without a barrier between them, and lanes that
// do not meet in the same collective. Numbers of lanes, and of lanes in a warp, are arguments.
//
// Included once per instance, in a namespace, with NX_DOUBLE and NX_LOOP defined; the machine is words/host_machine.h.

#if NX_DOUBLE
typedef double nx_t;
#else
typedef float nx_t;
#endif
#define NX_INF (std::numeric_limits<nx_t>::infinity())
#define NX_NAN (std::numeric_limits<nx_t>::quiet_NaN())
#define NX_FMA std::fma
#define NX_RINT std::nearbyint
#define NX_LOG std::log
#define NX_TANH std::tanh
#define NX_SQRT std::sqrt
#define NX_POW std::pow
#define NX_EXPONENT std::ilogb
#define NX_ABS std::fabs

#define NX_INT(x) ((x) == (x) ? static_cast<nx_int>(x) : 0)
#define NX_FN static
// For what is long and called in every step of an unrolled loop.
#define NX_CALL static
#define NX_METHOD static
#define NX_THREAD
#define NX_UNROLL
#define NX_UNROLL_STEPS
#define NX_MOST_V 8
#define NX_SLOTS 64
#define NX_V (r.c.call->vector)
#define NX_EXACT (r.c.call->exact != 0)
#define NX_LANES (r.c.call->lanes)
#define NX_ROWS (r.c.call->rows)
#define NX_PARTS (r.c.call->parts)
#define NX_STEPS (nx_int(NX_WORD(NX_AT_STEPS)))
#define NX_OUTER (nx_int(NX_WORD(NX_AT_OUTER)))
#define NX_REDUCED (nx_int(NX_WORD(NX_AT_REDUCED)))
#define NX_WARP (r.c.call->warp)
#define NX_BLOCK (r.c.call->lanes * r.c.call->rows)
#define NX_HAS(flag) ((r.c.call->words[NX_AT_FLAGS] & nx_i64(flag)) != 0)
#define NX_WORD(i) (r.c.call->words[i])
#define NX_NUMBER(i) (static_cast<const nx_t*>(r.c.call->numbers)[i])

struct nx_context {
  const nx_call* call;
  const nx_buffer* x;
  const nx_buffer* g;
  const nx_buffer* where;
  const nx_buffer* p[4];
  const nx_buffer* temperature;
  const nx_buffer* sink;
  const nx_buffer* noise;
  const nx_buffer* weight;
  const nx_buffer* target;
  const nx_buffer* y;
  const nx_buffer* d[4];
  const nx_buffer* dtemperature;
  const nx_buffer* dsink;
  const nx_buffer* index;
};

// What the CUDA flavour says to its compiler.
NX_FN nx_int nx_anew(nx_int x) { return x; }
NX_FN nx_t nx_anew(nx_t x) { return x; }
NX_FN nx_t nx_power_of_two(nx_int n) { return std::ldexp(nx_t(1), n); }
#if NX_DOUBLE
typedef std::int64_t nx_pattern;
#else
typedef std::int32_t nx_pattern;
#endif
NX_FN nx_i64 nx_bits(nx_t x) {
  nx_pattern bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
NX_FN nx_t nx_of_bits(nx_i64 bits) {
  const nx_pattern pattern = static_cast<nx_pattern>(bits);
  nx_t x;
  std::memcpy(&x, &pattern, sizeof x);
  return x;
}

NX_FN nx_t nx_load(const nx_buffer* p, nx_i64 i) {
  const char* at = nx_readable(p, i);
  return static_cast<nx_t>(nx_read_storage(at, p->storage));
}
NX_FN void nx_store(const nx_buffer* p, nx_i64 i, nx_t v) { nx_write_storage(nx_writable(p, i), p->storage, v); }
NX_FN void nx_load_wide(const nx_buffer* p, nx_i64 i, nx_t* v, nx_int count) {
  nx_aligned(p, i);
  for (nx_int j = 0; j < count; ++j) v[j] = nx_load(p, i + j);
}
NX_FN void nx_store_wide(const nx_buffer* p, nx_i64 i, const nx_t* v, nx_int count) {
  nx_aligned(p, i);
  for (nx_int j = 0; j < count; ++j) nx_store(p, i + j, v[j]);
}
NX_FN nx_t nx_value(const nx_buffer* p, nx_i64 i) { return nx_load(p, i); }
NX_FN void nx_set(const nx_buffer* p, nx_i64 i, nx_t v) { nx_store(p, i, v); }
NX_FN nx_i64 nx_index(const nx_buffer* p, nx_i64 i) {
  nx_i64 value;
  std::memcpy(&value, nx_readable(p, i), sizeof value);
  return value;
}
NX_FN void nx_set_index(const nx_buffer* p, nx_i64 i, nx_i64 value) { std::memcpy(nx_writable(p, i), &value, sizeof value); }
NX_FN bool nx_flag(const nx_buffer* p, nx_i64 i) { return *nx_readable(p, i) != 0; }

#include "arithmetic.h"

NX_FN nx_int nx_thread(const nx_context&) { return nx_machine.lane(); }
NX_FN nx_int nx_part(const nx_context&) { return nx_machine.part(); }
NX_FN void nx_barrier(const nx_context&) { nx_machine.barrier(); }
NX_FN nx_t nx_shuffle(const nx_context&, nx_t v, nx_int mask) { return static_cast<nx_t>(nx_machine.shuffle(v, 0, mask).hi); }
NX_FN nx_words nx_shuffle(const nx_context&, nx_words v, nx_int mask) {
  const nx_cell got = nx_machine.shuffle(v.hi, v.lo, mask);
  return nx_pair(static_cast<nx_t>(got.hi), static_cast<nx_t>(got.lo));
}
NX_FN void nx_share(const nx_context&, nx_int cell, nx_t v) { nx_machine.share(cell, {v, 0}); }
NX_FN void nx_share(const nx_context&, nx_int cell, nx_words v) { nx_machine.share(cell, {v.hi, v.lo}); }
NX_FN nx_t nx_shared(const nx_context&, nx_int cell, nx_t) { return static_cast<nx_t>(nx_machine.shared(cell).hi); }
NX_FN nx_words nx_shared(const nx_context&, nx_int cell, nx_words) {
  const nx_cell got = nx_machine.shared(cell);
  return nx_pair(static_cast<nx_t>(got.hi), static_cast<nx_t>(got.lo));
}
NX_FN void nx_publish(const nx_context&, nx_int cell, nx_t v) { nx_machine.publish(cell, {v, 0}); }
NX_FN void nx_publish(const nx_context&, nx_int cell, nx_words v) { nx_machine.publish(cell, {v.hi, v.lo}); }
NX_FN nx_t nx_published(const nx_context&, nx_int cell, nx_t) { return static_cast<nx_t>(nx_machine.published(cell).hi); }
NX_FN nx_words nx_published(const nx_context&, nx_int cell, nx_words) {
  const nx_cell got = nx_machine.published(cell);
  return nx_pair(static_cast<nx_t>(got.hi), static_cast<nx_t>(got.lo));
}
NX_FN void nx_meet(const nx_context&, nx_int) { nx_machine.meet_all(); }
NX_FN bool nx_any(const nx_context& c, bool yes) {
  const bool whole = c.call->lanes > c.call->warp || (c.call->words[NX_AT_FLAGS] & nx_i64(NX_COLUMNS)) != 0;
  return nx_machine.any(yes, whole);
}

#include "row.h"
NX_KERNELS

// One lane's part of a block, or of the blocks of a row.
NX_FN void nx_lane(const nx_call& call, nx_i64 block, void (*run)(nx_row&)) {
  static thread_local nx_row room[nx_most_lanes];
  nx_row& r = room[nx_machine.place()];
  const nx_buffer* const of = call.operand;
  const auto at = [of](nx_int operand) { return of + operand; };
  r.c = {&call, at(NX_OF_X), at(NX_OF_G), at(NX_OF_WHERE),
         {at(NX_OF_P0), at(NX_OF_P1), at(NX_OF_P2), at(NX_OF_P3)},
         at(NX_OF_TEMPERATURE), at(NX_OF_SINK), at(NX_OF_NOISE), at(NX_OF_WEIGHT), at(NX_OF_TARGET), at(NX_OF_Y),
         {at(NX_OF_D0), at(NX_OF_D1), at(NX_OF_D2), at(NX_OF_D3)},
         at(NX_OF_DTEMPERATURE), at(NX_OF_DSINK), at(NX_OF_INDEX)};
  r.bank = r.far_bank = r.meetings = 0;
  const bool columns = NX_HAS(NX_COLUMNS);
  const nx_int thread = nx_machine.lane();
  r.lane = columns ? thread / call.rows : thread % call.lanes + nx_machine.part() * call.lanes;
  const nx_int row = columns ? thread % call.rows : thread / call.lanes;
  for (nx_i64 first = block * call.rows; first < call.words[NX_AT_ROWS]; first += call.grid * call.rows) {
    nx_open(r, first + row);
    run(r);
  }
}
