"""What CUDA needs and this machine lacks, without CuPy, which takes a second to import."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache

#: The driver, and the library that counts devices.  The driver could count too, but a process that
#: has asked it cannot fork children that compute.
_DRIVER, _COUNTER = (
    ("nvcuda.dll", "nvml.dll") if sys.platform == "win32" else ("libcuda.so.1", "libnvidia-ml.so.1")
)


@cache
def missing() -> str | None:
    """The first thing that is missing, and the cure; None if nothing is."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed: pip install cupy-cuda13x (or cupy-cuda12x)"
    return no_device()


def no_device() -> str | None:
    """What the machine itself lacks; None if that is nothing."""
    if _loaded(_DRIVER) is None:
        return f"there is no CUDA driver here ({_DRIVER})"
    if _devices() == 0:
        return "there is no CUDA device here"
    return None


def _devices() -> int | None:
    """How many devices there are; None if that is not known."""
    counter = _loaded(_COUNTER)
    if counter is None or counter.nvmlInit_v2() != 0:
        return None
    count = ctypes.c_uint()
    known = counter.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    counter.nvmlShutdown()
    return count.value if known else None


def _loaded(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
