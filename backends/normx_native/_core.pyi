from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any

def kernels() -> list[tuple[str, str, str]]: ...
def programs() -> list[tuple[str, str, str]]: ...
def targets() -> list[tuple[str, bool, bool]]: ...
def target() -> str: ...
def set_target(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(k: int) -> None: ...

large_result: int

def empty(shape: tuple[int, ...], dtype: Any) -> Any: ...
def cache_memory() -> int: ...
def cache_limit() -> int: ...
def set_cache_limit(size: int) -> None: ...
def clear_cache() -> None: ...

class Compiled: ...

class CallCache:
    def __init__(
        self,
        kind: type,
        context: Sequence[ContextVar[Any]],
        watches: Sequence[Callable[[], Any]],
        variables: Sequence[tuple[ModuleType, str, Any]],
        marks: Sequence[str],
        takes_out: bool = True,
    ) -> None: ...
    def run(self, x: Any, keywords: dict[str, Any]) -> Any: ...
    def keep(
        self,
        keywords: dict[str, Any],
        call: Compiled,
        dtype: str,
        shape: tuple[int, ...],
        result_shape: tuple[int, ...],
    ) -> None: ...

class Call(Compiled):
    def __init__(
        self,
        op: str,
        dtype: str,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        *,
        has_where: bool = False,
        empty: str = "zero",
        algorithm: str = "auto",
    ) -> None: ...
    def run(self, x: Any, out: Any, where: Any = None) -> str: ...

most_k: int

vjps: list[str]

def vjp(function: str, x: Any, y: Any, dy: Any, dx: Any) -> str: ...
def xla_handler() -> Any: ...
def xla_calls() -> int: ...
def softmax_topk(x: Any, values: Any, indices: Any) -> str: ...

class RowsCall(Compiled):
    def __init__(
        self,
        program: str,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        *,
        backward: bool = False,
        gives_up_empty: bool = False,
        softcap: float = 0.0,
        constants: list[float] = ...,
        numbers: list[float | None] = ...,
    ) -> None: ...
    def run(
        self,
        x: Any,
        y: Any,
        flag: Any,
        *,
        where: Any = None,
        g: Any = None,
        result: Any = None,
        temperature: Any = None,
        sink: Any = None,
        parameters: list[Any] = ...,
        dtemperature: Any = None,
        dsink: Any = None,
        dparameters: list[Any] = ...,
    ) -> str: ...
