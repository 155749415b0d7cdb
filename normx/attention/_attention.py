"""Attention with any row normalizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from normx._calls import check_backend
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx.attention._heads import Heads, flag_of, heads_of, mask_of, scale_of
from normx.attention._tiles import (
    Rule,
    gradients,
    keywords_for,
    outputs,
    record_for,
    weights_and_outputs,
    without_unseen,
)

Array = Any
ArrayLike = Any


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    /,
    *,
    normalizer: str | Callable[..., Any] = "softmax",
    causal: bool = False,
    where: ArrayLike | None = None,
    scale: float | None = None,
    layout: str = "bhld",
    return_weights: bool = False,
    backend: str | None = None,
    **normalizer_keywords: Any,
) -> Any:
    r"""Mean of the values, weighted by any row normalizer of the scores.

    .. math:: O = f\!\left(\frac{Q K^\top}{\sqrt d}\right) V

    Parameters
    ----------
    q : array
        Queries (..., heads, Lq, d), or (Lq, d): an array of any array-API library, or a list
        (taken as NumPy's).
    k : array
        Keys (..., heads, Lk, d).  The axes before the heads broadcast; the number of heads may
        be 1, or divide that of `q`, and each then serves as many heads of `q` in a row.
    v : array
        Values (..., heads, Lk, dv).
    normalizer : str or function
        Any row normalizer of normx, whose results are weights.
    causal : bool
        Whether a query sees no later key.  The last query sees the last key, whatever the
        lengths are: query i sees the keys up to ``i + Lk - Lq``.
    where : array of bool, optional
        Broadcastable against the scores, (..., heads, Lq, Lk); True for what is seen.
    scale : float, optional
        The scores are multiplied by it; ``1/sqrt(d)`` by default.
    layout : {"bhld", "blhd"}
        Order of the last axes of `q`, `k`, `v` and of the result: heads before lengths, or
        lengths before heads.  Scores, and what broadcasts against them, have the heads first.
    return_weights : bool
        Whether the weights come with the result; they are all in memory then.
    backend : str, optional
        Who computes the weights: a name from `normx.backends()`.
    **normalizer_keywords
        The keywords of the normalizer, its shared options included.  Arrays broadcast against
        the scores, as ``s`` of shape (heads, 1, 1) for one number per head.

    Returns
    -------
    array or tuple of array
        The outputs (..., heads, Lq, dv), in the widest of the dtypes that came; with
        `return_weights` a tuple of them and the weights (..., heads, Lq, Lk).

    Raises
    ------
    TypeError
        If an argument is of the wrong kind or library, or a keyword is unknown.
    ValueError
        If an argument has a wrong value, or a shape that does not fit the others.

    See Also
    --------
    AttentionState : The same for keys that come in pieces.
    cosformer : Attention in linear time.

    Notes
    -----
    Where a formula uses the length of the row, n, it is the number of keys that the query sees.

    The scores of a block of queries are in memory at a time: about a million numbers, or 16
    queries' where the keys are more than 65536.  Libraries that differentiate compute each
    block again for the gradient, so that takes no more.  With `return_weights`, and for
    normalizers that draw noise, all scores are there at once.

    float16 and bfloat16 are computed in float32 and rounded once.  A query that sees no keys gets
    zeros.

    A key has no effect on the queries that do not see it, whatever it and its value hold.  Calls
    that torch compiles or maps, and lazy ones, keep to that for keys that no query sees; if some
    do, NaN or infinities in the value can be in the results of all.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, 2017.
    .. [2] M. N. Rabe and C. Staats, "Self-attention Does Not Need O(n^2) Memory",
       arXiv:2112.05682, 2021.

    Examples
    --------
    >>> from normx.attention import attention
    >>> q, k, v = [[1.0, 0.0]], [[4.0, 0.0], [0.0, 4.0]], [[1.0], [0.0]]
    >>> attention(q, k, v).round(4)
    array([[0.9442]])
    >>> attention(q, k, v, normalizer="sparsemax")
    array([[1.]])
    """
    heads, rule = prepared(
        "attention",
        (q, k, v),
        normalizer_keywords,
        normalizer=normalizer,
        causal=causal,
        where=where,
        scale=scale,
        layout=layout,
        backend=backend,
    )
    if not flag_of("attention", "return_weights", return_weights):
        return heads.finished(outputs(heads, rule))
    weights, y = weights_and_outputs(heads, rule)
    return heads.finished(y), heads.library.cast(heads.natural(weights), heads.dtype)


def prepared(
    function: str,
    arrays: tuple[Any, Any, Any],
    keywords: Mapping[str, Any],
    *,
    normalizer: Any,
    causal: Any,
    where: Any,
    scale: Any,
    layout: Any,
    backend: Any,
) -> tuple[Heads, Rule]:
    """Check every argument."""
    record = record_for(function, normalizer)
    heads = heads_of(function, *arrays, layout)
    own = keywords_for(function, record, keywords, heads)
    mask = mask_of(function, heads, where)
    if backend is not None:  # what was chosen around the call is the normalizer's to look up
        check_backend(function, backend)
    rule = Rule(
        record=record,
        keywords=own,
        where=mask,
        causal=flag_of(function, "causal", causal),
        scale=scale_of(function, scale, heads.q.shape[-1]),
        backend=backend,
    )
    return (without_unseen(heads, mask) if rule.trims else heads), rule


def attention_vjp(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, /, **params: Any
) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """Compute `attention` and its vector-Jacobian product.

    Parameters
    ----------
    q, k, v, **params
        As for `attention`, but for `return_weights`.

    Returns
    -------
    y : array
        ``attention(q, k, v, **params)``.
    pullback : callable
        ``pullback(dy)`` gives a dict with the gradients of ``sum(y * dy)`` under ``"q"``,
        ``"k"`` and ``"v"``, and one per numeric keyword of the normalizer that was passed, each
        in the shape of what was passed.

    Raises
    ------
    TypeError, ValueError
        What `attention` raises; also for `return_weights`, and a `dy` that does not fit.

    Notes
    -----
    ``normx.vjp(attention, q, k, v, ...)`` is this.  The weights of a block of queries are
    computed again, so nothing larger than a block is kept.

    Examples
    --------
    >>> import normx
    >>> from normx.attention import attention
    >>> y, pullback = normx.vjp(attention, [[0.0]], [[1.0], [2.0]], [[0.0], [1.0]])
    >>> pullback([[1.0]])["q"]
    array([[0.25]])
    """
    function = "attention_vjp"
    if params.pop("return_weights", False) is not False:
        wanted, cure = "absent", "the gradient is that of the outputs"
        raise wrong(TypeError, function, "return_weights", "given", wanted, cure)
    defaults = {"normalizer": "softmax", "causal": False, "where": None, "scale": None}
    defaults |= {"layout": "bhld", "backend": None}
    own = {name: params.pop(name, value) for name, value in defaults.items()}
    heads, rule = prepared(function, (q, k, v), params, **own)
    library, again = heads.library, rule
    if "rng" in rule.keywords:  # the pullback is that of the same noise
        kept = library.copy_of_rng(rule.keywords["rng"])
        again = rule.with_keywords(rng=kept)
    y = heads.finished(outputs(heads, rule))
    shape = tuple(y.shape)

    def pullback(dy: Array) -> dict[str, Array]:
        if library.name == "numpy" and not hasattr(dy, "dtype"):
            dy = library.asarray(dy, heads.dtype, heads.q)
        if library_of(dy) is not library or tuple(dy.shape) != shape:
            wanted = f"an array of {library.name} of shape {shape}"
            raise wrong(ValueError, function, "dy", described(dy), wanted)
        found = gradients(heads, again, heads.entered(dy))
        mine = {name: heads.returned(name, found.pop(name)) for name in ("q", "k", "v")}
        for name, gradient in found.items():
            given = params[name]
            mine[name] = library.namespace().reshape(gradient, tuple(getattr(given, "shape", ())))
        return mine

    return y, pullback


attention.vjp = attention_vjp  # type: ignore[attr-defined]  # for `normx.vjp`
