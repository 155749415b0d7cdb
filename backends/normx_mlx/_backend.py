"""The plugin: kernels of normx_gpu on Metal."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec

from normx._plan import Plan
from normx.plugins import Backend, Call, Pullback, Refusal


class MLXBackend(Backend):
    """Metal kernels in MLX's graph.

    Where MLX has CUDA the formula runs: what `mx.fast.cuda_kernel` compiles has no bound on
    registers, so that blocks of 1024 threads may not fit, and fuses products into sums.
    """

    name = "mlx"

    def unusable(self) -> str | None:
        if find_spec("mlx") is None:
            return "MLX is not installed: pip install mlx"
        return None if _is_apple() else "there is no Metal here"

    def description(self) -> str:
        return "Metal kernels, a part of MLX's graph"

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


def _is_apple() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def _elsewhere(plan: Plan) -> Refusal | None:
    if plan.library.name != "mlx":
        return Refusal(f"is for arrays of MLX, not of {plan.library.name}")
    if plan.on_host:
        return Refusal("runs on a GPU, and MLX's default device is the CPU")
    if plan.dtype == "float64":
        return Refusal("has no float64 on a GPU")
    import mlx.core as mx

    return None if mx.metal.is_available() else Refusal("finds no Metal in this MLX")


backend = MLXBackend()
