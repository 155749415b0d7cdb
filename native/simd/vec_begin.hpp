// What every vec_<isa>.hpp needs before its first line.
#pragma once

#ifndef NX_ISA
#error "the target file defines NX_ISA before it includes a vector header"
#endif
#define NX_INLINE inline __attribute__((always_inline))
// The same for a lambda, after its parameters. What a fold is given must not become a call per vector.
#define NX_INLINED __attribute__((always_inline))
// For functions over whole rows: one copy, however many layouts and storage types call it.
#define NX_NOINLINE __attribute__((noinline))
