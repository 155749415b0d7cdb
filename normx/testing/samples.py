"""Rows that find errors: lengths around every vector width, spreads, offsets, extremes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of scores in float64, and the options they are meant for."""

    name: str
    rows: Array
    keywords: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


#: One around every vector, block and unrolled loop; a prime; beyond a chunk.
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 257)


def random_rows(n: int, rows: int = 3, spread: float = 1.0, seed: int = 0) -> Array:
    """Normal scores, the same on every call."""
    return np.random.default_rng([n, rows, seed]).normal(0.0, spread, (rows, n))


def samples() -> Iterator[Sample]:
    """Rows of finite scores, for comparison with the oracle."""
    for n in LENGTHS:
        yield Sample(f"n{n}", random_rows(n))
    for spread in (0.01, 10.0, 100.0):
        yield Sample(f"spread{spread:g}", random_rows(257, 4, spread))
    for offset in (1e2, -1e2, 4095.9, 4096.1, -4096.0, 1e6, -1e6):
        yield Sample(f"offset{offset:g}", random_rows(129, 3, 4.0) + offset)
    yield Sample("long", random_rows(20_000, 2, 3.0))
    yield Sample("peaked", np.array([[50.0, 0.0, -3.0], [0.0, 16.5, -16.5], [1e-3, 90.0, 45.0]]))
    yield Sample("equal", np.full((2, 300), 0.7))
    # Where a polynomial of the entropy is a small difference of large terms, and its error shows.
    level = random_rows(381, 4, 0.3)
    level[:, 5:60:18] -= 80.0
    yield Sample("level", level)
    yield Sample("subnormal", np.array([[0.0, -100.0, -103.0], [0.0, -87.4, -95.5]]))
    yield Sample("extremes", np.array([[6e4, -6e4, 0.0], [-6e4, -6e4, -6e4]]))
    yield Sample("golden", np.array([[1.0, 2.0, 3.0, -1.0]]))
    yield Sample("temperature", random_rows(65, 3, 20.0), {"temperature": 0.3})
    yield Sample("hot", random_rows(65, 3, 20.0), {"temperature": 7.0})
    # Distances that only the temperature makes small.
    yield Sample("distant", random_rows(65, 3, 1500.0), {"temperature": 100.0})


def special_rows() -> Array:
    """Rows with infinities and NaN, each beside ordinary ones."""
    inf, nan = np.inf, np.nan
    return np.array(
        [
            [0.5, -1.0, 2.0, 0.0, 1.0],
            [-inf, -inf, -inf, -inf, -inf],
            [inf, 0.0, inf, -inf, 1.0],
            [nan, 0.0, 1.0, 2.0, 3.0],
            [-inf, 0.0, -inf, 1.0, 0.0],
            [inf, nan, 0.0, 0.0, 0.0],
            [-inf, -inf, -inf, -inf, nan],
            [inf, inf, inf, inf, inf],
            [-0.0, 0.0, -0.0, 0.0, 0.0],
            [1.0, 1.0, 1.0, 1.0, 1.0],
        ]
    )
