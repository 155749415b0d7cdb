"""A call of normx is one operation to torch's compiler, which does not go through its code.

Where it does, no library is found for a tensor, so that all is left to the function for calls of
a new form (`normx._dispatch.called`); and that one it puts into its graph.  The functions of
`normx.attention` go there whole.
"""

from __future__ import annotations

import inspect

import torch

from normx import _dispatch, attention

torch.compiler.allow_in_graph(_dispatch.called)
for _, function in inspect.getmembers(attention, inspect.isfunction):
    torch.compiler.allow_in_graph(function)
torch.compiler.substitute_in_graph(_dispatch._cache_of)(lambda kept, kind: None)
torch.compiler.substitute_in_graph(_dispatch._library_of_type)(lambda kind: None)

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
