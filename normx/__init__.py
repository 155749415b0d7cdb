"""The softmax family on every array library, at memory speed, right to the last few bits."""

import importlib as _importlib
from types import ModuleType as _ModuleType

from normx._dispatch import explain as explain
from normx._dispatch import trace as trace
from normx._dispatch import use_backend as use_backend
from normx._insight import backends as backends
from normx._insight import capabilities as capabilities
from normx._insight import get_num_threads as get_num_threads
from normx._insight import libraries as libraries
from normx._insight import set_num_threads as set_num_threads
from normx._version import __version__ as __version__
from normx._vjp import vjp as vjp
from normx.blocks import SoftmaxState as SoftmaxState
from normx.blocks import softmax_state as softmax_state
from normx.normalizers.masked import gumbel_softmax as gumbel_softmax
from normx.normalizers.masked import inhibited_softmax as inhibited_softmax
from normx.normalizers.masked import masked_softmax as masked_softmax
from normx.normalizers.masked import nonnegative_softmax as nonnegative_softmax
from normx.normalizers.pointwise import sigmoid as sigmoid
from normx.normalizers.pointwise import zscore as zscore
from normx.normalizers.power import expm1_relu as expm1_relu
from normx.normalizers.power import lips_relu as lips_relu
from normx.normalizers.power import normalized_squared_relu as normalized_squared_relu
from normx.normalizers.power import spherical_softmax as spherical_softmax
from normx.normalizers.power import squared_relu as squared_relu
from normx.normalizers.power import taylor_softmax as taylor_softmax
from normx.normalizers.scaled import adaptive_softmax as adaptive_softmax
from normx.normalizers.scaled import entropy_invariant_softmax as entropy_invariant_softmax
from normx.normalizers.scaled import softmin as softmin
from normx.normalizers.scaled import ssmax as ssmax
from normx.normalizers.softmax import log_softmax as log_softmax
from normx.normalizers.softmax import logsumexp as logsumexp
from normx.normalizers.softmax import softmax as softmax
from normx.normalizers.sparse import budget as budget
from normx.normalizers.sparse import entmax as entmax
from normx.normalizers.sparse import entmax15 as entmax15
from normx.normalizers.sparse import normmax as normmax
from normx.normalizers.sparse import sparsemax as sparsemax
from normx.segments import segment_softmax as segment_softmax
from normx.topk import TopK as TopK
from normx.topk import softmax_topk as softmax_topk

#: Modules of functions that stand above the row, imported when they are first asked for.
_ABOVE = ("attention", "calibration", "losses", "regression", "uncertainty")


def __getattr__(name: str) -> _ModuleType:
    if name not in _ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ABOVE})
