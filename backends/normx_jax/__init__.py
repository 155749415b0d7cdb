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

    def rng(self, seed: int) -> Any:
        import jax

        return jax.random.key(seed)

    def copy_of_rng(self, rng: Any) -> Any:
        return rng  # keys are values

    def check_rng(self, rng: Any) -> str | None:
        import jax

        if isinstance(rng, jax.Array) and (
            jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key) or rng.dtype == "uint32"
        ):
            return None
        return "a key of jax.random"

    def uniform(self, rng: Any, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        import jax

        steps = jax.random.bits(rng, shape, "uint32") >> 9
        return (steps.astype(self.dtype(dtype)) + 0.5) / 2.0**23

    def stop_gradient(self, x: Any) -> Any:
        import jax

        return jax.lax.stop_gradient(x)

    def device(self, x: Any) -> Any:
        # A tracer has no device, and only XLA knows where it will run.
        return super().device(x) if self.is_concrete(x) else None


library = JaxLibrary("jax", _namespace)
