// CUDA, compiled by NVRTC without any header: what the texts are written in, on one GPU thread per lane.
//
// Defined in front: NX_S_HALF, NX_S_BFLOAT or neither, NX_DOUBLE, NX_EXACT, NX_V, NX_LANES, NX_ROWS, NX_STEPS, NX_LOOP,
// NX_PARTS, NX_FLAGS, NX_OUTER, NX_REDUCED, NX_NAME, NX_RUN. Words and numbers come by value, in the constant bank.

typedef long long nx_i64;
typedef int nx_int;
#if NX_DOUBLE
typedef double nx_t;
#define NX_INF __longlong_as_double(0x7ff0000000000000LL)
#define NX_NAN __longlong_as_double(0x7ff8000000000000LL)
#define NX_FMA(a, b, c) __fma_rn(a, b, c)
#define NX_RINT ::rint
#define NX_LOG ::log
#define NX_TANH ::tanh
#define NX_SQRT ::sqrt
#define NX_POW ::pow
#define NX_ABS ::fabs
#define NX_EXPONENT ::ilogb
#else
typedef float nx_t;
#define NX_INF __int_as_float(0x7f800000)
#define NX_NAN __int_as_float(0x7fc00000)
#define NX_FMA(a, b, c) __fmaf_rn(a, b, c)
#define NX_RINT ::rintf
#define NX_LOG ::logf
#define NX_TANH ::tanhf
#define NX_SQRT ::sqrtf
#define NX_POW ::powf
#define NX_ABS ::fabsf
#define NX_EXPONENT ::ilogbf
#endif
#if NX_S_HALF || NX_S_BFLOAT
typedef unsigned short nx_s;
#elif NX_DOUBLE
typedef double nx_s;
#else
typedef float nx_s;
#endif

// A whole number; anything where it is NaN.
#define NX_INT(x) ((nx_int)(x))
#define NX_FN __device__ __forceinline__
// For what is long and called in every step of an unrolled loop.
#define NX_CALL __device__ __noinline__
#define NX_METHOD static __device__ __forceinline__
#define NX_THREAD
#define NX_UNROLL _Pragma("unroll")
#if NX_LOOP
#define NX_UNROLL_STEPS _Pragma("unroll 1")
#define NX_SLOTS NX_V
#else
#define NX_UNROLL_STEPS _Pragma("unroll")
#define NX_SLOTS (NX_STEPS * NX_V)
#endif
#define NX_MOST_V NX_V
#define NX_WARP 32
#define NX_BLOCK (NX_LANES * NX_ROWS)
#define NX_HAS(flag) (((NX_FLAGS) & (flag)) != 0)
#define NX_WORD(i) (r.c.plan->word[i])
#define NX_NUMBER(i) (r.c.plan->number[i])

struct nx_plan {
  nx_i64 word[NX_WORDS];
  nx_t number[NX_NUMBERS];
};
struct nx_context {
  const nx_plan* plan;
  nx_t* shared;
  const nx_s* x;
  const nx_s* g;
  const unsigned char* where;
  const nx_t* p[4];
  const nx_t* temperature;
  const nx_t* sink;
  const nx_t* noise;
  const nx_t* weight;
  const nx_i64* target;
  nx_s* y;
  nx_t* d[4];
  nx_t* dtemperature;
  nx_t* dsink;
  nx_i64* index;
  char* scratch;  // of the row's blocks: a counter, and two banks of states
};

// The same, which the compiler takes for something new: what follows from it is computed again rather than kept.
NX_FN nx_int nx_anew(nx_int x) {
  asm volatile("" : "+r"(x));
  return x;
}
#if NX_DOUBLE
NX_FN nx_t nx_anew(nx_t x) {
  asm volatile("" : "+d"(x));
  return x;
}
#else
NX_FN nx_t nx_anew(nx_t x) {
  asm volatile("" : "+f"(x));
  return x;
}
#endif
NX_FN nx_t nx_power_of_two(nx_int n) {
#if NX_DOUBLE
  return __longlong_as_double((nx_i64)(n + 1023) << 52);
#else
  return __int_as_float((n + 127) << 23);
#endif
}

