"""The native CPU backend: SIMD kernels in C++ (`_core`), compiled from native/."""

from normx_native._backend import algorithms as algorithms
from normx_native._backend import backend as backend
from normx_native._backend import use_algorithm as use_algorithm
from normx_native._backend import use_target as use_target
