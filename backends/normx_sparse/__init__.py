"""sparse: arrays that store the entries which differ from a fill value.

What is missing is -inf: left out, with weight 0.  Refused is whatever would give these
entries other values than one for all: parameters besides the temperature, softcap, and equal
weights for empty rows (``empty="uniform"``); and records that negate scores or add noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normx._libraries import ArrayAPILibrary, numpy_library
from normx._plan import Plan


def _namespace() -> Any:
    import sparse

    return sparse


class SparseLibrary(ArrayAPILibrary):
    """sparse.COO whose missing entries are -inf: left out, with weight 0."""

    def key(self, x: Any) -> Any:
        return x.shape, x.dtype, str(x.fill_value)

    def check(self, x: Any, argument: str = "x") -> str | None:
        if argument != "x" or x.fill_value == -np.inf:
            return None
        return (
            f"a sparse array with fill value {x.fill_value}, whose weights would not be sparse; "
            "pass x.todense(), or make the missing entries -inf (fill_value=-numpy.inf)"
        )

    def dtype(self, name: str) -> Any:
        return numpy_library.dtype(name)

    def from_numpy(self, x: Any) -> Any:
        missing = False if x.dtype == bool else x.dtype.type(-np.inf)
        return self.namespace().COO.from_numpy(x, fill_value=missing)

    def to_numpy(self, x: Any) -> Any:
        return x.todense() if hasattr(x, "todense") else np.asarray(x)

    def unsupported(self, plan: Plan) -> str | None:
        changes = sorted(plan.parameters - {"temperature"})
        changes += ["softcap"] if plan.softcap is not None else []
        changes += ["empty='uniform'"] if plan.empty == "uniform" else []
        if changes:
            return (
                "a sparse array has one fill value, and its missing entries get other values "
                f"with {', '.join(changes)}; pass x.todense()"
            )
        if plan.record.negated or plan.record.random:
            return "what is missing is -inf here and would not be left out; pass x.todense()"
        return None


library = SparseLibrary("sparse", _namespace)
