"""The plugin: kernels of normx_gpu on the GPU that MLX has, by Metal or by CUDA."""

from __future__ import annotations

import platform
import sys
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec

from normx._plan import Plan
from normx.plugins import Backend, Call, Pullback, Refusal, TopKCall

#: MLX's distributions that have CUDA.
_WITH_CUDA = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")


class MLXBackend(Backend):
    """Metal or CUDA kernels in MLX's graph."""

    name = "mlx"

    def unusable(self) -> str | None:
        if find_spec("mlx") is None:
            return "MLX is not installed: pip install mlx"
        if _is_apple():
            return None
        return _nvrtc_unusable() if _has_cuda() else "there is no Metal here, and no CUDA in MLX"

    def description(self) -> str:
        return "Metal or CUDA kernels, a part of MLX's graph"

    def implementation(self, plan: Plan) -> Call | Refusal:
        refused = _elsewhere(plan)
        if refused is not None:
            return refused
        from normx_mlx import _kernels

        return _kernels.forward(plan)

    def gradient(self, plan: Plan) -> Pullback | Refusal:
        refused = _elsewhere(plan)
        if refused is not None:
            return refused
        from normx_mlx import _kernels

        return _kernels.backward(plan)

    def topk(self, plan: Plan, k: int) -> TopKCall | Refusal:
        refused = _elsewhere(plan)
        if refused is not None:
            return refused
        from normx_mlx import _kernels

        return _kernels.topk(plan, k)


def _is_apple() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


@cache
def _has_cuda() -> bool:
    return any(found for name in _WITH_CUDA for found in distributions(name=name))


def _nvrtc_unusable() -> str | None:
    from normx_gpu import nvrtc

    return nvrtc.unusable()


def _elsewhere(plan: Plan) -> Refusal | None:
    if plan.library.name != "mlx":
        return Refusal(f"is for arrays of MLX, not of {plan.library.name}")
    if plan.on_host:
        return Refusal("runs on a GPU, and MLX's default device is the CPU")
    if plan.dtype == "float64":
        return Refusal("has no float64 on a GPU")
    import mlx.core as mx

    found = mx.metal.is_available() or mx.cuda.is_available()
    return None if found else Refusal("finds neither Metal nor CUDA in this MLX")


backend = MLXBackend()
