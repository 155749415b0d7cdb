#include "dispatch/cpu.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace normx {

#if defined(__x86_64__)

unsigned cpu_features() {
  enum Register { ebx, ecx };
  struct Bit {
    CpuFeature feature;
    unsigned leaf;
    Register where;
    int bit;
    unsigned saved;  // bits of XCR0: the state that the operating system must keep
  };
  constexpr unsigned ymm = 0x06, zmm = 0xe6;
  constexpr Bit bits[] = {
      {sse42, 1, ecx, 20, 0},    {popcnt, 1, ecx, 23, 0},     {fma, 1, ecx, 12, ymm},      {f16c, 1, ecx, 29, ymm},
      {avx2, 7, ebx, 5, ymm},    {bmi2, 7, ebx, 8, 0},        {avx512f, 7, ebx, 16, zmm},  {avx512dq, 7, ebx, 17, zmm},
      {avx512bw, 7, ebx, 30, zmm}, {avx512vl, 7, ebx, 31, zmm},
  };
  unsigned saved = 0, a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) && (c >> 27 & 1)) {  // OSXSAVE: xgetbv is there
    unsigned high;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  }
  unsigned features = 0;
  for (const Bit& bit : bits) {
    if (!__get_cpuid_count(bit.leaf, 0, &a, &b, &c, &d)) continue;
    const unsigned word = bit.where == ebx ? b : c;
    if ((word >> bit.bit & 1) && (saved & bit.saved) == bit.saved) features |= bit.feature;
  }
  return features;
}

#else

unsigned cpu_features() { return 0; }

#endif

}  // namespace normx
