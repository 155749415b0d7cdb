"""The plugin: which plans the compiled kernels take, and how they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normx._plan import Plan
from normx.plugins import Backend, Call, Refusal

try:
    from normx_native import _core
except ImportError as error:
    _core = None  # type: ignore[assignment]
    _missing = f"the compiled part is not installed ({error})"

Array = Any


class NativeBackend(Backend):
    """SIMD kernels for arrays in host memory."""

    name = "native"

    def unusable(self) -> str | None:
        return _missing if _core is None else None

    def description(self) -> str:
        return f"SIMD kernels for {_core.target()}, {_core.num_threads()} threads"

    def targets(self) -> Sequence[str]:
        return tuple(name for name, compiled, supported in _core.targets() if compiled and supported)

    def num_threads(self) -> int:
        return int(_core.num_threads())

    def set_num_threads(self, count: int) -> None:
        _core.set_num_threads(count)

    def implementation(self, plan: Plan) -> Call | Refusal:
        if plan.library.name != "numpy":
            return Refusal(f"reads NumPy arrays, not yet those of {plan.library.name}")
        name = plan.record.name
        if not any(op == name and dtype == plan.dtype for op, dtype, _ in _core.kernels()):
            return Refusal(f"has no kernel for {name} of {plan.dtype}")
        extra = sorted(plan.parameters | {flag for flag in ("return_sign",) if plan.flags.get(flag)})
        if plan.softcap is not None:
            extra.append("softcap")
        if extra:
            return Refusal(f"its {name} has no {' and no '.join(extra)}")
        run = _core.Call(
            name,
            plan.dtype,
            plan.shape,
            plan.axis,
            has_where=plan.where is not None,
            empty=plan.empty,
            algorithm=_algorithm,
        ).run
        shape, dtype, masked = plan.result_shape, plan.library.dtype(plan.dtype), plan.where is not None
        empty = np.empty

        def call(
            x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
        ) -> tuple[Array, str]:
            if out is None:
                out = empty(shape, dtype)
            if masked:
                return out, run(x, out, np.broadcast_to(where, x.shape))
            return out, run(x, out)

        return call


_algorithm = "auto"

backend = NativeBackend()
