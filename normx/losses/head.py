"""An output layer whose training costs the same, however many outputs it has."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import FLOATS, INTEGERS
from normx.losses._rows import check_choice, number
from normx.losses.spherical import (
    Family,
    SphericalSums,
    spherical_cross_entropy,
    spherical_of,
    taylor_cross_entropy,
    taylor_of,
    zloss,
    zloss_of,
)
from normx.plugins import Library, dtype_name

Array = Any

#: The losses that the layer knows, and what makes their partials of their keywords.
_FAMILIES: dict[Any, Callable[..., Family]] = {
    zloss: zloss_of,
    taylor_cross_entropy: taylor_of,
    spherical_cross_entropy: spherical_of,
}

#: Between these the singular values of the small factor are left alone.
_RANGE = (0.5, 2.0)
#: Share of singular values out of range from which all of the weights are written once.
_MANY = 1 / 3
#: Rows of the weights that are read at a time.
_ROWS = 1 << 13

_NAME = "SphericalHead"


class HeadStep(NamedTuple):
    """What a step of `SphericalHead` gives.

    Attributes
    ----------
    loss : array
        Before the step, reduced.
    gradient : array
        Of the features.
    """

    loss: Any
    gradient: Any


class SphericalHead:
    r"""Output layer with D outputs and exact steps of gradient descent in O(d²).

    .. math:: W = V U + 1 \omega^\top, \qquad V \in R^{D \times d},\; U \in R^{d \times d}

    A step of a loss of the spherical family changes every weight, but all but the rows of the
    targets in one way, which `U` and :math:`\omega` take up.  What the loss and the gradient
    need of the others is in :math:`Q = W^\top W` and :math:`\bar w = W^\top 1`.

    Parameters
    ----------
    weights : array
        W, of shape (D, d): NumPy's, or of a library that it can be computed with.
    loss : function
        `zloss`, `taylor_cross_entropy`, `spherical_cross_entropy`, or any function
        ``family(xp, sums)`` that gives the `SphericalPartials` of `SphericalSums`.
    stabilize_every : int
        Steps after which the singular values of U are looked at.
    copy : bool
        Whether `weights` stay as they are; else the layer works in their memory, where the
        library can be written to.
    **keywords
        Those of the loss: `a` and `b`, or `eps`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, or has a wrong value or shape.

    See Also
    --------
    zloss, taylor_cross_entropy, spherical_cross_entropy : The losses.

    Notes
    -----
    A step of m rows costs about 12 m d² operations, whatever D is, and touches as many rows of V
    as there are different targets; for arrays that cannot be written to (JAX's), the library
    copies V.  It is the step that the dense layer would take, but for rounding.  All but V is in
    float64 where the library has it.  Plain gradient descent is all that there is: other
    methods keep something for each weight.

    Left alone, U loses its inverse in the end.  Where one of its singular values has left the
    range from 1/2 to 2, it is brought back, and V made up for it; where a third of them have,
    W is written out once, and U is 1 again.

    References
    ----------
    .. [1] P. Vincent, A. de Brébisson and X. Bouthillier, "Efficient Exact Gradient Update for
       training Deep Networks with Very Large Sparse Targets", NeurIPS 2015, arXiv:1412.7091,
       2015.

    Examples
    --------
    >>> import numpy as np
    >>> from normx.losses import SphericalHead, zloss
    >>> rng = np.random.default_rng(0)
    >>> head = SphericalHead(rng.normal(size=(1000, 8)), loss=zloss)
    >>> x, targets = rng.normal(size=(20, 8)), rng.integers(0, 1000, 20)
    >>> before = head.loss(x, targets)
    >>> step = head.step(x, targets, learning_rate=0.1)
    >>> step.gradient.shape, bool(step.loss == before), bool(head.loss(x, targets) < before)
    ((20, 8), True, True)
    """

    _library: Library
    _dtype: str
    _every: int
    _steps: int
    #: V, U, the inverse of U transposed, and omega; then Q and the sum of the rows of W.
    _v: Array
    _u: Array
    _inverse: Array
    _omega: Array
    _q: Array
    _total: Array

    def __init__(
        self,
        weights: ArrayLike,
        *,
        loss: Callable[..., Any] = zloss,
        stabilize_every: Any = 100,
        copy: bool = True,
        **keywords: float,
    ) -> None:
        library, weights = _matrix("weights", weights, None)
        if 0 in weights.shape:
            raise wrong(
                ValueError, _NAME, "weights", described(weights), "at least of shape (1, 1)"
            )
        self._family = _family(loss, keywords)
        if isinstance(stabilize_every, bool) or not isinstance(stabilize_every, numbers.Integral):
            raise wrong(TypeError, _NAME, "stabilize_every", described(stabilize_every), "an int")
        if stabilize_every < 1:
            wanted = "at least 1"
            raise wrong(ValueError, _NAME, "stabilize_every", repr(stabilize_every), wanted)
        self._every = int(stabilize_every)
        self._steps = 0
        self._library = library
        weights = library.stop_gradient(weights)
        xp = library.namespace()
        self._v = xp.asarray(weights, copy=True) if copy else weights
        try:
            library.dtype("float64")
        except AttributeError:
            self._dtype = "float32"
        else:
            self._dtype = "float64"
        self._unfactorized()
        self._q, self._total = self._moments()

    # ------------------------------------------------------------------ what it is

    @property
    def shape(self) -> tuple[int, int]:
        """How many outputs and features there are: (D, d)."""
        return int(self._v.shape[0]), int(self._v.shape[1])

    @property
    def weights(self) -> Array:
        """W as it would stand in a dense layer: a new array, in D·d² operations."""
        xp, library = self._library.namespace(), self._library
        came = dtype_name(self._v.dtype)
        parts = [
            library.cast(self._wide(self._v[rows]) @ self._u + self._omega, came)
            for rows in self._blocks()
        ]
        return xp.concat(parts, axis=0)

    def outputs(self, features: ArrayLike, /) -> Array:
        """All outputs, for evaluation: in D·d operations per row.

        Parameters
        ----------
        features : array
            Of shape (m, d).

        Returns
        -------
        array
            Of shape (m, D) and the dtype of the weights.
        """
        xp, library = self._library.namespace(), self._library
        x = self._features(features)
        inner = library.cast(x @ xp.matrix_transpose(self._u), dtype_name(self._v.dtype))
        offset = library.cast(x @ self._omega, dtype_name(self._v.dtype))
        return inner @ xp.matrix_transpose(self._v) + offset[:, None]

    def sums(self, features: ArrayLike, targets: ArrayLike, /) -> SphericalSums:
        """What the loss needs to know of each row, without its outputs.

        Parameters
        ----------
        features : array
            Of shape (m, d).
        targets : array of int
            The class of each row.

        Returns
        -------
        SphericalSums
        """
        x = self._features(features)
        rows = self._targets(targets, x)
        return self._sums(x, self._beside(rows))[0]

    def loss(self, features: ArrayLike, targets: ArrayLike, /, *, reduction: str = "mean") -> Any:
        """The loss, and no step.

        Parameters
        ----------
        features : array
            Of shape (m, d).
        targets : array of int
            The class of each row.
        reduction : {"mean", "sum", "none"}
            Over the rows.

        Returns
        -------
        array
        """
        check_choice("SphericalHead.loss", "reduction", reduction, ("mean", "sum", "none"))
        found = self._family(self._library.namespace(), self.sums(features, targets))
        return self._reduced(found.loss, reduction)

    # ---------------------------------------------------------------------- a step

    def step(
        self,
        features: ArrayLike,
        targets: ArrayLike,
        /,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        reduction: str = "mean",
    ) -> HeadStep:
        """Take one step of gradient descent.

        Parameters
        ----------
        features : array
            Of shape (m, d), and the library of the weights.
        targets : array of int
            The class of each row.
        learning_rate : float
            At least 0.
        weight_decay : float
            After the step, all weights are multiplied by ``1 - learning_rate * weight_decay``.
        reduction : {"mean", "sum"}
            Over the rows.

        Returns
        -------
        HeadStep
            ``(loss, gradient)``, both of before the step; the gradient is that of the features,
            for the layers below.

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong kind, or has a wrong value or shape; also if the step
            is so large that the layer cannot take it.  The weights are then as before.
        """
        function = "SphericalHead.step"
        check_choice(function, "reduction", reduction, ("mean", "sum"))
        rate = number(
            function, "learning_rate", learning_rate, "finite and at least 0", _not_negative
        )
        decay = number(
            function, "weight_decay", weight_decay, "finite and at least 0", _not_negative
        )
        if rate * decay >= 1.0:
            wanted = f"below {1.0 / rate:g}, or nothing is left of the weights"
            raise wrong(ValueError, function, "weight_decay", repr(weight_decay), wanted)
        x = self._features(features)
        rows = self._targets(targets, x)
        library, xp = self._library, self._library.namespace()
        if not len(rows):
            return HeadStep(library.full((), 0.0, self._dtype, x), self._like(x, features))
        different, place = np.unique(rows, return_inverse=True)
        index = self._beside(different)
        sums, of_q, cross, inner, offset = self._sums(x, self._beside(rows))
        found = self._family(xp, sums)
        share = 1.0 / len(rows) if reduction == "mean" else 1.0
        by_target, by_sum, twice = (
            share * found.target,
            share * found.sum,
            2 * share * found.squares,
        )
        # The gradient of W is W T x + (1 by_sum' + Y) x, with Y at the rows of the targets.
        own = self._beside((place.reshape(1, -1) == np.arange(len(different))[:, None]) * 1.0)
        y = own * by_target
        v = self._wide(xp.take(self._v, index, axis=0))
        z = (xp.matrix_transpose(y) @ v) @ self._u
        z = z + by_target[:, None] * self._omega + by_sum[:, None] * self._total
        gradient = twice[:, None] * of_q + z
        t = twice[:, None] * x
        size = self.shape[0]
        mixed = by_sum[:, None] * by_target + t @ xp.matrix_transpose(z)
        inside = (
            twice[:, None] * cross * twice
            + size * by_sum[:, None] * by_sum
            + xp.matrix_transpose(y) @ y
            + mixed
            + xp.matrix_transpose(mixed)
        )
        x_t, one = xp.matrix_transpose(x), self._beside(np.eye(len(rows)))
        system = one - rate * (x @ xp.matrix_transpose(t))
        try:
            small = xp.linalg.solve(system, rate * x)
        except Exception as error:  # each library has an error of its own
            raise _too_large(function, learning_rate) from error
        inverse = self._inverse + (self._inverse @ xp.matrix_transpose(t)) @ small
        if not _finite(library, inverse):
            raise _too_large(function, learning_rate)
        self._u = self._u - rate * (xp.matrix_transpose(inner) @ t)
        self._inverse = inverse
        self._omega = self._omega - rate * (x_t @ (twice * offset + by_sum))
        self._add(index, -rate * (y @ (x @ xp.matrix_transpose(inverse))))
        change = xp.matrix_transpose(gradient) @ x
        change = change + xp.matrix_transpose(change)
        self._q = self._q - rate * change + rate * rate * (x_t @ (inside @ x))
        self._total = self._total - rate * (x_t @ (twice * sums.sum + size * by_sum + by_target))
        if decay:
            self._shrink(1.0 - rate * decay)
        self._steps += 1
        if self._steps % self._every == 0:
            self.stabilize()
        return HeadStep(self._reduced(found.loss, reduction), self._like(gradient, features))

    def stabilize(self) -> int:
        """Bring the singular values of U back into their range.

        Returns
        -------
        int
            How many were out of it.
        """
        xp, library = self._library.namespace(), self._library
        left, values, _ = xp.linalg.svd(self._u)
        sizes = library.to_numpy(values)
        out = np.flatnonzero((sizes < _RANGE[0]) | (sizes > _RANGE[1]))
        if not len(out):
            return 0
        if len(out) > _MANY * len(sizes):
            for rows in self._blocks():
                self._put(rows, self._wide(self._v[rows]) @ self._u + self._omega)
            self._unfactorized()
            return len(out)
        direction = xp.take(left, self._beside(out), axis=1)
        target = np.clip(sizes[out], *_RANGE)
        grown = self._beside(target / sizes[out] - 1.0)
        shrunk = self._beside(sizes[out] / target - 1.0)
        across = xp.matrix_transpose(direction)
        self._u = self._u + (direction * grown) @ (across @ self._u)
        self._inverse = self._inverse + (direction * shrunk) @ (across @ self._inverse)
        for rows in self._blocks():
            part = self._wide(self._v[rows])
            self._put(rows, part + ((part @ direction) * shrunk) @ across)
        return len(out)

    # ---------------------------------------------------------------------- inside

    def _sums(self, x: Array, targets: Array) -> tuple[SphericalSums, Array, Array, Array, Array]:
        """The sums of each row, and what they were made of."""
        xp = self._library.namespace()
        of_q = x @ self._q
        cross = of_q @ xp.matrix_transpose(x)
        inner, offset = x @ xp.matrix_transpose(self._u), x @ self._omega
        v = self._wide(xp.take(self._v, targets, axis=0))
        at_target = xp.sum(v * inner, axis=-1) + offset
        squares = xp.sum(of_q * x, axis=-1)
        # Rounding must not make a sum of squares less than one of them.
        squares = xp.maximum(squares, at_target * at_target)
        sums = SphericalSums(at_target, x @ self._total, squares, self.shape[0])
        return sums, of_q, cross, inner, offset

    def _moments(self) -> tuple[Array, Array]:
        """Q and the sum of the rows, from V, while U is 1."""
        xp, (_, width) = self._library.namespace(), self.shape
        q = self._library.full((width, width), 0.0, self._dtype, self._v)
        total = self._library.full((width,), 0.0, self._dtype, self._v)
        for rows in self._blocks():
            part = self._wide(self._v[rows])
            q = q + xp.matrix_transpose(part) @ part
            total = total + xp.sum(part, axis=0)
        return q, total

    def _unfactorized(self) -> None:
        """Let V be W."""
        width = self.shape[1]
        self._u = self._beside(np.eye(width))
        self._inverse = self._u
        self._omega = self._library.full((width,), 0.0, self._dtype, self._v)

    def _shrink(self, factor: float) -> None:
        self._u, self._omega = factor * self._u, factor * self._omega
        self._inverse = self._inverse / factor
        self._q, self._total = factor * factor * self._q, factor * self._total

    def _wide(self, x: Array) -> Array:
        return self._library.cast(x, self._dtype)

    def _beside(self, values: Any) -> Array:
        """NumPy's numbers or indices, where the weights are."""
        wide = self._dtype == "float64"
        index = "int64" if wide else "int32"
        return self._library.asarray(
            values, self._dtype if values.dtype.kind == "f" else index, self._v
        )

    def _blocks(self) -> Iterator[tuple[Any, ...]]:
        """Rows of V that are read at a time."""
        for begin in range(0, self.shape[0], _ROWS):
            yield slice(begin, min(begin + _ROWS, self.shape[0])), ...

    def _like(self, gradient: Array, features: Any) -> Array:
        """A gradient in the dtype of the features."""
        came = getattr(features, "dtype", None)
        return gradient if came is None else self._library.cast(gradient, dtype_name(came))

    def _add(self, index: Array, change: Array) -> None:
        """Add to rows of V, which are all different."""
        change = self._library.cast(change, dtype_name(self._v.dtype))
        if self._library.mutable:
            self._v[index] += change
        elif hasattr(self._v, "at"):
            self._v = self._v.at[index].add(change)
        else:  # the array API writes to one row at a time
            for i, row in enumerate(self._library.to_numpy(index)):
                self._v[int(row), ...] += change[i, ...]

    def _put(self, rows: tuple[Any, ...], part: Array) -> None:
        """Write rows of V."""
        part = self._library.cast(part, dtype_name(self._v.dtype))
        if hasattr(self._v, "at"):
            old = self._v[rows]
            self._v = self._v.at[rows].add(part - old)
        else:
            self._v[rows] = part

    def _reduced(self, losses: Array, reduction: str) -> Array:
        xp = self._library.namespace()
        if reduction == "none":
            return losses
        total = xp.sum(losses)
        return total / max(1, losses.shape[0]) if reduction == "mean" else total

    def _features(self, features: Any) -> Array:
        library, x = _matrix("features", features, self._library)
        if x.shape[1] != self.shape[1]:
            wanted = f"of shape (rows, {self.shape[1]}), as wide as the weights"
            raise wrong(ValueError, _NAME, "features", described(features), wanted)
        return self._wide(library.stop_gradient(x))

    def _targets(self, targets: Any, x: Array) -> Any:
        """The classes, as NumPy's."""
        rows = (int(x.shape[0]),)
        wanted = f"integers from 0 to {self.shape[0] - 1}, of shape {rows}"
        if isinstance(targets, list | tuple):
            targets = np.asarray(targets, np.int64 if not len(targets) else None)
        home = library_of(targets)
        kind = dtype_name(targets.dtype) if hasattr(targets, "dtype") else ""
        if home is None or kind not in INTEGERS or kind.startswith("bool"):
            raise wrong(TypeError, _NAME, "targets", described(targets), wanted)
        values = home.to_numpy(targets)
        if values.shape != rows:
            raise wrong(ValueError, _NAME, "targets", described(targets), wanted)
        out = (values < 0) | (values >= self.shape[0])
        if out.any():
            came = f"{int(values[out][0])}, which is out of bounds"
            raise wrong(ValueError, _NAME, "targets", came, wanted)
        return values.astype(np.int64)


def _not_negative(value: float) -> bool:
    return 0.0 <= value < math.inf


def _finite(library: Library, x: Array) -> bool:
    return bool(np.isfinite(library.to_numpy(library.namespace().sum(x))))


def _too_large(function: str, rate: Any) -> ValueError:
    return wrong(
        ValueError, function, "learning_rate", repr(rate), "so small that U keeps its inverse"
    )


def _matrix(name: str, value: Any, home: Library | None) -> tuple[Library, Array]:
    wanted = "a floating array of two dimensions"
    if isinstance(value, list | tuple):
        value = np.asarray(value, np.float64)
    library = library_of(value)
    floating = hasattr(value, "dtype") and dtype_name(value.dtype) in FLOATS
    if library is None or not floating or (home is not None and library is not home):
        of = wanted if home is None else f"{wanted} of {home.name}, the library of the weights"
        raise wrong(TypeError, _NAME, name, described(value), of)
    if len(value.shape) != 2:
        raise wrong(ValueError, _NAME, name, described(value), wanted)
    return library, value


def _family(loss: Any, keywords: dict[str, float]) -> Family:
    """What gives the partials of a loss with its keywords."""
    make = _FAMILIES.get(loss) if callable(loss) else None
    if make is not None:
        try:
            return make(**keywords)
        except TypeError:
            known = ", ".join(make.__code__.co_varnames[: make.__code__.co_argcount]) or "none"
            raise TypeError(
                f"normx.{_NAME}: unknown keyword among {', '.join(map(repr, keywords))}; "
                f"those of {loss.__name__} are {known}"
            ) from None
    if not callable(loss) or keywords:
        known = ", ".join(function.__name__ for function in _FAMILIES)
        raise wrong(TypeError, _NAME, "loss", described(loss), f"{known}, or a function of sums")
    family: Family = loss
    return family
