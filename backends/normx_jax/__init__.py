"""JAX: arrays, and the tracers that stand for them under ``jit``, ``vmap`` and ``grad``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from normx._libraries import ArrayAPILibrary
from normx._record import Record
from normx.plugins import StagedKernel
from normx_jax._sharded import sharded

__all__ = ["sharded"]

Array = Any


def _namespace() -> Any:
    import jax.numpy

    return jax.numpy


class JaxLibrary(ArrayAPILibrary):
    """jax.Array, traced or not."""

    preference = ("native", "cupy", "reference")
    arithmetic = "float32"
    flushes_subnormals = True

    def modes(self) -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        import jax

        def waited_for(f: Callable[..., Any]) -> Callable[..., Any]:
            # What runs later would run outside of what a test forces.
            return lambda x: jax.block_until_ready(f(x))

        def jit(f: Callable[..., Any]) -> Callable[..., Any]:
            return waited_for(jax.jit(f))

        def vmap(f: Callable[..., Any]) -> Callable[..., Any]:
            return waited_for(lambda x: jax.vmap(f)(x[None])[0])

        def sharded(f: Callable[..., Any]) -> Callable[..., Any]:
            from normx_jax._sharded import over_devices

            return waited_for(over_devices(f))

        return {"eager": waited_for, "jit": jit, "vmap": vmap, "sharded": sharded}

    def left_out(self, record: Record, backend: str, mode: str) -> str | None:
        import jax

        if mode != "sharded":
            return None
        if backend != "reference":
            return f"a row that is split over devices is the formula's, not {backend}'s"
        if record.stages is None:
            return f"{record.name} has no state, and needs the whole row on one device"
        if jax.device_count() == 1:
            return "one device; XLA_FLAGS=--xla_force_host_platform_device_count=8 makes it several"
        return None

    def sampling(self, backend: str, mode: str) -> int:
        # A program of a formula takes XLA 0.8 s, and vmap 0.3 s for what is new in it.
        compiles = {"jit": 11, "sharded": 11, "vmap": 3 if backend == "reference" else 1}
        return compiles.get(mode, 1)

    def forget_compiled(self) -> None:
        import jax

        jax.clear_caches()

    def key(self, x: Any) -> Any:
        import jax

        # What integers become, and whether values may be looked at, is part of a plan.
        wide = jax.config.jax_enable_x64
        return x.shape, x.dtype, wide, self.is_concrete(x), self.on_host(x), self.on_cuda(x)

    def is_concrete(self, x: Any) -> bool:
        import jax

        return not isinstance(x, jax.core.Tracer)

    def on_host(self, x: Any) -> bool:
        from normx_jax import _primitives

        return _primitives.on_host(x)

    def on_cuda(self, x: Any) -> bool:
        # What is traced becomes a program of XLA's, by the formula.
        from normx_jax import _primitives

        return self.is_concrete(x) and _primitives.on_cuda(x)

    def is_followed(self, x: Array) -> bool:
        return not self.is_concrete(x)

    def at_hand(self, arrays: Sequence[Array]) -> bool:
        from jax.core import Tracer

        return not any(isinstance(array, Tracer) for array in arrays)

    def staged(self, kernel: StagedKernel, *operands: Array) -> tuple[Array, ...]:
        from normx_jax import _primitives

        return _primitives.staged(kernel, *operands)

    def host_view(self, x: Array) -> Array:
        import numpy as np

        return np.asarray(x)

    def host_empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        from normx_jax import _host

        return _host.empty(shape, dtype)

    def host_adopt(self, fresh: Array) -> Array:
        from normx_jax import _host

        return _host.adopt(fresh)

    def dtype(self, name: str) -> Any:
        import jax

        if name == "float64" and not jax.config.jax_enable_x64:
            raise AttributeError("float64 needs jax_enable_x64")
        return super().dtype(name)

    def asarray(self, value: Any, dtype: str, like: Array) -> Array:
        return self.namespace().asarray(value, dtype=self.dtype(dtype), device=self._one(like))

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Array) -> Array:
        return self.namespace().full(shape, value, dtype=self.dtype(dtype), device=self._one(like))

    def _one(self, like: Array) -> Any:
        """The device of an array; None if it has several, which a number need not be cut for."""
        from jax import Device

        device = self.device(like)
        return device if isinstance(device, Device) else None

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

    def in_turn(self, f: Callable[[Any], Array], numbers: range) -> Array:
        import jax

        parts = jax.lax.map(f, jax.numpy.arange(numbers.start, numbers.stop, numbers.step))
        parts = jax.numpy.moveaxis(parts, 0, -3)
        return parts.reshape(*parts.shape[:-3], -1, parts.shape[-1])

    def recomputed(self, f: Callable[..., Array]) -> Callable[..., Array]:
        import jax

        computed: Callable[..., Array] = jax.checkpoint(f)
        return computed

    def in_case(self, condition: Array, f: Callable[[], Array]) -> Array | None:
        import jax

        if self.is_concrete(condition):
            return super().in_case(condition, f)
        nothing = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), jax.eval_shape(f))
        # Under vmap a branch would be taken always, and thrown away; a loop stops for all.
        _, found = jax.lax.while_loop(
            lambda state: state[0],
            lambda state: (jax.numpy.zeros_like(state[0]), f()),
            (condition, nothing),
        )
        return found

    def device(self, x: Any) -> Any:
        # A tracer has no device, and only XLA knows where it will run.
        return super().device(x) if self.is_concrete(x) else None


library = JaxLibrary("jax", _namespace)
