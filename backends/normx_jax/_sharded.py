"""Rows that are split over devices: states of the parts, merged by collectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial, reduce
from typing import Any

from normx._calls import check_backend
from normx._dispatch import _arrive, library_of, traced
from normx._errors import described, wrong
from normx._plan import prepare
from normx._record import Record, record_of
from normx._reference import compute
from normx._row import Row

Array = Any


def sharded(f: Callable[..., Any] | str, x: Any, /, *, axis_name: Any, **keywords: Any) -> Any:
    """Compute a function of rows that are split over devices, inside of ``jax.shard_map``.

    Each device finds the state of its part of a row; the states, a few numbers each, are gathered
    and merged, and applied to the part.  The scores stay where they are.

    Parameters
    ----------
    f : function or str
        A function of normx with a state, or its name.
    x : jax.Array
        This device's part of the rows: they are split along `axis`.
    axis_name : str or tuple of str
        The axis of the mesh over which they are split.
    **keywords
        As for `f`.  What goes with the scores, like `where` and `b`, is split as they are; what
        goes with the rows, like `temperature`, and sinks are whole on every device.

    Returns
    -------
    jax.Array
        This device's part of the weights; of a reduction the result, the same on every device.

    Raises
    ------
    TypeError
        If `x` is no array of JAX, or an argument is of the wrong kind.
    ValueError
        If `f` needs the whole row at once, like `normx.sparsemax`; for wrong values.

    Notes
    -----
    The formula computes, on any device, and differentiates through the collectives in both modes.
    The noise of `normx.gumbel_softmax` is drawn on each device for itself, from its own key.

    Examples
    --------
    >>> import jax, normx, normx_jax
    >>> auto = (jax.sharding.AxisType.Auto,)
    >>> mesh = jax.make_mesh((jax.device_count(),), ("parts",), axis_types=auto)
    >>> parts = jax.P(None, "parts")
    >>> softmax = jax.shard_map(
    ...     lambda x: normx_jax.sharded(normx.softmax, x, axis_name="parts"),
    ...     mesh=mesh, in_specs=parts, out_specs=parts,
    ... )
    >>> x = jax.numpy.zeros((2, 4 * jax.device_count()))
    >>> bool(jax.numpy.all(softmax(x) == normx.softmax(x)))
    True
    """
    import jax

    record = record_of(f)
    library, x = _arrive(record, x)
    if library is not library_of(jax.numpy.zeros(())):
        raise wrong(TypeError, "sharded", "x", described(x), "an array of jax")
    if record.stages is None:
        raise wrong(
            ValueError,
            "sharded",
            "f",
            record.name,
            "a function with a state that merges",
            "gather the row with jax.lax.all_gather first",
        )
    check_backend("sharded", keywords.get("backend"), only="reference")
    if record.random:
        own = jax.random.fold_in(keywords["rng"], jax.lax.axis_index(axis_name))
        keywords = {**keywords, "rng": own}
    prepared = prepare(record, library, x, keywords, library_of)
    plan, split = prepared.plan, partial(_split, axis_name)

    def call(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Any, str]:
        y = compute(plan, x, where, parameters, split)
        if record.kind == "reduction":
            y = jax.tree.map(partial(_replicated, axis_name), y)
        return y, f"{record.name}_sharded__jax"

    y, kernel = prepared.run(call, x, keywords)
    traced(record.name, "reference", kernel)
    return y


def _split(
    axis_name: Any, record: Record, row: Row, parameters: Mapping[str, Any]
) -> tuple[Row, tuple[Any, ...]]:
    """A part of a row that knows of the others, and the states of the whole."""
    states: tuple[Any, ...] = ()
    for stage in record.stages or ():
        lifted = stage.lift(row, *states, **parameters)
        merge = partial(stage.monoid.merge, row.xp)
        states += (reduce(merge, _of_all(axis_name, lifted)),)
    given = {entry.name: getattr(row, entry.name) for entry in fields(Row)}
    return _Shard(**given, axis_name=axis_name), states


def _of_all(axis_name: Any, state: Any) -> list[Any]:
    """The states that the devices have, in their order."""
    import jax

    leaves, form = jax.tree.flatten(state)
    gathered = [
        jax.lax.all_gather(leaf, axis_name) if hasattr(leaf, "shape") else leaf for leaf in leaves
    ]
    return [
        form.unflatten([leaf[i] if hasattr(leaf, "shape") else leaf for leaf in gathered])
        for i in range(jax.lax.axis_size(axis_name))
    ]


def _replicated(axis_name: Any, y: Array) -> Array:
    """What is the same on every device already, as JAX can see that it is."""
    import jax

    first = jax.lax.axis_index(axis_name) == 0
    return jax.lax.psum(jax.numpy.where(first, y, 0.0), axis_name)


@dataclass(frozen=True)
class _Shard(Row):
    """A part of a row whose sums and maximum are those of the whole."""

    axis_name: Any = None

    @cached_property
    def maximum(self) -> Array:
        largest = self.xp.max(self.scores, axis=self.axis, keepdims=True)
        return self.xp.max(self._gathered(largest), axis=0)

    @property
    def some_kept(self) -> Array:
        return self.count(self.kept) > 0

    def sum(self, x: Array) -> Array:
        return self.library.accurate_sum(self._gathered(super().sum(x)), (0,))[0]

    def _gathered(self, x: Array) -> Array:
        import jax

        return jax.lax.all_gather(x, self.axis_name)
