"""Who a benchmark compares normx with: one small record per peer.

A peer is imported when it is prepared, never earlier.  What it cannot do (a function
it does not have, a dtype, a ready output) it says by raising `LeftOutError`, and the
benchmark prints the reason: nothing is dropped in silence.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import normx
from normx._record import Record
from normx.cli.homes import to_numpy, version
from normx.plugins import dtype_name

Array = NDArray[Any]


class LeftOutError(Exception):
    """Why a peer does not take part."""


@dataclass(slots=True)
class Job:
    """One case of a benchmark, as every contestant gets it.

    Attributes
    ----------
    record : Record
        The function.
    axis : int
    ready : bool
        Whether results go into `outputs`, where the contestant can do that.
    inputs, outputs : sequence of array
        One pair per set of buffers; the outputs have been written to before.  For a
        backward pass they hold the gradients of the results.
    threads : int
    keywords : dict of str to object
        What the function cannot be called without.
    backward : bool
        Whether the gradient of the scores is computed instead of the result.
    undo : ExitStack
        Puts back what preparing changed (numbers of threads).
    """

    record: Record
    axis: int
    ready: bool
    inputs: Sequence[Array]
    outputs: Sequence[Array]
    threads: int
    keywords: dict[str, Any] = field(default_factory=dict)
    backward: bool = False
    undo: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def dtype(self) -> str:
        return self.inputs[0].dtype.name


@dataclass(slots=True)
class Entry:
    """A contestant, prepared.

    Attributes
    ----------
    calls : sequence of callable
        One per set of buffers.
    result : callable
        Runs the first call and returns its result as NumPy's array.
    output : {"ready", "fresh"}
        Whether the result goes into memory that exists already.
    ran : str
        What really runs, if that is known.
    """

    calls: Sequence[Callable[[], Any]]
    result: Callable[[], Array] | None
    output: str
    ran: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """A contestant.

    Attributes
    ----------
    name : str
        As shown, and as ``--peer`` takes it.
    package : str
        Import name of what has to be installed.
    prepare : callable
    gradients : bool
        Whether it takes backward passes too.
    """

    name: str
    package: str
    prepare: Callable[[Job], Entry]
    gradients: bool = False

    @property
    def version(self) -> str | None:
        """Of the package; None if it is not installed."""
        return version(self.package)


def _same_dtype(job: Job, x: Any) -> None:
    if dtype_name(x.dtype) != job.dtype:
        raise LeftOutError(f"turns {job.dtype} into {dtype_name(x.dtype)}")


def _function(job: Job, known: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    if job.name not in known:
        raise LeftOutError(f"has no {job.name}")
    return known[job.name]


# ------------------------------------------------------------------ normx, copy


def _normx(job: Job, backend: str | None = None) -> Entry:
    job.undo.callback(normx.set_num_threads, normx.get_num_threads())
    normx.set_num_threads(job.threads)
    ready = job.ready and "out" in job.record.keywords and not job.backward
    # As users call it: a call pays for every option.
    asked = {"axis": job.axis, **job.keywords} | ({"backend": backend} if backend else {})
    calls: list[Callable[[], Any]] = []
    for x, out in zip(job.inputs, job.outputs, strict=True):
        if job.backward:
            pullback = normx.vjp(job.record.function, x, **asked)[1]
            calls.append(functools.partial(pullback, out))
        else:
            mine = {**asked, "out": out} if ready else asked
            calls.append(functools.partial(job.record.function, x, **mine))
    with normx.trace() as ran:
        calls[0]()
    what = f"{ran[0].kernel} on {ran[0].target} ({ran[0].backend})"
    return Entry(calls, calls[0], "ready" if ready else "fresh", what)


def _reference(job: Job) -> Entry:
    # One set of buffers: arithmetic costs it so much that where the data lies does not show.
    return _normx(replace(job, inputs=job.inputs[:1], outputs=job.outputs[:1]), "reference")


def _copy(job: Job) -> Entry:
    if not job.ready:
        return Entry([x.copy for x in job.inputs], None, "fresh")
    # A reduction's outputs are smaller than what a copy of its input needs.
    fits = job.outputs[0].shape == job.inputs[0].shape
    places = job.outputs if fits else [np.zeros_like(x) for x in job.inputs]
    pairs = zip(places, job.inputs, strict=True)
    calls = [functools.partial(np.copyto, out, x) for out, x in pairs]
    return Entry(calls, None, "ready")


# ------------------------------------------------------------------------ peers


def _scipy(job: Job) -> Entry:
    import scipy.special

    known = {name: getattr(scipy.special, name) for name in ("softmax", "log_softmax", "logsumexp")}
    function = _function(job, known)
    calls = [functools.partial(function, x, axis=job.axis) for x in job.inputs]
    return Entry(calls, calls[0], "fresh")


def torch_with(threads: int, undo: ExitStack) -> Any:
    """The module, with so many threads until that is undone."""
    import torch

    undo.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(threads)
    return torch


def _torch(job: Job) -> Entry:
    torch = torch_with(job.threads, job.undo)
    with_out: dict[str, Callable[..., Any]] = {
        "softmax": torch.softmax,
        "log_softmax": torch.log_softmax,
        "logsumexp": torch.logsumexp,
    }
    without: dict[str, Callable[..., Any]] = {
        "softmin": torch.nn.functional.softmin,
        "sigmoid": lambda x, dim: torch.sigmoid(x - math.log(x.shape[dim])),
        "gumbel_softmax": lambda x, dim: torch.nn.functional.gumbel_softmax(x, dim=dim),
    }
    function = _function(job, with_out | without)
    if job.backward or not job.ready or job.name in without:
        return _of_tensors(job, lambda x: function(x, job.axis))
    calls = [
        functools.partial(function, _tensor(x), job.axis, out=_tensor(out))
        for x, out in zip(job.inputs, job.outputs, strict=True)
    ]
    return Entry(calls, lambda: _from_tensor(calls[0]()), "ready")


def _of_tensors(job: Job, function: Callable[[Any], Any]) -> Entry:
    """A function of tensors, or its gradient by torch's autograd; the result is fresh."""
    torch = torch_with(job.threads, job.undo)
    tensors = [_tensor(x) for x in job.inputs]
    if not job.backward:
        calls = [functools.partial(function, x) for x in tensors]
        return Entry(calls, lambda: _from_tensor(calls[0]()), "fresh")
    scores = [x.requires_grad_() for x in tensors]
    calls = [
        functools.partial(torch.autograd.grad, function(x), x, _tensor(out), retain_graph=True)
        for x, out in zip(scores, job.outputs, strict=True)
    ]
    return Entry(calls, None, "fresh")


