"""Which plans are those of a function as it stands, without what only row programs know."""

from __future__ import annotations

from normx._plan import Plan


def is_plain(plan: Plan) -> bool:
    """Whether no keyword shapes the formula; keepdims shapes the result alone."""
    shaped = any(value for name, value in plan.constants.items() if name != "keepdims")
    if plan.record.at_infinity == "pointwise" and plan.empty != "zero":
        return False  # such a kernel does not ask whether a row is empty
    return not (plan.parameters or plan.softcap is not None or shaped)
