"""The operators through which torch differentiates, compiles, maps and fakes a backend's calls.

There is one for the calls and one for their gradients, whatever the function: which one it is,
and its options, are a string (`Form`), so that a compiled graph says by itself what it computes,
in another process too.  Both take the scores, the mask, and a list of other tensors: the
parameters, and for gradients the result and the cotangent after them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from normx import plugins
from normx._dispatch import backend, caches, implementation, library, traced
from normx._plan import Plan
from normx._record import record_of
from normx._reference import gradients_of, reference_backend
from normx._vjp import shaped_as
from normx.plugins import Call, Pullback, Refusal, dtype_name

#: Types of tensors that are nothing but memory.
PLAIN = frozenset({Tensor, torch.nn.Parameter})
modes = torch._C._len_torch_dispatch_stack
scripting = torch._C._is_tracing  # as torch.jit.trace does
transformation = torch._C._functorch.peek_interpreter_stack


def watched() -> bool:
    """Whether torch follows what is done to tensors: a tracer, a transformation, a mode."""
    return (
        transformation() is not None or modes() > 0 or scripting() or forward_ad._current_level >= 0
    )


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    return all(type(x) in PLAIN for x in tensors)


class Form(NamedTuple):
    """What a plan says besides shapes and dtypes: a string's content."""

    function: str
    backend: str
    #: Counted from the last, so that further axes may come in front.
    axis: tuple[int, ...]
    empty: str
    softcap: float | None
    constants: Mapping[str, Any]
    #: The parameters that are numbers, and the names of those that are tensors.
    numbers: Mapping[str, float]
    tensors: tuple[str, ...]

    def parameters(self, tensors: Sequence[Tensor]) -> Mapping[str, Any]:
        """All parameters by name."""
        if not self.tensors:
            return self.numbers
        return {**self.numbers, **dict(zip(self.tensors, tensors, strict=True))}

    def result_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the result for scores of a shape."""
        if record_of(self.function).kind == "normalizer":
            return tuple(shape)
        return tuple(size for i, size in enumerate(shape) if i - len(shape) not in self.axis)


def form_of(plan: Plan, by: str, parameters: Mapping[str, Any]) -> str:
    """The form of a call of a plan, as a string."""
    tensors = tuple(name for name, value in parameters.items() if isinstance(value, Tensor))
    numbers = {name: value for name, value in parameters.items() if name not in tensors}
    axis = tuple(i - len(plan.shape) for i in plan.axis)
    form = Form(
        plan.record.name, by, axis, plan.empty, plan.softcap, plan.constants, numbers, tensors
    )
    return json.dumps(form)


@lru_cache(maxsize=1024)
def _read(text: str) -> Form:
    function, by, axis, empty, softcap, constants, numbers, tensors = json.loads(text)
    constants = {k: tuple(v) if isinstance(v, list) else v for k, v in constants.items()}
    return Form(function, by, tuple(axis), empty, softcap, constants, numbers, tuple(tensors))


def _plan(form: Form, x: Tensor, where: Tensor | None) -> Plan:
    return Plan(
        record=record_of(form.function),
        library=library("torch"),
        shape=tuple(x.shape),
        axis=tuple(i + x.ndim for i in form.axis),
        dtype=dtype_name(x.dtype),
        where=None if where is None else tuple(where.shape),
        parameters=frozenset((*form.numbers, *form.tensors)),
        empty=form.empty,
        softcap=form.softcap,
        constants=form.constants,
        on_host=library("torch").on_host(x),
        on_cuda=library("torch").on_cuda(x),
    )


class _Bound(NamedTuple):
    form: Form
    plan: Plan
    call: Call
    #: Who computes the gradients: the same backend where it does, else the formula.
    by: str
    pullback: Pullback | Refusal | None  # None: there is nothing to differentiate


_bound: dict[Any, _Bound] = {}
caches.append(_bound)


def _bind(text: str, x: Tensor, where: Tensor | None) -> _Bound:
    key = text, x.shape, x.dtype, x.device, None if where is None else where.shape
    if (bound := _bound.get(key)) is None:
        form = _read(text)
        plan, chosen = _plan(form, x, where), backend(form.backend)
        call = chosen if isinstance(chosen, Refusal) else implementation(chosen, plan)
        if isinstance(chosen, Refusal) or isinstance(call, Refusal):
            refusal = cast(Refusal, call)
            raise RuntimeError(f"normx.{form.function}: {form.backend}: {refusal.reason}")
        by = form.backend
        pullback: Pullback | Refusal | None = None
        if 0 not in plan.shape:
            pullback = chosen.gradient(plan)
        if isinstance(pullback, Refusal):
            by, pullback = reference_backend.name, reference_backend.gradient(plan)
        bound = _bound[key] = _Bound(form, plan, call, by, pullback)
    return bound


# ---------------------------------------------------------------------------- operators


def _compute(form: str, x: Tensor, where: Tensor | None, others: Sequence[Tensor]) -> Tensor:
    bound = _bind(form, x, where)
    y, kernel = bound.call(x, where, None, bound.form.parameters(others))
    traced(bound.form.function, bound.form.backend, kernel)
    result: Tensor = y
    return result


def _computed(form: str, x: Tensor, where: Tensor | None, others: Sequence[Tensor]) -> Tensor:
    return x.new_empty(_read(form).result_shape(x.shape))


def _pull(form: str, x: Tensor, where: Tensor | None, others: Sequence[Tensor]) -> list[Tensor]:
    bound = _bind(form, x, where)
    read = bound.form
    *tensors, y, dy = others
    if bound.pullback is None:
        return [torch.zeros_like(t) for t in (x, *tensors)]
    if isinstance(bound.pullback, Refusal):
        raise TypeError(f"normx.{read.function}: {bound.pullback.reason}")
    gradients, kernel = bound.pullback(x, where, read.parameters(tensors), y, dy)
    traced(f"vjp({read.function})", bound.by, kernel)
    return _shaped(bound.plan, read, gradients, x, tensors)


def _pulled(form: str, x: Tensor, where: Tensor | None, others: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, *others[:-2])]


def _shaped(
    plan: Plan, form: Form, gradients: Mapping[str, Tensor], x: Tensor, tensors: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients in the order, shapes and dtypes of what they belong to."""

    def shaped(name: str, of: Tensor) -> Tensor:
        gradient = gradients.get(name)
        if gradient is None:
            return torch.zeros_like(of)  # a keyword without a gradient
        if gradient.shape == of.shape and gradient.dtype == of.dtype:
            return gradient
        xp = plan.library.namespace()
        return cast(Tensor, shaped_as(plan.library, xp, gradient, of, dtype_name(of.dtype)))

    return [shaped(name, of) for name, of in zip(("x", *form.tensors), (x, *tensors), strict=True)]


