// Metal, as the header of MLX's fast.metal_kernel: C++14, no double, an address space for every pointer.
//
// Defined in front: as for words/cuda.h, but for NX_NAME and NX_DOUBLE, which is 0. Words and numbers are arrays. An input of fewer
// than 8 elements would be in another address space: MLX's part has to fill it up.

typedef long nx_i64;
typedef int nx_int;
typedef float nx_t;
#define NX_INF INFINITY
#define NX_NAN NAN
#define NX_FMA metal::fma
#define NX_RINT metal::rint
#define NX_LOG metal::precise::log
#define NX_TANH metal::precise::tanh
#define NX_SQRT metal::precise::sqrt
#define NX_POW metal::precise::pow
#define NX_EXPONENT metal::ilogb
#define NX_ABS metal::fabs
#if NX_S_HALF
typedef half nx_s;
#elif NX_S_BFLOAT
typedef bfloat16_t nx_s;
#else
typedef float nx_s;
#endif

#define NX_INT(x) static_cast<nx_int>(x)
#define NX_FN inline
// For what is long and called in every step of an unrolled loop.
#define NX_CALL inline
#define NX_METHOD static
#define NX_THREAD thread
#define NX_UNROLL _Pragma("unroll")
#if NX_LOOP
#define NX_UNROLL_STEPS
#define NX_SLOTS NX_V
#else
#define NX_UNROLL_STEPS _Pragma("unroll")
#define NX_SLOTS (NX_STEPS * NX_V)
#endif
#define NX_MOST_V NX_V
#define NX_WARP 32
#define NX_BLOCK (NX_LANES * NX_ROWS)
#define NX_HAS(flag) (((NX_FLAGS) & (flag)) != 0)
#define NX_WORD(i) (r.c.words[i])
#define NX_NUMBER(i) (r.c.numbers[i])
#define NX_SHARED_SIZE (NX_HAS(NX_COLUMNS) ? 4 * NX_BLOCK : 4 * NX_WARP)

struct nx_context {
  const device nx_i64* words;
  const device nx_t* numbers;
  threadgroup nx_t* cells;
  threadgroup nx_int* votes;
  nx_int of_block;  // the thread's place in its block
  const device nx_s* x;
  const device nx_s* g;
  const device bool* where;
  const device nx_t* p[4];
  const device nx_t* temperature;
  const device nx_t* sink;
  const device nx_t* noise;
  const device nx_t* weight;
  const device nx_i64* target;
  device nx_s* y;
  device nx_t* d[4];
  device nx_t* dtemperature;
  device nx_t* dsink;
  device nx_i64* index;
};

// What the CUDA flavour says to its compiler.
NX_FN nx_int nx_anew(nx_int x) { return x; }
NX_FN nx_t nx_anew(nx_t x) { return x; }
NX_FN nx_t nx_power_of_two(nx_int n) { return as_type<float>((n + 127) << 23); }
NX_FN nx_i64 nx_bits(nx_t x) { return as_type<int>(x); }
NX_FN nx_t nx_of_bits(nx_i64 bits) { return as_type<float>(static_cast<int>(bits)); }

NX_FN nx_t nx_load(const device nx_s* p, nx_i64 i) { return static_cast<nx_t>(p[i]); }
NX_FN void nx_store(device nx_s* p, nx_i64 i, nx_t v) { p[i] = static_cast<nx_s>(v); }
// The compiler makes vectors of neighbours.
NX_FN void nx_load_wide(const device nx_s* p, nx_i64 i, thread nx_t* v, nx_int) {
  NX_UNROLL for (nx_int j = 0; j < NX_V; ++j) v[j] = static_cast<nx_t>(p[i + j]);
}
NX_FN void nx_store_wide(device nx_s* p, nx_i64 i, const thread nx_t* v, nx_int) {
  NX_UNROLL for (nx_int j = 0; j < NX_V; ++j) p[i + j] = static_cast<nx_s>(v[j]);
}
NX_FN nx_t nx_value(const device nx_t* p, nx_i64 i) { return p[i]; }
NX_FN void nx_set(device nx_t* p, nx_i64 i, nx_t v) { p[i] = v; }
NX_FN nx_i64 nx_index(const device nx_i64* p, nx_i64 i) { return p[i]; }
NX_FN void nx_set_index(device nx_i64* p, nx_i64 i, nx_i64 value) { p[i] = value; }
NX_FN bool nx_flag(const device bool* p, nx_i64 i) { return p[i]; }

#include "arithmetic.h"

NX_FN nx_int nx_thread(thread const nx_context& c) { return c.of_block; }
NX_FN void nx_barrier(thread const nx_context&) { threadgroup_barrier(metal::mem_flags::mem_threadgroup); }
NX_FN nx_t nx_shuffle(thread const nx_context&, nx_t v, nx_int mask) {
  return metal::simd_shuffle_xor(v, static_cast<ushort>(mask));
}
NX_FN nx_words nx_shuffle(thread const nx_context& c, nx_words v, nx_int mask) {
  return nx_pair(nx_shuffle(c, v.hi, mask), nx_shuffle(c, v.lo, mask));
}
NX_FN void nx_share(thread const nx_context& c, nx_int cell, nx_t v) { c.cells[2 * cell] = v; }
NX_FN void nx_share(thread const nx_context& c, nx_int cell, nx_words v) {
  c.cells[2 * cell] = v.hi;
  c.cells[2 * cell + 1] = v.lo;
}
NX_FN nx_t nx_shared(thread const nx_context& c, nx_int cell, nx_t) { return c.cells[2 * cell]; }
NX_FN nx_words nx_shared(thread const nx_context& c, nx_int cell, nx_words) { return nx_pair(c.cells[2 * cell], c.cells[2 * cell + 1]); }
NX_FN bool nx_any(thread const nx_context& c, bool yes) {
  if (!(NX_LANES > NX_WARP || NX_HAS(NX_COLUMNS))) return metal::simd_any(yes);
  nx_barrier(c);
  if (c.of_block == 0) c.votes[0] = 0;
  nx_barrier(c);
  if (yes) c.votes[0] = 1;  // several may: it is the same
  nx_barrier(c);
  return c.votes[0] != 0;
}

// A row has one block: Metal does not promise that others run at the same time.
NX_FN nx_int nx_part(thread const nx_context&) { return 0; }
NX_FN void nx_publish(thread const nx_context&, nx_int, nx_t) {}
NX_FN void nx_publish(thread const nx_context&, nx_int, nx_words) {}
NX_FN nx_t nx_published(thread const nx_context&, nx_int, nx_t v) { return v; }
NX_FN nx_words nx_published(thread const nx_context&, nx_int, nx_words v) { return v; }
NX_FN void nx_meet(thread const nx_context&, nx_int) {}

#include "row.h"
#include NX_KERNELS
