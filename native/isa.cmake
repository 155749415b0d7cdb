# The instruction sets: the only place one is written. A target needs simd/vec_<name>.hpp and a row here.
#
#   nx_isa(name ORDER n [ARCH a...] [NEEDS feature...] FLAGS flag...)
#
# Of the targets that the machine has the one of the highest ORDER is taken. ARCH: CMake's system processors; none is all.
# NEEDS: names from dispatch/cpu.cpp.

set(NX_ISAS "")  # those that this build compiles
set(NX_ISA_LIST "// NX_TARGET(name, order, compiled, needs)\n")

function(nx_isa name)
  cmake_parse_arguments(PARSE_ARGV 1 isa "" "ORDER" "ARCH;NEEDS;FLAGS")
  string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
  set(compiled 1)
  if(isa_ARCH AND NOT processor IN_LIST isa_ARCH)
    set(compiled 0)
  endif()
  list(JOIN isa_NEEDS " | " needs)
  if(NOT needs)
    set(needs "0")
  endif()
  set(NX_ISA_LIST "${NX_ISA_LIST}NX_TARGET(${name}, ${isa_ORDER}, ${compiled}, ${needs})\n" PARENT_SCOPE)
  if(compiled)
    set(NX_ISAS ${NX_ISAS} ${name} PARENT_SCOPE)
    set(NX_${name}_FLAGS ${isa_FLAGS} PARENT_SCOPE)
  endif()
endfunction()

set(x86 x86_64 amd64)
set(arm aarch64 arm64)
# gersemi: off
nx_isa(scalar ORDER 0              FLAGS -fno-tree-vectorize -fno-tree-slp-vectorize)
nx_isa(sse4   ORDER 10 ARCH ${x86} FLAGS -msse4.2 -mpopcnt                              NEEDS sse42 popcnt)
nx_isa(avx2   ORDER 20 ARCH ${x86} FLAGS -mavx2 -mfma -mf16c -mbmi2                     NEEDS avx2 fma f16c bmi2)
nx_isa(avx512 ORDER 30 ARCH ${x86} FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mbmi2
                                   NEEDS avx512f avx512bw avx512dq avx512vl fma f16c bmi2)
nx_isa(neon   ORDER 20 ARCH ${arm} FLAGS)
# gersemi: on
