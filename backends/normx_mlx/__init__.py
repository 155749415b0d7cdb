"""MLX: where mlx.core arrays live."""

from __future__ import annotations

from typing import Any

import numpy as np

from normx import _arithmetic as arithmetic
from normx._libraries import ArrayAPILibrary, numpy_library
from normx._plan import Plan
from normx.plugins import Call


def _namespace() -> Any:
    from normx_mlx import _mlx

    return _mlx


class MLXLibrary(ArrayAPILibrary):
    """mlx.core.array, on whichever stream is the default."""

    preference = ("native", "mlx", "reference")
    arithmetic = "float32"
    mutable = True
    flushes_subnormals = True

    def key(self, x: Any) -> Any:
        return x.shape, x.dtype, self.on_host(x)

    def on_host(self, x: Any) -> bool:
        # Memory is unified, and a lazy array is evaluated when a kernel is about to read it.
        import mlx.core as mx

        return bool(mx.default_device() == mx.cpu)

    def is_followed(self, x: Any) -> bool:
        # On a GPU kernels are a part of the graph, and have their gradients there.
        return self.on_host(x)

    def in_reach(self, x: Any) -> bool:
        return self.is_concrete(x)

    def host_view(self, x: Any) -> Any:
        from normx_mlx import _host

        return _host.view(x)

    def host_empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        from normx_mlx import _host

        return _host.empty(shape, dtype)

    def host_adopt(self, fresh: Any) -> Any:
        from normx_mlx import _host

        return _host.adopt(fresh)

    def entered(self, plan: Plan, backend: str, call: Call) -> Call:
        from normx_mlx import _gradients

        return _gradients.differentiable(plan, backend, call)

    def is_concrete(self, x: Any) -> bool:
        try:
            self.namespace().eval(x)
        except ValueError:  # inside compile, vmap or grad
            return False
        return True

    def dtype(self, name: str) -> Any:
        import mlx.core as mx

        if name == "float64" and mx.default_device() != mx.cpu:
            raise AttributeError("float64 needs the CPU as MLX's default device")
        return super().dtype(name)

    def asarray(self, value: Any, dtype: str, like: Any) -> Any:
        return self.namespace().asarray(value, dtype=self.dtype(dtype))

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Any) -> Any:
        return self.namespace().full(shape, value, dtype=self.dtype(dtype))

    def rng(self, seed: int) -> Any:
        import mlx.core as mx

        return mx.random.key(seed)

    def copy_of_rng(self, rng: Any) -> Any:
        return rng  # keys are values

    def check_rng(self, rng: Any) -> str | None:
        import mlx.core as mx

        is_key = isinstance(rng, mx.array) and rng.dtype == mx.uint32 and rng.shape == (2,)
        return None if is_key else "a key of mlx.core.random"

    def uniform(self, rng: Any, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        import mlx.core as mx

        steps = mx.random.randint(0, 2**23, shape, dtype=mx.int32, key=rng)
        return (steps.astype(self.dtype(dtype)) + 0.5) / 2.0**23

    def stop_gradient(self, x: Any) -> Any:
        import mlx.core as mx

        return mx.stop_gradient(x)

    def from_numpy(self, x: Any) -> Any:
        # Without a dtype, float64 would become float32, as it has to on a GPU.
        try:
            return self.namespace().array(x, dtype=self.dtype(x.dtype.name))
        except AttributeError:
            return self.namespace().array(x)

    def to_numpy(self, x: Any) -> Any:
        if x.dtype == self.namespace().bfloat16:  # no buffer format stands for it
            return numpy_library.cast(np.asarray(self.cast(x, "float32")), "bfloat16")
        return np.asarray(x)

    def device(self, x: Any) -> Any:
        # Memory is unified: an array belongs to no device, an operation does.
        return "mlx"

    def accurate_sum(self, x: Any, axis: tuple[int, ...]) -> Any:
        # float64 exists on CPU streams only; the result must not depend on the stream.
        return arithmetic.compensated_sum(self.namespace(), x, axis)

    def spectral_norm(self, a: Any) -> Any:
        mx = self.namespace()
        # Which the CPU alone can; memory is shared.
        return mx.linalg.svd(a, compute_uv=False, stream=mx.cpu)[..., 0]


library = MLXLibrary("mlx", _namespace)
