"""The tables of the largest errors in docs/accuracy.md; `nox -s accuracy` writes them there.

For every function, dtype and CPU target: the worst of all samples of the conformance suite,
against the exact results that the suite takes.  Long double has to be wider than double, so
this is for x86.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import normx
from normx._dispatch import backend, library
from normx._libraries import numpy_library
from normx._plan import FLOATS
from normx._record import Record, registry
from normx.plugins import Backend
from normx.testing.conformance import errors, expected
from normx.testing.plugin import Case
from normx.testing.samples import samples

#: The reference, which has no targets, and those of the compiled backend.
REFERENCE, NATIVE = "reference", "native"


def places() -> dict[str, tuple[str, str | None]]:
    """The columns: backend and target by heading."""
    native = backend(NATIVE)
    assert isinstance(native, Backend), native.reason
    return {REFERENCE: (REFERENCE, None)} | {name: (NATIVE, name) for name in native.targets()}


def worst(record: Record, dtype: str) -> Iterator[float | None]:
    """The largest error of a function in each place; None where it does not compute it."""
    cases = [
        Case(record, library("numpy"), name, "eager", target) for name, target in places().values()
    ]
    found: list[float | None] = [0.0 if _computes(case, dtype) else None for case in cases]
    for sample in samples():
        if not set(sample.keywords) <= set(record.keywords):
            continue
        with np.errstate(over="ignore"):  # in half precision the largest scores are infinite
            x = numpy_library.cast(sample.rows, dtype)
        exact = expected(cases[0], x, **sample.keywords)
        for i, case in enumerate(cases):
            so_far = found[i]
            if so_far is not None:
                got = case.values(x, axis=-1, **sample.keywords)
                found[i] = max(so_far, float(errors(case, got, exact, dtype).max()))
    yield from found


def _computes(case: Case, dtype: str) -> bool:
    x = numpy_library.cast(np.zeros((2, 3)), dtype)
    asked = normx.explain(case.record.name, x, backend=case.backend, **case.record.example)
    return bool(asked.candidates[0].taken)


def main() -> None:
    """Print a table per dtype, as Markdown."""
    assert np.finfo(np.longdouble).nmant >= 63, "long double is no wider than double here"
    records = [record for record in registry().values() if not record.random]
    for dtype in reversed(FLOATS):
        print(f"\n### {dtype}\n")
        print(f"| function | budget | {' | '.join(places())} |")
        print(f"|---|{'---:|' * (1 + len(places()))}")
        for record in records:
            shown = ("–" if error is None else f"{error:.2f}" for error in worst(record, dtype))
            print(f"| {record.name} | {record.ulp[dtype]:g} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
