// What this machine can execute.
#pragma once

namespace normx {

// The features that a target of isa.cmake may need, as bits.
enum CpuFeature : unsigned {
  sse42 = 1 << 0,
  popcnt = 1 << 1,
  fma = 1 << 2,
  f16c = 1 << 3,
  avx2 = 1 << 4,
  bmi2 = 1 << 5,
  avx512f = 1 << 6,
  avx512dq = 1 << 7,
  avx512bw = 1 << 8,
  avx512vl = 1 << 9,
};

// Those that the processor has and whose registers the operating system saves.
unsigned cpu_features();

}  // namespace normx