def _tensor(x: Array) -> Any:
    import torch

    if x.dtype.name == "bfloat16":  # NumPy's is another package's type: same bits
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _from_tensor(y: Any) -> Array:
    import torch

    if y.dtype == torch.bfloat16:
        import ml_dtypes

        return np.asarray(y.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(y.numpy())


#: The entmax package's functions by those of normx.
ENTMAX_NAMES = {
    "sparsemax": "sparsemax",
    "entmax15": "entmax15",
    "entmax": "entmax_bisect",
    "normmax": "normmax_bisect",
    "budget": "budget_bisect",
}


def _entmax(job: Job) -> Entry:
    import entmax

    function = _function(job, {name: getattr(entmax, its) for name, its in ENTMAX_NAMES.items()})
    defaults = {name: option.default for name, option in job.record.keywords.items()}
    shared = {"alpha", "budget"} & set(defaults)
    options = {name: (defaults | job.keywords)[name] for name in shared}
    return _of_tensors(job, lambda x: function(x, dim=job.axis, **options))


def _jax(job: Job) -> Entry:
    if "jax" not in sys.modules:
        # Read once, when XLA makes its threads; later there is no way to say it.
        os.environ.setdefault("NPROC", str(job.threads))
    import jax

    function = _function(
        job,
        {
            "softmax": jax.nn.softmax,
            "log_softmax": jax.nn.log_softmax,
            "logsumexp": jax.nn.logsumexp,
        },
    )
    compiled = jax.jit(functools.partial(function, axis=job.axis))
    # JAX would turn float64 into float32 with a warning; what it makes is looked at.
    kind = jax.dtypes.canonicalize_dtype(job.inputs[0].dtype)
    inputs = [jax.numpy.asarray(x, dtype=kind) for x in job.inputs]
    _same_dtype(job, inputs[0])
    calls = [_ready_jax(compiled, x) for x in inputs]
    return Entry(calls, lambda: to_numpy(calls[0]()), "fresh")


def _ready_jax(compiled: Callable[..., Any], x: Any) -> Callable[[], Any]:
    return lambda: compiled(x).block_until_ready()


def _mlx(job: Job) -> Entry:
    import mlx.core as mx
    import mlx.nn

    function = _function(
        job,
        {"softmax": mx.softmax, "log_softmax": mlx.nn.log_softmax, "logsumexp": mx.logsumexp},
    )
    if job.dtype == "bfloat16":
        inputs = [mx.array(x.view(np.uint16)).view(mx.bfloat16) for x in job.inputs]
    else:
        inputs = [mx.array(x) for x in job.inputs]
    _same_dtype(job, inputs[0])
    calls = [_evaluated(function, x, job.axis) for x in inputs]
    device = f"on the {mx.default_device().type.name.upper()}"
    return Entry(calls, lambda: _from_mlx(calls[0]()), "fresh", device)


def _evaluated(function: Callable[..., Any], x: Any, axis: int) -> Callable[[], Any]:
    import mlx.core as mx

    def call() -> Any:
        y = function(x, axis)
        mx.eval(y)
        return y

    return call


def _from_mlx(y: Any) -> Array:
    import mlx.core as mx

    if y.dtype == mx.bfloat16:
        import ml_dtypes

        return np.asarray(y.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(y)


# ----------------------------------------------------------------- ONNX Runtime


def _onnx_model(job: Job) -> bytes:
    """A model of one node."""
    try:
        import onnx
    except ImportError:
        raise LeftOutError("needs the package onnx to build its model; pip install onnx") from None
    from onnx import TensorProto, helper

    nodes = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "logsumexp": "ReduceLogSumExp"}
    if job.name not in nodes:
        raise LeftOutError(f"has no {job.name}")
    types = {
        "float16": TensorProto.FLOAT16,
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
    }
    if job.dtype not in types:
        raise LeftOutError(f"has no {job.name} of {job.dtype}")
    kind = types[job.dtype]
    constants, names, attributes = [], ["x"], {"axis": job.axis}
    if job.name == "logsumexp":
        constants = [helper.make_tensor("axes", TensorProto.INT64, [1], [job.axis])]
        names, attributes = ["x", "axes"], {"keepdims": 0}
    graph = helper.make_graph(
        [helper.make_node(nodes[job.name], names, ["y"], **attributes)],
        job.name,
        [helper.make_tensor_value_info("x", kind, job.inputs[0].shape)],
        [helper.make_tensor_value_info("y", kind, job.outputs[0].shape)],
        constants,
    )
    # Old enough for every ONNX Runtime of the last years.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _onnxruntime(job: Job) -> Entry:
    model = _onnx_model(job)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads would otherwise spin on while the next contestant is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # a type of its own per reason, none documented
        raise LeftOutError(f"has no {job.name} of {job.dtype} ({type(error).__name__})") from None
    if not job.ready:
        plain = [functools.partial(session.run, None, {"x": x}) for x in job.inputs]
        return Entry(plain, lambda: np.asarray(plain[0]()[0]), "fresh")
    calls = []
    for x, out in zip(job.inputs, job.outputs, strict=True):
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
        calls.append(functools.partial(session.run_with_iobinding, binding))

    def result() -> Array:
        calls[0]()
        return job.outputs[0]

    return Entry(calls, result, "ready")


NORMX = Peer("normx", "normx", _normx, gradients=True)
#: The record's formula on NumPy.
REFERENCE = Peer("reference", "normx", _reference, gradients=True)
#: What memory allows: no function that writes as much as it reads can be faster.
COPY = Peer("copy", "numpy", _copy, gradients=True)
TORCH = Peer("torch", "torch", _torch, gradients=True)
MLX = Peer("mlx", "mlx", _mlx)
ONNXRUNTIME = Peer("onnxruntime", "onnxruntime", _onnxruntime)
ENTMAX = Peer("entmax", "entmax", _entmax, gradients=True)
PEERS = (
    NORMX,
    COPY,
    REFERENCE,
    Peer("scipy", "scipy", _scipy),
    TORCH,
    Peer("jax", "jax", _jax),
    ONNXRUNTIME,
    MLX,
    ENTMAX,
)