# ----------------------------------------------------------------------- differentiation
#
# What torch keeps of a call are its arguments, flat: form, x, where, *others, and a single result
# after them.  The derivatives of an operator are given by its slopes: from these and the cotangents
# to the gradients of x and of the others.


def _slopes_of_call(
    form: str, x: Tensor, where: Tensor | None, *others: Tensor, cotangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The gradients of x and of the others, by a backend."""
    if not torch.is_grad_enabled() and not watched() and _are_plain((x, *others, *cotangents)):
        return _pull(form, x, where, (*others, *cotangents))
    gradients: Sequence[Tensor] = pullback(form, x, where, *others, *cotangents)
    return gradients


def _formula_of_slopes(
    form: str, x: Tensor, where: Tensor | None, *others: Tensor, cotangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The same in torch's own operations."""
    read, plan = _read(form), _plan(_read(form), x, where)
    gradients = gradients_of(plan, x, where, read.parameters(others), *cotangents)
    return _shaped(plan, read, gradients, x, others)


def _slopes_of_pullback(
    form: str, x: Tensor, where: Tensor | None, *others: Tensor, cotangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Those of the gradients, by their formula, which goes on for as often as is wanted."""
    *tensors, y, dy = others

    def formula(dy: Tensor, x: Tensor, *tensors: Tensor) -> list[Tensor]:
        return list(_formula_of_slopes(form, x, where, *tensors, cotangents=(dy,)))

    _, slopes = torch.func.vjp(formula, dy, x, *tensors)
    ddy, *found = slopes(list(cotangents))
    return *found, torch.zeros_like(y), ddy  # y is no argument: it is what x gave


def _in_front(size: int, dim: int | None, x: Any) -> Any:
    """A mapped argument with the mapped axis in front, where the form does not count it."""
    if not isinstance(x, Tensor):
        return x
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _operator(
    name: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    slopes: Callable[..., Sequence[Tensor]],
    formula: Callable[..., Sequence[Tensor]],
) -> Callable[..., Any]:
    """Register an operator with its derivatives; the way to it, as a function of flat arguments.

    `torch.func` goes through a Function and does not know what is registered with an operator;
    a graph that was exported has the operator alone.  The slopes are given once more in torch's
    own operations.
    """
    operator = torch.library.custom_op(name, run, mutates_args=())
    operator.register_fake(fake)

    class Function(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(form: str, x: Tensor, where: Tensor | None, *others: Tensor) -> Any:
            # The operator is for who follows what happens: it takes ten times the time.
            plain = type(x) in PLAIN and not watched()
            result = (run if plain else operator)(form, x, where, others)
            return tuple(result) if isinstance(result, list) else result

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.form, *tensors = inputs
            ctx.save_for_backward(*tensors, *_single(output))
            ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
            if any(map(torch._C._functorch.is_legacy_batchedtensor, cotangents)):
                raise NotImplementedError(
                    "normx: torch.autograd's own mapping (is_grads_batched, vectorize) has no rule "
                    "for a function of normx; torch.func has: use jacrev, or vmap of vjp"
                )
            dx, *others = slopes(ctx.form, *ctx.saved_tensors, cotangents=cotangents)
            return None, dx, None, *others

        @staticmethod
        def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
            x, where, *others = ctx.saved_tensors
            moves = [
                torch.zeros_like(t) if tangent is None else tangent
                for t, tangent in zip((x, *others), (tangents[0], *tangents[2:]), strict=True)
            ]
            # Gradients are linear in cotangents, and what pulls back through that pushes forward.
            # By the formula, as torch.func does not nest Functions here.
            y = fake(ctx.form, x, where, others)
            zeros = [torch.zeros_like(part) for part in (y if isinstance(y, list) else [y])]
            linear = partial(formula, ctx.form, x, where, *others)
            _, forward = torch.func.vjp(lambda *c: list(linear(cotangents=c)), *zeros)
            pushed = forward(moves)
            return pushed if isinstance(y, list) else pushed[0]

        @staticmethod
        def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
            moved = [_in_front(info.batch_size, d, a) for d, a in zip(dims, arguments, strict=True)]
            result = Function.apply(*moved)
            return result, (0,) * len(result) if isinstance(result, tuple) else 0

    # torch asks for the signature in each call, and it takes longer than the call to find.
    setattr(Function.forward, "__signature__", inspect.signature(Function.forward))  # noqa: B010
    at_once = super(torch.autograd.Function, Function).apply

    def apply(*arguments: Any) -> Any:
        # What torch does without a transformation, but for binding arguments to the signature:
        # 9 us of the 25 that a call with a gradient took.
        if transformation() is None:
            return at_once(*unwrap_dead_wrappers(arguments))
        return Function.apply(*arguments)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.form, x, where, others = inputs
        ctx.save_for_backward(x, where, *others, *_single(output))

    def backward(ctx: Any, cotangent: Any) -> tuple[Any, ...]:
        cotangents = cotangent if isinstance(cotangent, list) else [cotangent]
        dx, *others = slopes(ctx.form, *ctx.saved_tensors, cotangents=cotangents)
        return None, dx, None, others

    def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        *flat, others = arguments
        *flat_dims, other_dims = dims
        result, out = Function.vmap(info, (*flat_dims, *(other_dims or ())), *flat, *others)
        return (list(result), list(out)) if isinstance(result, tuple) else (result, out)

    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_vmap(vmap)
    return apply


def _single(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else ()


#: ``call(form, x, where, *parameters)``: a function of the scores.
call = _operator("normx::call", _compute, _computed, _slopes_of_call, _formula_of_slopes)
#: ``pullback(form, x, where, *parameters, y, dy)``: the gradients of x and of the parameters.
pullback = _operator("normx::pullback", _pull, _pulled, _slopes_of_pullback, _slopes_of_pullback)


class Fused(torch.autograd.Function):  # type: ignore[misc]
    """The kernel of a function of rows, and its pullback."""

    @staticmethod
    def forward(
        ctx: Any, what: plugins.Fused, kernel: plugins.RowKernel, x: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        results = kernel.forward(x.detach())
        ctx.what, ctx.kernel = what, kernel
        ctx.save_for_backward(x, *results)
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[None, None, Tensor]:
        x, *results = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            pairs = zip(ctx.what.formula(x), cotangents, strict=True)
            ys, given = zip(*((y, d) for y, d in pairs if d is not None), strict=True)
            return None, None, torch.autograd.grad(ys, x, given, create_graph=True)[0]
        return None, None, ctx.kernel.pullback(x.detach(), results, cotangents)
