"""What a formula sees of the rows it works on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

from normx import _arithmetic as arithmetic
from normx._arithmetic import Double
from normx.plugins import Library

Array = Any


class Centred(NamedTuple):
    """Scores around their maximum: ``origin + relative``, the largest relative being 0."""

    origin: Array
    relative: Double


class Whole(NamedTuple):
    """What a part of a row has to know of the whole one, with the reduced axes at size 1.

    Attributes
    ----------
    top, bottom : array
        The largest score, and the smallest one above -inf.
    kept : array
        How many entries are kept.
    size : int
        How many there are.
    """

    top: Array
    bottom: Array
    kept: Array
    size: int


@dataclass(frozen=True)
class Row:
    """Rows of scores, in float32 or wider, ready for a formula.

    Attributes
    ----------
    library : Library
        Whose arrays these are.
    scores : array
        After softcap; left-out entries hold -inf.
    kept : array of bool or None
        Which entries take part; None stands for all.
    axis : tuple of int
        The reduced axes, never empty, none of them of size 0.
    temperature : array or None
        Reduced axes have size 1; None stands for 1.
    dtype : str
        Name of the dtype of the arithmetic: float32 or wider, or complex.
    factor : Double or None
        What the scores are multiplied by; at least 0, reduced axes have size 1.
    """

    library: Library
    xp: Any
    scores: Array
    kept: Array | None
    axis: tuple[int, ...]
    temperature: Array | None
    dtype: str
    factor: Double | None = None

    def scaled(self, factor: Double) -> Row:
        """The row with its scores multiplied; what was left out stays left out."""
        xp, x = self.xp, self.scores
        negative = factor.hi < 0
        scores = xp.where(negative & (x != -xp.inf), -x, x)
        magnitude = Double(xp.abs(factor.hi), xp.where(negative, -factor.lo, factor.lo))
        return replace(self, scores=scores, factor=magnitude)

    def without(self, condition: Array) -> Row:
        """The row with the entries that fulfil `condition` left out."""
        return replace(self, scores=self.xp.where(condition, -self.xp.inf, self.scores))

    def within(self, top: Array) -> Row:
        """The row as a part of one whose maximum is `top`."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(Row)}
        return _Part(**given, top=top)

    def of(self, whole: Whole) -> Row:
        """The row as a part of another, with what formulas and policies ask of that."""
        return replace(cast(_Part, self.within(whole.top)), whole=whole)

    def shared(self) -> Row:
        """The row with only the entries of +inf, made 1, where there are any."""
        return self._at_infinity(-self.xp.inf, self.maximum)

    def indicated(self, maximum: Array) -> Row:
        """The block with 1 for +inf and 0 for the rest, if the maximum of its row is +inf."""
        return self._at_infinity(0.0, maximum)

    def _at_infinity(self, others: float, top: Array) -> Row:
        xp, x = self.xp, self.scores
        limit = xp.where(x == xp.inf, 1.0, xp.where(xp.isfinite(x), others, x))
        scores = xp.where(top == xp.inf, limit, x)
        # All of it, or an infinity beside the NaN would go on to be reckoned with.
        return replace(self, scores=xp.where(xp.isnan(top), xp.nan, scores))

    @cached_property
    def present(self) -> Array:
        """Which entries take part: those kept, with a score above -inf."""
        return self.scores != -self.xp.inf

    @cached_property
    def length(self) -> Array:
        """How many entries take part."""
        return self.count(self.present)

    @cached_property
    def tempered(self) -> Double:
        """The scores over the temperature, right to twice the precision; -inf if left out."""
        xp, x = self.xp, self.scores
        if self.temperature is None:
            return Double(x, xp.zeros_like(x))
        return arithmetic.quotient(xp, x, self.temperature, self.dtype)

    @cached_property
    def maximum(self) -> Array:
        """Largest score per row, -inf where there is none."""
        return self.xp.max(self.scores, axis=self.axis, keepdims=True)

    @cached_property
    def centred(self) -> Centred:
        """The scores over the temperature, relative to their maximum.

        The difference is exact, so nothing is lost before the exponential.  Where
        the maximum is +inf the entries that attain it get 0 and all others -inf:
        the limit, not NaN.
        """
        xp, x, top = self.xp, self.scores, self.maximum
        finite = xp.isfinite(x)
        origin = xp.where(xp.isinf(top), 0.0, top)
        hi, lo = arithmetic.two_sum(xp.where(finite, x, 0.0), -origin)
        # x > 0 is x = +inf here, the rest -inf and NaN.
        hi = xp.where(finite, hi, xp.where(x > 0, 0.0, x))
        hi = xp.where((top == xp.inf) & (x < xp.inf), -xp.inf, hi)
        # lo is NaN where the difference overflowed.
        relative = Double(hi, xp.where(hi > -xp.inf, lo, 0.0))
        t = self.temperature
        if self.factor is not None:
            relative = arithmetic.multiplied(xp, relative, self.factor, t, self.dtype)
            top = xp.where(xp.isinf(top), top, origin * self.factor.hi)
        if t is None:
            return Centred(top, relative)
        limit = xp.where(top > 0, xp.inf, xp.where(top < 0, -xp.inf, top))
        finite = (t > 0) & (t < xp.inf)
        level = xp.where(t == 0, limit, xp.where(xp.isfinite(top), 0.0, top))
        level = xp.where(finite, arithmetic.over(xp, top, xp.where(finite, t, 1.0)), level)
        return Centred(level, arithmetic.divided(xp, relative, t, self.dtype))

    @cached_property
    def largest(self) -> Array:
        """The largest modulus among the scores that take part, 0 where there is none."""
        xp, x = self.xp, self.scores
        return xp.max(xp.where(self.present, xp.abs(x), 0.0), axis=self.axis, keepdims=True)

    @property
    def alone(self) -> Row:
        """The row, or the part, by itself."""
        return self

    def slip(self) -> Array | None:
        """What the maximum of a part has lost by being rounded, if it is not that of the row."""
        return None

    def sum(self, x: Array) -> Array:
        """Sum of each row, kept as axes of size 1, right to the last place."""
        return self.library.accurate_sum(x, self.axis)

    def count(self, condition: Array) -> Array:
        """How many entries of each row fulfil `condition`, in the arithmetic's dtype."""
        xp = self.xp
        return self.sum(xp.where(condition, xp.ones_like(self.scores), 0.0))

    @cached_property
    def empty(self) -> Array:
        """Rows without any score above -inf."""
        return self.maximum == -self.xp.inf

    @cached_property
    def some_kept(self) -> Array:
        """Rows of which entries are kept, where there is a mask."""
        return self.xp.any(self.kept, axis=self.axis, keepdims=True)

    def share_of_empty(self, taking: Array) -> Array:
        """What each entry of a row without scores gets, if those that fulfil `taking` share."""
        return 1.0 / self.xp.maximum(self.count(taking), self.xp.ones_like(self.maximum))


