"""Every kernel text, and what its function takes, in the order in which the text knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from normx_gpu.abi import Flag

NOTHING = Flag(0)


@dataclass(frozen=True, slots=True)
class Program:
    """A function that there are kernels for: ``nx_NAME_forward`` and ``nx_NAME_backward``.

    Attributes
    ----------
    name : str
        Of the record.
    texts : tuple of str
        The files in ``kernels/``, in the order in which they need each other.
    parameters, constants : tuple of str
        The record's keywords, as ``nx_parameter(r, i)`` and numbers.
    flags : Flag
        What the frame has to know of the function.
    heavy : bool
        Whether a lane keeps more than scores and their exponentials.
    """

    name: str
    texts: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    flags: Flag = NOTHING
    heavy: bool = False


def _all(*programs: Program) -> Mapping[str, Program]:
    return {program.name: program for program in programs}


_SOFTMAX = ("softmax",)
_SCALED = ("softmax", "scaled")
_POWER = ("softmax", "power")
_POINTWISE = ("softmax", "power", "pointwise")
_SPARSE = ("softmax", "sparse")
_CURVE = (*_SPARSE, "curve")

PROGRAMS = _all(
    Program("softmax", _SOFTMAX),
    Program("softmin", _SOFTMAX, flags=Flag.NEGATED),
    Program("log_softmax", _SOFTMAX, flags=Flag.LOG_SPACE),
    Program("logsumexp", _SOFTMAX, flags=Flag.LOG_SPACE | Flag.REDUCES),
    Program("inhibited_softmax", _SOFTMAX, ("alpha",), flags=Flag.INHIBITED),
    Program("nonnegative_softmax", _SOFTMAX, ("threshold",), flags=Flag.THRESHOLD),
    Program("masked_softmax", _SOFTMAX, ("fill",), flags=Flag.FILLS, heavy=True),
    Program(
        "gumbel_softmax", ("softmax", "gumbel"), constants=("hard",), flags=Flag.NOISY, heavy=True
    ),
    Program("ssmax", _SCALED, ("s", "b", "n"), flags=Flag.SCALED),
    Program("entropy_invariant_softmax", _SCALED, ("n0", "n_min", "n"), flags=Flag.SCALED),
    Program(
        "adaptive_softmax",
        _SCALED,
        constants=("threshold", "differentiate_temperature", "coefficients"),
        flags=Flag.SCALED,
    ),
    Program("taylor_softmax", _POWER, constants=("order",), heavy=True),
    Program("spherical_softmax", _POWER, ("eps",)),
    Program("squared_relu", _POWER, ("scale", "n"), flags=Flag.POINTWISE),
    Program("lips_relu", _POWER, ("n",), flags=Flag.POINTWISE),
    Program("normalized_squared_relu", _POWER, flags=Flag.POSITIVE),
    Program("expm1_relu", _POWER, flags=Flag.POSITIVE, heavy=True),
    Program("sigmoid", _POINTWISE, ("bias", "n"), ("normalize",), Flag.POINTWISE),
    Program("zscore", _POINTWISE, ("eps",), heavy=True),
    Program("sparsemax", _SPARSE, heavy=True),
    Program("entmax15", _SPARSE, flags=Flag.SCALED, heavy=True),
    Program("entmax", _CURVE, ("alpha",), flags=Flag.SCALED, heavy=True),
    Program("normmax", _CURVE, ("alpha",), flags=Flag.SCALED, heavy=True),
    Program(
        "budget", (*_SPARSE, "budget"), ("budget",), flags=Flag.SCALED | Flag.POINTWISE, heavy=True
    ),
)

#: The largest weights of a softmax, with its geometry: it has no record, and no gradient.
TOPK = Program("softmax_topk", ("softmax", "topk"), constants=("k",), flags=Flag.REDUCES)
#: The cross-entropy of rows, and what is read off beside it: no record either.  Its parameters are
#: its results, with the scores' gradient of their sum, each times a cotangent.
CROSS_ENTROPY = Program(
    "cross_entropy",
    ("softmax", "entropy"),
    ("loss", "logsumexp", "entropy"),
    ("smoothing",),
    Flag.REDUCES | Flag.TARGETED,
)
#: A test of every word.
SELFTEST = Program("selftest", ("selftest",))

#: Everything that can be compiled.
EVERY = {**PROGRAMS, **_all(TOPK, CROSS_ENTROPY, SELFTEST)}
