"""A call of normx is one operation to torch's compiler, which does not go through its code.

Where it does, no library is found for a tensor, so that all is left to the function for calls of
a new form (`normx._dispatch.called`); and that one it puts into its graph.  The functions of
`normx.attention` go there whole, and what `normx.vjp` returns is one operation more.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from normx import _dispatch, _vjp, attention
from normx._record import record_of


def _pulled(name: str, x: Tensor, y: Tensor, dy: Tensor, params: dict[str, Any]) -> Any:
    record = record_of(name)
    gradients = _vjp.pullback_of(record, x, y, params)(dy)
    return tuple(gradients[name] for name in _vjp.names_of(record, params))


def _traced_vjp(f: Any, x: Any, /, *args: Any, **params: Any) -> Any:
    own = getattr(f, "vjp", None)
    if own is not None:
        return own(x, *args, **params)
    record = record_of(f)
    _vjp.check(record, args, params)
    y = record.function(x, **params)
    names = _vjp.names_of(record, params)

    def pullback(dy: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, _pulled(record.name, x, y, dy, params), strict=True))

    return y, pullback


torch.compiler.allow_in_graph(_dispatch.called)
torch.compiler.allow_in_graph(_pulled)
for _, function in inspect.getmembers(attention, inspect.isfunction):
    torch.compiler.allow_in_graph(function)
torch.compiler.substitute_in_graph(_dispatch._cache_of)(lambda kept, kind: None)
torch.compiler.substitute_in_graph(_dispatch._library_of_type)(lambda kind: None)
torch.compiler.substitute_in_graph(_vjp.vjp)(_traced_vjp)

_inside = torch._guards.CompileContext.try_get() is not None


def start_again() -> None:
    """Start the compiler once more where it was on its way through when this was loaded."""
    global _inside  # noqa: PLW0603  # a module is loaded once
    if _inside:
        from torch._dynamo.exc import SpeculationRestartAnalysis
        from torch._dynamo.symbolic_convert import InstructionTranslator

        _inside = False
        # It holds what it goes through against its log, and now goes elsewhere.
        InstructionTranslator.current_tx().speculation_log.clear()
        raise SpeculationRestartAnalysis(restart_reason="normx was not loaded yet")