@dataclass(frozen=True)
class _Part(Row):
    """A part of a row, measured against the maximum of the whole."""

    top: Array = None
    whole: Whole | None = None

    @property
    def maximum(self) -> Array:
        return self.top

    @property
    def largest(self) -> Array:
        assert self.whole is not None
        xp, (top, bottom, *_) = self.xp, self.whole
        return xp.where(top == -xp.inf, 0.0, xp.maximum(xp.abs(top), xp.abs(bottom)))

    @property
    def alone(self) -> Row:
        return Row(**{entry.name: getattr(self, entry.name) for entry in fields(Row)})

    def slip(self) -> Array:
        # Relative to the maximum of the row, a score over a temperature is exact in two words;
        # the maxima of parts, rounded each for itself, are half a last place apart from that.
        xp, own = self.xp, self.alone
        here = replace(self, scores=own.maximum, kept=None).centred
        gap = arithmetic.two_sum(own.centred.origin, -here.origin)
        exact = here.relative
        lost = (exact.hi - gap.hi) + (exact.lo - gap.lo)
        return xp.where(xp.isfinite(lost), lost, 0.0)

    @property
    def some_kept(self) -> Array:
        assert self.whole is not None
        return self.whole.kept > 0

    def share_of_empty(self, taking: Array) -> Array:
        assert self.whole is not None
        return 1.0 / self.xp.where(self.some_kept, self.whole.kept, float(self.whole.size))

    def scaled(self, factor: Double) -> Row:
        assert self.whole is not None
        top = self.xp.where(factor.hi < 0, -self.whole.bottom, self.top)
        return replace(cast(_Part, super().scaled(factor)), top=top)

    def _at_infinity(self, others: float, top: Array) -> Row:
        part = cast(_Part, super()._at_infinity(others, top))
        whole, limit = self.whole, top == self.xp.inf
        if whole is not None:
            top, bottom = (self.xp.where(limit, 1.0, end) for end in (whole.top, whole.bottom))
            whole = whole._replace(top=top, bottom=bottom)
        return replace(part, top=self.xp.where(limit, 1.0, self.top), whole=whole)
