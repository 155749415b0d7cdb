"""PyTorch: where torch tensors live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import array_api_compat.torch
import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from normx._libraries import ArrayAPILibrary, folds, numpy_library
from normx._plan import NARROW, Plan
from normx.plugins import Call, Exchange, Fused, Pullback, dtype_name
from normx_torch import _compiler, _ops

Array = Any

#: What stands for a number in a compiled function, and what makes it one.
_SYMBOLS: dict[type, Callable[[Any], Any]] = {
    torch.SymInt: int,
    torch.SymFloat: float,
    torch.SymBool: bool,
}


def _is_followed(x: Any) -> bool:
    """Whether it is a tensor with more to it than its memory."""
    if type(x) in _ops.PLAIN:
        return bool(x.requires_grad) and torch.is_grad_enabled()
    return isinstance(x, Tensor)


class TorchLibrary(ArrayAPILibrary):
    """torch.Tensor on any device."""

    preference = ("native", "cupy", "reference")
    arithmetic = "float32"
    mutable = True

    def check(self, x: Any, argument: str = "x") -> str | None:
        if x.layout is torch.strided:
            return None
        return f"a tensor of layout {x.layout}; pass x.to_dense()"

    def key(self, x: Any) -> Any:
        # Integers become the default dtype, which is the user's to change.
        dtype = x.dtype
        default = None if dtype.is_floating_point else torch.get_default_dtype()
        return x.shape, dtype, x.device, x.layout, default

    def is_concrete(self, x: Any) -> bool:
        return type(x) in _ops.PLAIN and not x.is_meta and not _ops.watched()

    def is_followed(self, x: Any) -> bool:
        return _is_followed(x) or not self.is_concrete(x)

    def on_host(self, x: Any) -> bool:
        return bool(x.device.type == "cpu")

    def host_view(self, x: Any) -> Any:
        if x.dtype is torch.bfloat16:  # torch and NumPy know this one by different names
            bits = self.host_view(x.resolve_neg().view(torch.int16))
            return bits.view(numpy_library.dtype("bfloat16"))
        return x.numpy(force=x.requires_grad or x.is_neg())

    def host_address(self, x: Any) -> int | None:
        return x.data_ptr() if x.is_contiguous() and not x.is_neg() else None

    def host_adopt(self, fresh: Any) -> Any:
        if fresh.dtype.kind == "V":  # bfloat16
            return torch.from_numpy(fresh.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(fresh)

    def exchange(self) -> Exchange:
        # Wrappers of torch.func, sparse tensors and such have no entry in the exchange.
        return Exchange(
            kinds=_ops.PLAIN if hasattr(Tensor, "__dlpack_c_exchange_api__") else frozenset(),
            watches=(_ops.modes, _ops.scripting),
            variables=((forward_ad, "_current_level", -1),),
            marks=("requires_grad", "is_neg"),
        )

    def on_cuda(self, x: Any) -> bool:
        return bool(x.device.type == "cuda") and torch.version.hip is None  # which says "cuda" too

    def cuda_view(self, x: Any) -> Any:
        return x.detach().resolve_neg()

    def cuda_stream(self, x: Any) -> int | None:
        return int(torch.cuda.current_stream(x.device).cuda_stream)

    def cuda_empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return torch.empty(shape, dtype=self.dtype(dtype), device=torch.device("cuda", device))

    def cuda_adopt(self, fresh: Any) -> Any:
        return torch.from_dlpack(fresh)

    def entered(self, plan: Plan, backend: str, call: Call) -> Call:
        plain, transformation, modes = _ops.PLAIN, _ops.transformation, _ops.modes
        scripting = _ops.scripting
        learning = torch.is_grad_enabled
        form: str | None = None  # the same in every call: numbers are part of what a plan is for

        def either(
            x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
        ) -> tuple[Array, str]:
            # No helpers, no lists: what there is before a small call takes longer than the call.
            if (
                type(x) in plain
                and transformation() is None
                and not modes()
                and not scripting()
                and forward_ad._current_level < 0
                and not (x.requires_grad and learning())
                and not (out is not None and _is_followed(out))
                and not (where is not None and _is_followed(where))
                and not (parameters and any(map(_is_followed, parameters.values())))
            ):
                return call(x, where, out, parameters)
            arrays = [value for value in parameters.values() if isinstance(value, Tensor)]
            nonlocal form
            form = form or _ops.form_of(plan, backend, parameters)
            y = _ops.call(form, x, where, *arrays)
            return (y if out is None else out.copy_(y)), ""

        return either

    def entered_gradient(self, plan: Plan, backend: str, pullback: Pullback) -> Pullback:
        if backend == "reference":  # operations of torch already
            return pullback

        def either(
            x: Array,
            where: Array | None,
            parameters: Mapping[str, Any],
            y: Array | None,
            dy: Array,
        ) -> tuple[dict[str, Array], str]:
            # Noise is as plain as the scores, and had better not be drawn to find that out.
            given = (parameters[name] for name in parameters if name != "uniform")
            tensors = [a for a in (x, where, dy, *given) if isinstance(a, Tensor)]
            if all(map(self.is_concrete, tensors)):
                return pullback(x, where, parameters, y, dy)
            others = {
                name: value
                if isinstance(value, Tensor)
                else self.full((1,) * x.ndim, value, _precision(plan.dtype), x)
                for name, value in parameters.items()
            }
            form = _ops.form_of(plan, backend, others)
            if y is None:
                y = _ops.call(form, x, where, *others.values())
            dx, *rest = _ops.pullback(form, x, where, *others.values(), y, dy)
            return {"x": dx, **dict(zip(others, rest, strict=True))}, ""

        return either

    def fused(self, what: Fused, x: Any) -> tuple[Any, ...] | None:
        if type(x) not in _ops.PLAIN or x.is_meta or _ops.watched():
            return None
        if not (x.requires_grad and torch.is_grad_enabled()):
            return super().fused(what, x.detach())
        kernel = what.kernel()
        return None if kernel is None else _ops.Fused.apply(what, kernel, x)

    def modes(self) -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
            torch.compiler.reset()
            made: Callable[..., Any] = torch.compile(f, backend="aot_eager", fullgraph=True)
            return made

        def mapped(f: Callable[..., Any]) -> Callable[..., Any]:
            # Twice the same, as the suite's options are those of one.
            return lambda x: torch.func.vmap(f)(torch.stack([x, x]))[1]

        return {"eager": lambda f: f, "compile": compiled, "vmap": mapped}

    def rng(self, seed: int) -> Any:
        return torch.Generator().manual_seed(seed)

    def copy_of_rng(self, rng: Any) -> Any:
        return rng.clone_state()

    def check_rng(self, rng: Any) -> str | None:
        return None if isinstance(rng, torch.Generator) else "a torch.Generator"

    def uniform(self, rng: Any, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        bits = 52 if dtype == "float64" else 23
        steps = torch.randint(0, 2**bits, shape, generator=rng, device=rng.device)
        return ((steps.to(self.dtype(dtype)) + 0.5) / 2.0**bits).to(like.device)

    def recomputed(self, f: Callable[..., Any]) -> Callable[..., Any]:
        # Function transforms, and compilers, have no place for what checkpoints hook into.
        if not torch.is_grad_enabled() or _ops.watched() or _ops.transformation() is not None:
            return f
        return partial(checkpoint, f, use_reentrant=False, preserve_rng_state=False)

    def stop_gradient(self, x: Any) -> Any:
        return x.detach()

    def from_numpy(self, x: Any) -> Any:
        if x.dtype.name == "bfloat16":  # torch reads NumPy's own dtypes only
            return self.cast(self.namespace().asarray(x.astype("float32")), "bfloat16")
        return self.namespace().asarray(x.copy())

    def to_numpy(self, x: Any) -> Any:
        x = x.detach().cpu()
        if dtype_name(x.dtype) == "bfloat16":
            return numpy_library.cast(self.cast(x, "float32").numpy(), "bfloat16")
        return x.numpy()

    def check_out(self, out: Any) -> str | None:
        if out.requires_grad:
            return "a tensor that requires grad"
        if out.is_neg():
            return "a tensor that holds its negative"
        if not out.is_contiguous() and folds(out.shape, out.stride(), 1):
            return "a tensor whose entries share memory"
        return None

    def overlaps(self, out: Any, x: Any) -> bool:
        if out is x or not (self.is_concrete(out) and self.is_concrete(x)):
            return False  # where there is no memory, results are copied into `out`
        begin, end = zip(_reach(out), _reach(x), strict=True)
        same = begin[0] == begin[1] and out.shape == x.shape and _steps(out) == _steps(x)
        return not same and max(begin) < min(end)

    def number(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self.number, value))
        plain = _SYMBOLS.get(type(value))
        return value if plain is None else plain(value)


def _precision(dtype: str) -> str:
    """The dtype of parameters beside scores of a dtype."""
    return "float32" if dtype in NARROW else dtype


def _steps(x: Tensor) -> list[int]:
    """The strides of a tensor, in bytes."""
    return [step * x.element_size() for step in x.stride()]


def _reach(x: Tensor) -> tuple[int, int]:
    """Where the entries of a tensor begin and end in memory, in bytes."""
    begin, count = x.data_ptr(), x.numel()
    if count and not x.is_contiguous():
        steps = zip(x.shape, x.stride(), strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in steps)
    return begin, begin + count * x.element_size()


library = TorchLibrary("torch", lambda: array_api_compat.torch)
_compiler.start_again()