NX_FN nx_i64 nx_bits(nx_t x) {
#if NX_DOUBLE
  return __double_as_longlong(x);
#else
  return __float_as_int(x);
#endif
}
NX_FN nx_t nx_of_bits(nx_i64 bits) {
#if NX_DOUBLE
  return __longlong_as_double(bits);
#else
  return __int_as_float((int)bits);
#endif
}

#if NX_S_HALF
NX_FN nx_t nx_widened(nx_s s) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(s));
  return f;
}
NX_FN nx_s nx_narrowed(nx_t v) {
  nx_s s;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(s) : "f"(v));
  return s;
}
#elif NX_S_BFLOAT
NX_FN nx_t nx_widened(nx_s s) { return __int_as_float((int)s << 16); }
NX_FN nx_s nx_narrowed(nx_t v) {
  const unsigned bits = (unsigned)__float_as_int(v);
  if (v != v) return (nx_s)((bits >> 16) | 0x40);
  return (nx_s)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
NX_FN nx_t nx_widened(nx_s s) { return s; }
NX_FN nx_s nx_narrowed(nx_t v) { return v; }
#endif

NX_FN nx_t nx_load(const nx_s* p, nx_i64 i) { return nx_widened(p[i]); }
NX_FN void nx_store(nx_s* p, nx_i64 i, nx_t v) { p[i] = nx_narrowed(v); }
union nx_vector {
  uint4 all;
  nx_s s[NX_V];
};
NX_FN void nx_load_wide(const nx_s* p, nx_i64 i, nx_t* v, nx_int) {
  nx_vector u;
  u.all = *reinterpret_cast<const uint4*>(p + i);
  NX_UNROLL for (nx_int j = 0; j < NX_V; ++j) v[j] = nx_widened(u.s[j]);
}
NX_FN void nx_store_wide(nx_s* p, nx_i64 i, const nx_t* v, nx_int) {
  nx_vector u;
  NX_UNROLL for (nx_int j = 0; j < NX_V; ++j) u.s[j] = nx_narrowed(v[j]);
  *reinterpret_cast<uint4*>(p + i) = u.all;
}
NX_FN nx_t nx_value(const nx_t* p, nx_i64 i) { return p[i]; }
NX_FN void nx_set(nx_t* p, nx_i64 i, nx_t v) { p[i] = v; }
NX_FN nx_i64 nx_index(const nx_i64* p, nx_i64 i) { return p[i]; }
NX_FN void nx_set_index(nx_i64* p, nx_i64 i, nx_i64 value) { p[i] = value; }
NX_FN bool nx_flag(const unsigned char* p, nx_i64 i) { return p[i] != 0; }

#include "arithmetic.h"

NX_FN nx_int nx_thread(const nx_context&) { return (nx_int)threadIdx.x; }
NX_FN void nx_barrier(const nx_context&) { __syncthreads(); }
NX_FN nx_t nx_shuffle(const nx_context&, nx_t v, nx_int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
NX_FN nx_words nx_shuffle(const nx_context& c, nx_words v, nx_int mask) {
  return nx_pair(nx_shuffle(c, v.hi, mask), nx_shuffle(c, v.lo, mask));
}
NX_FN void nx_share(const nx_context& c, nx_int cell, nx_t v) { c.shared[2 * cell] = v; }
NX_FN void nx_share(const nx_context& c, nx_int cell, nx_words v) {
  c.shared[2 * cell] = v.hi;
  c.shared[2 * cell + 1] = v.lo;
}
NX_FN nx_t nx_shared(const nx_context& c, nx_int cell, nx_t) { return c.shared[2 * cell]; }
NX_FN nx_words nx_shared(const nx_context& c, nx_int cell, nx_words) { return nx_pair(c.shared[2 * cell], c.shared[2 * cell + 1]); }
// Whether any lane says yes, among those whose collectives are one: the rows of a warp, or all of the block.
NX_FN bool nx_any(const nx_context&, bool yes) {
  if (NX_LANES > NX_WARP || NX_HAS(NX_COLUMNS)) return __syncthreads_or(yes) != 0;
  return __any_sync(0xffffffffu, yes) != 0;
}

// The blocks of a row: all are resident, which the launch has seen to. What one leaves is read past the cache of the other.
NX_FN nx_int nx_part(const nx_context&) { return (nx_int)(blockIdx.x % NX_PARTS); }
NX_FN void nx_publish(const nx_context& c, nx_int cell, nx_t v) { reinterpret_cast<volatile nx_t*>(c.scratch + 8)[2 * cell] = v; }
NX_FN void nx_publish(const nx_context& c, nx_int cell, nx_words v) {
  volatile nx_t* const place = reinterpret_cast<volatile nx_t*>(c.scratch + 8) + 2 * cell;
  place[0] = v.hi;
  place[1] = v.lo;
}
NX_FN nx_t nx_published(const nx_context& c, nx_int cell, nx_t) {
  return reinterpret_cast<volatile nx_t*>(c.scratch + 8)[2 * cell];
}
NX_FN nx_words nx_published(const nx_context& c, nx_int cell, nx_words) {
  volatile nx_t* const place = reinterpret_cast<volatile nx_t*>(c.scratch + 8) + 2 * cell;
  const nx_t hi = place[0], lo = place[1];
  return nx_pair(hi, lo);
}
NX_FN void nx_meet(const nx_context& c, nx_int meetings) {
  unsigned* const counter = reinterpret_cast<unsigned*>(c.scratch);
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
    while (*reinterpret_cast<volatile unsigned*>(counter) < (unsigned)meetings * NX_PARTS) {
    }
    __threadfence();
  }
  __syncthreads();
}

#include "row.h"
#include NX_KERNELS

#ifdef NX_ARGUMENTS
// MLX hands over what there is and no more, and the plan in memory.
extern "C" __global__ void __launch_bounds__(NX_BLOCK, 1) NX_NAME(NX_ARGUMENTS) {
  nx_row r;
  r.c.plan = plan;
  NX_PLACES
#else
extern "C" __global__ void __launch_bounds__(NX_BLOCK, 1)
    NX_NAME(const nx_s* x, const nx_s* g, const unsigned char* where, const nx_t* p0, const nx_t* p1, const nx_t* p2,
            const nx_t* p3, const nx_t* temperature, const nx_t* sink, const nx_t* noise,
            const nx_t* weight, const nx_i64* target, nx_s* y, nx_t* d0, nx_t* d1, nx_t* d2, nx_t* d3,
            nx_t* dtemperature, nx_t* dsink, nx_i64* index, char* scratch, const __grid_constant__ nx_plan words) {
  nx_row r;
  const nx_plan* const plan = &words;
  r.c = {plan, nullptr, x, g, where, {p0, p1, p2, p3}, temperature, sink, noise, weight, target, y, {d0, d1, d2, d3},
         dtemperature, dsink, index, scratch + blockIdx.x / NX_PARTS * NX_SCRATCH_PER_ROW};
#endif
  __shared__ nx_t shared[NX_HAS(NX_COLUMNS) ? 4 * NX_BLOCK : 4 * NX_WARP];
  r.c.shared = shared;
  r.bank = r.far_bank = r.meetings = 0;
  const nx_i64 group = blockIdx.x / NX_PARTS, groups = gridDim.x / NX_PARTS;
  const nx_int thread = nx_thread(r.c);
  r.lane = NX_HAS(NX_COLUMNS) ? thread / NX_ROWS : thread % NX_LANES + nx_part(r.c) * NX_LANES;
  const nx_int row = NX_HAS(NX_COLUMNS) ? thread % NX_ROWS : thread / NX_LANES;
  for (nx_i64 first = group * NX_ROWS; first < plan->word[NX_AT_ROWS]; first += groups * NX_ROWS) {
    nx_open(r, first + row);
    NX_RUN(r);
  }
}
