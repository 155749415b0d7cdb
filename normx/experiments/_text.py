"""Text that everybody has, in characters and in words; a small transformer that reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from normx.experiments._experiment import Step

Array = Any
#: ``normalizer(scores, where)``: weights of the keys.
Normalizer = Callable[[Array, Array | None], Array]


@cache
def text() -> str:
    """What ``help()`` says of Python's topics: half a million characters of English."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


@cache
def characters() -> tuple[Array, int]:
    """The text as numbers, one per character, and how many characters there are."""
    letters = sorted(set(text()))
    index = {letter: i for i, letter in enumerate(letters)}
    return np.array([index[letter] for letter in text()]), len(letters)


@cache
def words(least: int = 1) -> tuple[Array, int]:
    """The text as numbers, one per word; 0 for words that are seen fewer than `least` times."""
    found = re.findall(r"[a-z]+|[^\sa-z]", text().lower())
    known = sorted(word for word, count in Counter(found).items() if count >= least)
    index = {word: i + 1 for i, word in enumerate(known)}
    return np.array([index.get(word, 0) for word in found]), len(known) + 1


def cut(tokens: Array, held_out: float = 0.1) -> tuple[Array, Array]:
    """Parts to train and to test with: the last of every ten pieces is for the test."""
    pieces = np.array_split(tokens, round(1 / held_out) * 4)
    every = round(1 / held_out)
    test = [piece for i, piece in enumerate(pieces) if i % every == every - 1]
    rest = [piece for i, piece in enumerate(pieces) if i % every != every - 1]
    return np.concatenate(rest), np.concatenate(test)


def windows(torch: Any, tokens: Array, rng: Any, count: int, n: int) -> Array:
    """Windows of the text, at random places."""
    starts = torch.randint(0, len(tokens) - n, (count, 1), generator=rng)
    return torch.as_tensor(tokens)[starts + torch.arange(n)]


def transformer(
    torch: Any, vocabulary: int, *, width: int = 64, heads: int = 4, layers: int = 2
) -> tuple[Any, Callable[..., Array]]:
    """A transformer with rotary positions, and ``predict(tokens, normalizer, where=None)``."""
    nn = torch.nn

    def block() -> Any:
        return nn.ModuleDict(
            {
                "before": nn.LayerNorm(width),
                "qkv": nn.Linear(width, 3 * width, bias=False),
                "mix": nn.Linear(width, width, bias=False),
                "between": nn.LayerNorm(width),
                "up": nn.Linear(width, 4 * width),
                "down": nn.Linear(4 * width, width),
            }
        )

    parts = nn.ModuleDict(
        {
            "tokens": nn.Embedding(vocabulary, width),
            "blocks": nn.ModuleList(block() for _ in range(layers)),
            "after": nn.LayerNorm(width),
            "out": nn.Linear(width, vocabulary),
        }
    )
    size = width // heads

    def rotated(x: Array) -> Array:
        n = x.shape[-2]
        angles = torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)
        cos, sin, (a, b) = angles.cos(), angles.sin(), x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def attended(layer: Any, h: Array, normalizer: Normalizer, where: Array | None) -> Array:
        split = layer["qkv"](h).unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4)
        q, k, v = rotated(split[0]), rotated(split[1]), split[2]
        weights = normalizer(q @ k.mT / size**0.5, where)
        return layer["mix"]((weights @ v).transpose(1, 2).flatten(-2))

    def predict(tokens: Array, normalizer: Normalizer, where: Array | None = None) -> Array:
        h = parts["tokens"](tokens)
        for layer in parts["blocks"]:
            h = h + attended(layer, layer["before"](h), normalizer, where)
            up = nn.functional.gelu(layer["up"](layer["between"](h)))
            h = h + layer["down"](up)
        return parts["out"](parts["after"](h))

    return parts, predict


def train(
    torch: Any,
    parts: Any,
    steps: int,
    loss: Callable[[], Array],
    *,
    times: int,
    step: Step,
    rate: float = 3e-3,
) -> list[float]:
    """Minimise what ``loss()`` draws, by AdamW; the values on the way.  It is told of in parts."""
    optimizer = torch.optim.AdamW(parts.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    values = []
    for i in range(steps):
        if i * times // steps != (i - 1) * times // steps:
            step(f"training, step {i:,} of {steps:,}")
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        values.append(float(value.detach()))
    return values
