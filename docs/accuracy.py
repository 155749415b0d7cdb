"""The README's accuracy table: errors of float32 softmaxes on one long row.

Needs normx, scipy, torch, jax and mlx.  The exact result is computed in 80-bit extended
precision, so this is for x86.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import mlx.core
import numpy as np
import scipy.special
import torch

import normx

SOFTMAXES: dict[str, Callable[[Any], Any]] = {
    "normx, native": lambda x: normx.softmax(x, backend="native"),
    "normx, reference": lambda x: normx.softmax(x, backend="reference"),
    "SciPy": scipy.special.softmax,
    "JAX": jax.nn.softmax,
    "torch": lambda x: torch.softmax(torch.from_numpy(x), 0),
    "MLX": lambda x: mlx.core.softmax(mlx.core.array(x)),
}


def main() -> None:
    """Print the largest error in ULP per length and library, as Markdown."""
    assert np.finfo(np.longdouble).nmant >= 63, "long double is no wider than double here"
    generator = np.random.default_rng(0)
    print(f"| n | {' | '.join(SOFTMAXES)} |")
    print(f"|{'---:|' * (1 + len(SOFTMAXES))}")
    for exponent in (10, 17, 24):
        x = generator.standard_normal(2**exponent).astype(np.float32) * 4
        e = np.exp(x.astype(np.longdouble) - x.max())
        exact = e / e.sum()
        ulp = np.spacing(exact.astype(np.float32)).astype(np.longdouble)
        errors = [np.max(np.abs(np.asarray(f(x)) - exact) / ulp) for f in SOFTMAXES.values()]
        print(f"| 2^{exponent} | {' | '.join(f'{error:,.1f}' for error in errors)} |")


if __name__ == "__main__":
    main()
