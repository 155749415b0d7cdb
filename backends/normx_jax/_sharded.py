"""Rows that are split over devices: states of the parts, merged by collectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

from normx._calls import check_backend
from normx._dispatch import _arrive, library_of, traced
from normx._errors import described, wrong
from normx._plan import prepare
from normx._record import Record, record_of
from normx._reference import compute
from normx._row import Row, Whole

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


def over_devices(f: Any) -> Callable[[Array], Array]:
    """A `partial` of a function of normx, for rows that are split over all devices that fit."""
    import jax

    def spec(value: Any, place: int, size: int) -> Any:
        """Split along axis `place` from the end, if it is as long as the scores are there."""
        fits = place <= value.ndim and value.shape[-place] == size
        return jax.P(*(None,) * (value.ndim - place), "parts") if fits else jax.P()

    def run(x: Array) -> Array:
        keywords = {"axis": -1, **f.keywords}
        axis = keywords["axis"]
        axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        along = max((i % x.ndim for i in axes if x.ndim), key=lambda i: x.shape[i], default=None)
        size = 1 if along is None else x.shape[along]
        parts = max(n for n in range(1, jax.device_count() + 1) if size % n == 0)
        mesh = jax.sharding.Mesh(jax.devices()[:parts], "parts")
        place = x.ndim + 1 if along is None else x.ndim - along
        arrays = {name: value for name, value in keywords.items() if isinstance(value, jax.Array)}
        others = {name: value for name, value in keywords.items() if name not in arrays}
        beside = {  # what goes with the rows is whole
            name: spec(value, place, size) if name in ("where", "b") else jax.P()
            for name, value in arrays.items()
        }
        own = spec(x, place, size)
        split = jax.shard_map(
            lambda x, given: sharded(f.func, x, axis_name="parts", **others, **given),
            mesh=mesh,
            in_specs=(own, beside),
            out_specs=own if record_of(f.func).kind == "normalizer" else jax.P(),
        )
        return jax.jit(split)(x, arrays)

    return run


def _split(
    axis_name: Any, record: Record, row: Row, parameters: Mapping[str, Any]
) -> tuple[Row, Row, tuple[Any, ...]]:
    """A part of a row that knows of the others, and the states of the whole."""
    import jax

    xp = row.xp
    low = xp.max(xp.where(row.present, -row.scores, -xp.inf), axis=row.axis, keepdims=True)
    kept = xp.ones_like(row.present) if row.kept is None else row.kept
    top, low = (xp.max(_gathered(axis_name, x), axis=0) for x in (row.maximum, low))
    kept = xp.sum(_gathered(axis_name, row.count(kept)), axis=0)
    size = math.prod(row.scores.shape[i] for i in row.axis) * jax.lax.axis_size(axis_name)
    part = row.of(Whole(top, -low, kept, size))
    # Scores that no temperature applies to, beside others, have a maximum of their own.
    row = row if record.fills else part
    states: tuple[Any, ...] = ()
    for stage in record.stages or ():
        lifted = stage.lift(row, *states, **parameters)
        merge = partial(stage.monoid.merge, xp)
        states += (reduce(merge, _of_all(axis_name, lifted)),)
    return part, row, states


def _gathered(axis_name: Any, x: Array) -> Array:
    """What the devices have, with an axis for them in front: in both modes differentiable."""
    import jax

    return jax.lax.all_gather(x, axis_name)


def _of_all(axis_name: Any, state: Any) -> list[Any]:
    """The states that the devices have, in their order."""
    import jax

    leaves, form = jax.tree.flatten(state)
    gathered = [_gathered(axis_name, leaf) if hasattr(leaf, "shape") else leaf for leaf in leaves]
    return [
        form.unflatten([leaf[i] if hasattr(leaf, "shape") else leaf for leaf in gathered])
        for i in range(jax.lax.axis_size(axis_name))
    ]


def _replicated(axis_name: Any, y: Array) -> Array:
    """What is the same on every device already, as JAX can see that it is."""
    import jax

    first = jax.lax.axis_index(axis_name) == 0
    return jax.lax.psum(jax.numpy.where(first, y, 0.0), axis_name)
