"""The native CPU backend: SIMD kernels in C++ (`_core`), compiled from native/."""

from normx_native._backend import algorithms as algorithms
from normx_native._backend import backend as backend
from normx_native._backend import clear_cache as clear_cache
from normx_native._backend import get_cache_limit as get_cache_limit
from normx_native._backend import get_cache_memory as get_cache_memory
from normx_native._backend import set_cache_limit as set_cache_limit
from normx_native._backend import use_algorithm as use_algorithm
from normx_native._backend import use_target as use_target
