"""The pytest plugin: which cases the suite runs, and proof that they ran.

A case is a record on a library, computed by a backend in a mode on a CPU target.
``--library`` and ``--backend`` choose; what was asked for and cannot be had is an
error, never a silent skip.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest

from normx import _dispatch as dispatch
from normx._libraries import numpy_library
from normx._record import Record, registry
from normx.plugins import Backend, Library, Refusal
from normx.testing.outcomes import CELL, Outcomes

Array = Any


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the matrix."""

    record: Record
    library: Library
    backend: str
    mode: str
    target: str | None

    def __str__(self) -> str:
        target = f"[{self.target}]" if self.target else ""
        return f"{self.record.name}-{self.library.name}-{self.backend}{target}-{self.mode}"

    def array(self, values: Array, dtype: str | None = None) -> Array:
        """NumPy values as an array of the library."""
        values = np.asarray(values)
        if dtype is not None:
            values = numpy_library.cast(values, dtype)
        return self.library.from_numpy(values)

    def has(self, dtype: str) -> bool:
        """Whether the library has a dtype here."""
        try:
            self.library.dtype(dtype)
        except AttributeError:
            return False
        try:
            made = self.array(np.zeros(2, np.float32), dtype)
        except (TypeError, ValueError):  # NumPy's arrays of that dtype cannot be taken over
            return False
        return self.library.has_dtype(made, dtype)

    def run(self, x: Array, /, **keywords: Any) -> Array:
        """Call the function, prove that the backend under test ran, return the library's array."""
        keywords = {**self.record.example, **keywords}
        with self.forced(), dispatch.trace() as ran:
            f = partial(self.record.function, backend=self.backend, **keywords)
            y = self.library.modes()[self.mode](f)(x)
        (event,) = set(ran)  # of a formula, a compiler may tell more than once
        assert event.function == self.record.name and event.backend == self.backend, event
        assert self.target in (None, event.target), f"{event} instead of target {self.target}"
        return y

    def forced(self) -> AbstractContextManager[Any]:
        """A block in which the target under test is the one that runs."""
        found = dispatch.backend(self.backend)
        assert isinstance(found, Backend)
        return found.use_target(self.target) if self.target else nullcontext()

    def values(self, x: Array, /, **keywords: Any) -> Array:
        """As `run`, on NumPy values: NumPy values come back."""
        keywords = {
            k: self.array(v) if isinstance(v, np.ndarray) else v for k, v in keywords.items()
        }
        y = self.run(self.array(x), **keywords)
        if isinstance(y, tuple):
            return tuple(self.library.to_numpy(part) for part in y)
        return self.library.to_numpy(y)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("normx")
    group.addoption(
        "--library", action="append", help="array library to test; repeatable (default: numpy)"
    )
    group.addoption(
        "--backend", action="append", help="backend to test; repeatable (default: all that apply)"
    )
    group.addoption(
        "--target",
        action="append",
        help="variant of a backend to test, or 'best'; repeatable (default: all that run here)",
    )
    group.addoption(
        "--outcomes", metavar="FILE", help="gather the outcomes of several runs, for one table"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers report to one that counts
        config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turns: dict[tuple[str, str], Iterator[int]] = defaultdict(count)
    for item in items:
        called: Any = getattr(item, "callspec", None)
        case = called and called.params.get("case")
        if not isinstance(case, Case):
            continue
        cell = f"{case.library.name} {case.backend} {case.mode}"
        item.user_properties.append((CELL, cell))
        reason = case.library.left_out(case.record, case.backend, case.mode)
        every = case.library.sampling(case.backend, case.mode)
        # By turns over all that differs: each function gets its share of the rows and dtypes.
        if reason is None and next(turns[item.nodeid.partition("[")[0], cell]) % every:
            reason = f"{cell}: each case compiles a program; one in {every} is run"
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason))


def _libraries(config: pytest.Config) -> list[Library]:
    names = config.getoption("--library") or ["numpy"]
    found = []
    for name in names:
        root = name.replace("-", "_")
        if root in dispatch.library_names():
            found.append(dispatch.library(root))
        else:
            namespace = pytest.importorskip(root)
            generic = dispatch.library_of(namespace.asarray(1.0))
            assert generic is not None, f"{name} does not speak the array API"
            found.append(generic)
    return found


def _cases(config: pytest.Config) -> Iterator[Case]:
    asked = config.getoption("--backend")
    for name in asked or ():
        found = dispatch.backend(name)
        if isinstance(found, Refusal):
            raise pytest.UsageError(
                f"backend {name!r} was asked for and is not usable: {found.reason}"
            )
    for record in registry().values():
        if record.random:
            continue  # see its own tests
        for library in _libraries(config):
            for name in library.preference:
                if asked and name not in asked:
                    continue
                if name not in dispatch.backend_names():
                    continue
                found = dispatch.backend(name)
                if isinstance(found, Refusal) or not _computes(name, record, library):
                    continue
                # What is computed later runs on whatever target there is then.
                lazy = not library.is_concrete(library.from_numpy(np.zeros(1)))
                for mode in library.modes():
                    for target in [None] if lazy else _targets(config, found):
                        yield Case(record, library, name, mode, target)


def _targets(config: pytest.Config, backend: Backend) -> Sequence[str | None]:
    """The variants to force, in rising order; None for a backend that has none."""
    every = backend.targets()
    asked = config.getoption("--target") or every
    chosen = [name for name in every if name in asked or ("best" in asked and name == every[-1])]
    return chosen if every else [None]


def records_of(backend: str, library: Library) -> list[str]:
    """Names of the functions that a backend has, but for the random ones."""
    return [
        name
        for name, record in registry().items()
        if not record.random and _computes(backend, record, library)
    ]


def _computes(backend: str, record: Record, library: Library) -> bool:
    """Whether a backend has the function at all; see `normx.capabilities`."""
    x = library.from_numpy(np.zeros((2, 3), np.float32))
    asked = dispatch.explain(record.function, x, backend=backend, **record.example_for(library))
    return asked.candidates[0].taken


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = list(_cases(metafunc.config))
        if not cases:
            raise pytest.UsageError("no backend and library fit --backend and --library")
        wanted: Callable[[Case], bool] = getattr(metafunc.function, "applies_to", lambda case: True)
        cases = [case for case in cases if wanted(case)]
        if "law" in metafunc.fixturenames:
            pairs = [(case, law) for case in cases for law in case.record.laws]
            metafunc.parametrize("case,law", pairs, ids=[f"{case}-{law}" for case, law in pairs])
        else:
            metafunc.parametrize("case", cases, ids=str)


#: After so many tests a library forgets what it compiled: JAX's programs of one test take up to
#: tens of megabytes, and what the next ones share takes seconds to compile again.
_TESTS_BETWEEN = 200
_tests = count(1)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    called: Any = getattr(item, "callspec", None)
    case = called and called.params.get("case")
    if isinstance(case, Case) and next(_tests) % _TESTS_BETWEEN == 0:
        case.library.forget_compiled()


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = []
    for name in dispatch.backend_names():
        found = dispatch.backend(name)
        if isinstance(found, Refusal):
            lines.append(f"normx backend {name}: not usable: {found.reason}")
        else:
            targets = f" (targets {', '.join(found.targets())})" if found.targets() else ""
            lines.append(f"normx backend {name}: {found.description()}{targets}")
    return lines
