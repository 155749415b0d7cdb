"""What the commands compute on: the shipped real scores, and keywords that must be passed."""

from __future__ import annotations

import inspect
from functools import cache
from importlib.resources import as_file, files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normx._record import Record

#: The head and the query of the demo's picture: one that looks around itself.
LAYER, HEAD, QUERY = 1, 2, 68


class Attention(NamedTuple):
    """Scores of layers x heads x queries x keys, and the text they are of."""

    scores: NDArray[np.float32]
    tokens: tuple[str, ...]


@cache
def attention() -> Attention:
    """The scores that normx ships, as float32."""
    with as_file(files("normx") / "data" / "minilm_attention.npz") as path, np.load(path) as data:
        scores = data["scores"].astype(np.float32)
        tokens = tuple(str(token) for token in data["tokens"])
    scores.flags.writeable = False
    return Attention(scores, tokens)


def table_scores() -> NDArray[np.float32]:
    """The scores of the demo's table: one head of every layer, from flat rows to one-hot ones.

    Not all heads, so that the slowest library is through in a few seconds.
    """
    return attention().scores[:, HEAD]


def causal(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask that leaves out the keys that come after the query."""
    rows = shape[-2] if len(shape) > 1 else 1
    mask = np.tril(np.ones((rows, shape[-1]), np.bool_), k=shape[-1] - rows)
    return mask.reshape(shape[-2:])


def required(record: Record) -> tuple[str, ...]:
    """Names of the keywords without a default."""
    return tuple(
        name
        for name, parameter in record.keywords.items()
        if parameter.default is inspect.Parameter.empty
    )


def unknown(record: Record) -> tuple[str, ...]:
    """Required keywords that the record has no example of."""
    return tuple(name for name in required(record) if name not in keywords(record, (1,)))


def keywords(record: Record, shape: tuple[int, ...]) -> dict[str, Any]:
    """Values for the required keywords of a function, for scores of that shape."""
    values = dict(record.example)
    if "where" in values:
        values["where"] = causal(shape)
    if record.random:
        values["rng"] = np.random.default_rng(0)
    return values
