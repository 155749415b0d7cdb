"""The plugin: kernels of normx_gpu on CUDA devices, through CuPy."""

from __future__ import annotations

from typing import Any

from normx._plan import Plan
from normx.plugins import Backend, Call, Losses, Pullback, Refusal, TopKCall
from normx_cupy import _driver

Array = Any


class CuPyBackend(Backend):
    """Raw CUDA kernels, compiled when they are first called, in the caller's stream."""

    name = "cupy"

    def unusable(self) -> str | None:
        return _driver.missing()

    def description(self) -> str:
        return "CUDA kernels, compiled by NVRTC when they are first called"

    def implementation(self, plan: Plan) -> Call | Refusal:
        if not plan.on_cuda:
            return _elsewhere(plan)
        from normx_cupy import _arrays

        return _arrays.forward(plan)

    def gradient(self, plan: Plan) -> Pullback | Refusal:
        if not plan.on_cuda:
            return _elsewhere(plan)
        from normx_cupy import _arrays

        return _arrays.backward(plan)

    def cross_entropy(self, plan: Plan, smoothing: float) -> Losses | Refusal:
        if not plan.on_cuda:
            return _elsewhere(plan)
        from normx_cupy import _arrays

        return _arrays.cross_entropy(plan, smoothing)

    def topk(self, plan: Plan, k: int) -> TopKCall | Refusal:
        if not plan.on_cuda:
            return _elsewhere(plan)
        from normx_cupy import _arrays

        return _arrays.topk(plan, k)


def _elsewhere(plan: Plan) -> Refusal:
    where = f"these arrays of {plan.library.name} are not there"
    return Refusal(f"reads the memory of a CUDA device, and {where}")


backend = CuPyBackend()
