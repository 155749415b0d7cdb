"""JAX: arrays, and the tracers that stand for them under ``jit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from normx._libraries import ArrayAPILibrary


def _namespace() -> Any:
    import jax.numpy

    return jax.numpy


class JaxLibrary(ArrayAPILibrary):
    """jax.Array, traced or not."""

    arithmetic = "float32"
    flushes_subnormals = True

    def modes(self) -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        import jax

        return {"eager": lambda f: f, "jit": jax.jit}

    def key(self, x: Any) -> Any:
        # Whether values may be looked at is part of what a plan depends on.
        return x.shape, x.dtype, self.is_concrete(x)

    def is_concrete(self, x: Any) -> bool:
        import jax

        return not isinstance(x, jax.core.Tracer)

    def dtype(self, name: str) -> Any:
        import jax

        if name == "float64" and not jax.config.jax_enable_x64:
            raise AttributeError("float64 needs jax_enable_x64")
        return super().dtype(name)

    def device(self, x: Any) -> Any:
        # A tracer has no device, and only XLA knows where it will run.
        return super().device(x) if self.is_concrete(x) else None


library = JaxLibrary("jax", _namespace)
