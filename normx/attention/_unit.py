"""Attention as particular papers have it, and what stands around it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._plan import is_number
from normx.attention._attention import attention, attention_vjp
from normx.attention._heads import arrays_of

Array = Any
ArrayLike = Any


def sigmoid_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    /,
    *,
    bias: ArrayLike | None = None,
    n: ArrayLike | None = None,
    **options: Any,
) -> Any:
    r"""Attention whose weights do not compete: a logistic function of each score.

    .. math:: O = \sigma\!\left(\frac{Q K^\top}{\sqrt d} + b\right) V, \qquad b = -\log n

    Parameters
    ----------
    q, k, v : array
        As for `attention`.
    bias : float or array, optional
        b; by default minus the logarithm of `n`.
    n : float or array, optional
        The length that the bias stands for; by default the number of keys that a query sees.
        A model keeps the length that it was trained with: ``n=2048``.
    **options
        As for `attention`.

    Returns
    -------
    array or tuple of array
        As of `attention`.

    Raises
    ------
    TypeError, ValueError
        As `attention`.

    See Also
    --------
    layer_scale : What keeps the outputs small at the start of training.

    Notes
    -----
    With the default, scores near 0 have weights that sum to ``n/(n + 1)``.  The paper trains
    with queries and keys normalised (``normx.zscore(q, eps=1e-5)`` for each) and with
    `layer_scale`.

    References
    ----------
    .. [1] J. Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid
       Self-Attention", ICLR 2025, arXiv:2409.04431.

    Examples
    --------
    >>> from normx.attention import sigmoid_attention
    >>> sigmoid_attention([[0.0]], [[1.0], [2.0]], [[3.0], [3.0]])
    array([[2.]])
    """
    given = {name: x for name, x in (("bias", bias), ("n", n)) if x is not None}
    return attention(q, k, v, normalizer="sigmoid", **given, **options)


def ssmax_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    /,
    *,
    s: ArrayLike = 0.43,
    b: ArrayLike = 0.0,
    n: ArrayLike | None = None,
    **options: Any,
) -> Any:
    r"""Attention that does not fade as the keys grow in number: Scalable-Softmax.

    .. math:: O_i = \mathrm{softmax}\!\left((s \log n_i + b) \frac{q_i K^\top}{\sqrt d}\right) V

    Parameters
    ----------
    q, k, v : array
        As for `attention`.
    s : float or array
        The scale per unit of log n, learned in the paper: of shape (heads, 1, 1) one per head.
    b : float or array
        A constant part of the scale.
    n : float or array, optional
        By default the number of keys that a query sees: i + 1 for the i-th under `causal`.
    **options
        As for `attention`.

    Returns
    -------
    array or tuple of array
        As of `attention`.

    Raises
    ------
    TypeError, ValueError
        As `attention`.

    See Also
    --------
    normx.ssmax : The normalizer.

    Notes
    -----
    To begin training where softmax would, take ``s=0.168``: one over the mean of log n for n up
    to 1024.

    References
    ----------
    .. [1] K. M. Nakanishi, "Scalable-Softmax Is Superior for Attention", arXiv:2501.19399, 2025.

    Examples
    --------
    >>> from normx.attention import ssmax_attention
    >>> q, k, v = [[1.0]], [[3.0]] + [[-2.0]] * 999, [[1.0]] + [[0.0]] * 999
    >>> ssmax_attention(q, k, v).round(6)
    array([[0.999646]])
    """
    given = {"n": n} if n is not None else {}
    return attention(q, k, v, normalizer="ssmax", s=s, b=b, **given, **options)


def entropy_invariant_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    /,
    *,
    n0: ArrayLike = 512,
    n_min: ArrayLike = 1,
    n: ArrayLike | None = None,
    **options: Any,
) -> Any:
    r"""Attention whose entropy depends little on the number of keys.

    .. math:: O_i = \mathrm{softmax}\!\left(\frac{\log \max(n_i, n_{min})}{\log n_0}
        \frac{q_i K^\top}{\sqrt d}\right) V

    Parameters
    ----------
    q, k, v : array
        As for `attention`.
    n0 : float or array
        The length at which this is softmax attention; above 1.
    n_min : float or array
        Fewer keys are taken for as many; GAU-α takes 16.
    n : float or array, optional
        By default the number of keys that a query sees.
    **options
        As for `attention`.

    Returns
    -------
    array or tuple of array
        As of `attention`.

    Raises
    ------
    TypeError, ValueError
        As `attention`.

    See Also
    --------
    normx.entropy_invariant_softmax : The normalizer.

    References
    ----------
    .. [1] J. Su, "Attention and Softmax go better together", kexue.fm/archives/9019, 2022.

    Examples
    --------
    >>> from normx.attention import entropy_invariant_attention
    >>> k, v = [[1.0], [2.0], [3.0], [-1.0]], [[1.0], [0.0], [0.0], [0.0]]
    >>> entropy_invariant_attention([[1.0]], k, v).round(4)
    array([[0.2247]])
    """
    given = {"n": n} if n is not None else {}
    name = "entropy_invariant_softmax"
    return attention(q, k, v, normalizer=name, n0=n0, n_min=n_min, **given, **options)


def gated_attention_unit(
    u: ArrayLike,
    v: ArrayLike,
    z_q: ArrayLike,
    z_k: ArrayLike,
    /,
    *,
    normalizer: str | Callable[..., Any] = "entropy_invariant_softmax",
    **options: Any,
) -> Any:
    r"""Attention of one head, whose output is a gate's to let through.

    .. math:: O = U \odot (A V), \qquad A = f\!\left(\frac{Z_q Z_k^\top}{\sqrt s}\right)

    Parameters
    ----------
    u : array
        Gates (..., Lq, e).
    v : array
        Values (..., Lk, e).
    z_q : array
        Queries (..., Lq, s): one affine map of what all four are made of.
    z_k : array
        Keys (..., Lk, s): another.
    normalizer : str or function
        As for `attention`; ``"squared_relu"`` is that of the paper.
    **options
        As for `attention`.

    Returns
    -------
    array
        (..., Lq, e), in the widest of the dtypes that came.

    Raises
    ------
    TypeError, ValueError
        As `attention`; also if `u` has another shape than the outputs of that.

    See Also
    --------
    attention : Which it multiplies.

    Notes
    -----
    The projections before and after (u = swish(x Wu), and so on, and the one of O) are the
    caller's.

    References
    ----------
    .. [1] W. Hua, Z. Dai, H. Liu and Q. V. Le, "Transformer Quality in Linear Time", ICML 2022,
       arXiv:2202.10447.
    .. [2] J. Su, "Attention and Softmax go better together", kexue.fm/archives/9019, 2022.

    Examples
    --------
    >>> from normx.attention import gated_attention_unit
    >>> gated_attention_unit([[2.0]], [[1.0], [3.0]], [[0.0]], [[1.0], [1.0]])
    array([[4.]])
    """
    function = "gated_attention_unit"
    _, arrays = arrays_of(function, {"u": u, "v": v, "z_q": z_q, "z_k": z_k})
    if options.pop("return_weights", False) is not False:
        wanted, cure = "absent", "attention(z_q, z_k, v, ...) has them"
        raise wrong(TypeError, function, "return_weights", "given", wanted, cure)
    u, v, z_q, z_k = arrays.values()
    mixed = attention(z_q, z_k, v, normalizer=normalizer, **options)
    _check_gates(function, u, mixed)
    return u * mixed


def gated_attention_unit_vjp(
    u: ArrayLike, v: ArrayLike, z_q: ArrayLike, z_k: ArrayLike, /, **params: Any
) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """Compute `gated_attention_unit` and its vector-Jacobian product.

    Parameters
    ----------
    u, v, z_q, z_k, **params
        As for `gated_attention_unit`.

    Returns
    -------
    y : array
        ``gated_attention_unit(u, v, z_q, z_k, **params)``.
    pullback : callable
        ``pullback(dy)`` gives a dict with the gradients under ``"u"``, ``"v"``, ``"z_q"`` and
        ``"z_k"``, and one per numeric keyword of the normalizer that was passed.

    Raises
    ------
    TypeError, ValueError
        What `gated_attention_unit` raises; also for a `dy` that does not fit.

    Examples
    --------
    >>> import normx
    >>> from normx.attention import gated_attention_unit
    >>> given = [[2.0]], [[1.0], [3.0]], [[0.0]], [[1.0], [1.0]]
    >>> y, pullback = normx.vjp(gated_attention_unit, *given)
    >>> pullback([[1.0]])["u"]
    array([[2.]])
    """
    function = "gated_attention_unit_vjp"
    params.setdefault("normalizer", "entropy_invariant_softmax")
    library, arrays = arrays_of(function, {"u": u, "v": v, "z_q": z_q, "z_k": z_k})
    u, v, z_q, z_k = arrays.values()
    mixed, of_attention = attention_vjp(z_q, z_k, v, **params)
    _check_gates(function, u, mixed)

    def pullback(dy: Array) -> dict[str, Array]:
        if library.name == "numpy" and not hasattr(dy, "dtype"):
            dy = library.namespace().asarray(dy)
        if library_of(dy) is not library or tuple(dy.shape) != tuple(mixed.shape):
            wanted = f"an array of {library.name} of shape {tuple(mixed.shape)}"
            raise wrong(ValueError, function, "dy", described(dy), wanted)
        found = of_attention(dy * u)
        return {"u": dy * mixed, "z_q": found.pop("q"), "z_k": found.pop("k"), **found}

    return u * mixed, pullback


gated_attention_unit.vjp = gated_attention_unit_vjp  # type: ignore[attr-defined]  # for `normx.vjp`


def _check_gates(function: str, u: Array, mixed: Array) -> None:
    if tuple(u.shape) != tuple(mixed.shape):
        wanted = f"of the shape of the outputs, {tuple(mixed.shape)}"
        raise wrong(ValueError, function, "u", f"of shape {tuple(u.shape)}", wanted)


def layer_scale(x: ArrayLike, /, *, gamma: ArrayLike = 1e-4) -> Any:
    r"""Outputs of a branch, scaled before they are added to what goes around it.

    .. math:: y = \gamma x

    Parameters
    ----------
    x : array
        Outputs (..., size).
    gamma : float or array
        One number, or one for each entry of the last axis: learned, and small at first.

    Returns
    -------
    array
        Of the shape of `x`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind or library.
    ValueError
        If the shape of `gamma` does not fit.

    See Also
    --------
    sigmoid_attention : Which needs it.

    References
    ----------
    .. [1] H. Touvron, M. Cord, A. Sablayrolles, G. Synnaeve and H. Jégou, "Going deeper with
       Image Transformers", ICCV 2021, arXiv:2103.17239.

    Examples
    --------
    >>> from normx.attention import layer_scale
    >>> layer_scale([[1.0, 2.0]], gamma=0.5)
    array([[0.5, 1. ]])
    """
    library, arrays = arrays_of("layer_scale", {"x": x})
    x = arrays["x"]
    if not is_number(gamma):
        _, both = arrays_of("layer_scale", {"x": x, "gamma": gamma})
        gamma = both["gamma"]
        if tuple(gamma.shape) not in ((), (1,), tuple(x.shape[-1:])):
            wanted = f"a number, or of shape {tuple(x.shape[-1:])}"
            raise wrong(ValueError, "layer_scale", "gamma", f"of shape {gamma.shape}", wanted)
    return library.finish(x * gamma)
