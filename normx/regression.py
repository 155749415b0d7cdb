r"""Softmax regression: the x whose softmax of A x comes nearest to a target.

.. math:: L(x) = \tfrac12 \| f(x) - b \|_2^2, \qquad f(x) = \operatorname{softmax}(A x)

With the rows of A as keys, x as the query and f as the row of weights it is what one row of
attention has to solve (Li, Song, Xia, Yu and Zhou, 2023).  The functions take arrays of any
array-API library, one problem or many: A of shape (..., n, d), x of shape (..., d), b of shape
(..., n), whose leading axes broadcast.  `SoftmaxRegression` solves one problem.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from normx._calls import dense
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._extras import needed
from normx._libraries import numpy_library
from normx._options import ArrayLike
from normx._plan import FLOATS, INTEGERS, NARROW
from normx.normalizers.softmax import softmax
from normx.plugins import Library, dtype_name

if TYPE_CHECKING:
    from normx._softmax_regression import SoftmaxRegression

__all__ = [
    "DataShift",
    "SoftmaxRegression",
    "data_shift",
    "gradient",
    "hessian",
    "lipschitz_bound",
    "loss",
]

Array = Any


def __getattr__(name: str) -> Any:
    """The estimator, whose base classes are scikit-learn's, when it is asked for."""
    if name == "SoftmaxRegression":
        needed("regression.SoftmaxRegression", "sklearn.base", "learn")
        from normx._softmax_regression import SoftmaxRegression

        return SoftmaxRegression
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, slots=True)
class _Problem:
    """A, x, b and the weights of the penalty in one library and dtype; f and f - b."""

    library: Library
    a: Array
    x: Array
    b: Array
    f: Array
    weights: Array | None
    dtype: str

    @property
    def xp(self) -> Any:
        return self.library.namespace()

    def rounded(self, y: Array) -> Array:
        return self.library.finish(self.library.cast(y, self.dtype))

    @property
    def residual(self) -> Array:
        return self.f - self.b

    @property
    def logits(self) -> Array:
        return _times(self.xp, self.a, self.x)

    @property
    def pulled(self) -> Array:
        """The slope of the loss in A x, without the penalty: (diag(f) - f fᵀ) (f - b)."""
        c = self.residual
        return self.f * (c - self.xp.sum(self.f * c, axis=-1, keepdims=True))


def _times(xp: Any, a: Array, x: Array) -> Array:
    """A matrix times a vector, whatever stands in front of their own axes."""
    return xp.matmul(a, x[..., None])[..., 0]


def _transposed_times(xp: Any, a: Array, u: Array) -> Array:
    return xp.matmul(xp.matrix_transpose(a), u[..., None])[..., 0]


def _problem(name: str, a: Any, x: Any, b: Any, weights: Any) -> _Problem:
    function = f"regression.{name}"
    library, arrays, dtype = _arrays(function, a=a, x=x, b=b, weights=weights)
    a, x, b = arrays["a"], arrays["x"], arrays["b"]
    n, d = _of_matrix(function, a)
    _last(function, "x", x, d, "the number of columns of `a`")
    _last(function, "b", b, n, "the number of rows of `a`")
    given = arrays.get("weights")
    if given is not None and len(given.shape) > 0:
        _last(function, "weights", given, n, "the number of rows of `a`")
    leading = [tuple(array.shape[:-k]) for array, k in ((a, 2), (x, 1), (b, 1))]
    try:
        np.broadcast_shapes(*leading)
    except ValueError:
        came = " and ".join(str(shape) for shape in leading)
        wanted = "arrays whose leading axes broadcast"
        raise wrong(ValueError, function, "a, x, b", f"of leading axes {came}", wanted) from None
    f = softmax(_times(library.namespace(), a, x))
    return _Problem(library, a, x, b, f, given, dtype)


def _arrays(function: str, **values: Any) -> tuple[Library, dict[str, Array], str]:
    """Arrays of one library in one floating dtype, and the dtype of results."""
    given = {name: value for name, value in values.items() if value is not None}
    arrays = {name: value for name, value in given.items() if hasattr(value, "dtype")}
    homes = {name: library_of(value) for name, value in arrays.items()}
    home = next((library for library in homes.values() if library is not None), numpy_library)
    dtypes = [home.default_float()]
    for name, value in arrays.items():
        came = dtype_name(value.dtype)
        if homes[name] is not home or came not in (*FLOATS, *INTEGERS):
            wanted = f"an array of real numbers of {home.name}, as the other arguments are"
            raise wrong(TypeError, function, name, described(value), wanted)
        dense(function, home, value)
        dtypes.append(home.default_float() if came in INTEGERS else came)
    # Lists and numbers take the dtype of the arrays.
    dtype = max(dtypes[1:] or dtypes, key=FLOATS.index)
    wide = "float32" if dtype in NARROW else dtype
    like = next(iter(arrays.values()), None)
    for name, value in given.items():
        if name in arrays:
            arrays[name] = home.cast(value, wide)
        elif isinstance(value, list | tuple | numbers.Real):
            try:
                arrays[name] = home.asarray(value, wide, like)
            except (TypeError, ValueError):
                came, wanted = described(value), "real numbers, or a regular nested list of them"
                raise wrong(TypeError, function, name, came, wanted) from None
        else:
            wanted = f"an array of {home.name}, a list or a number"
            raise wrong(TypeError, function, name, described(value), wanted)
    return home, arrays, dtype


def _of_matrix(function: str, a: Array) -> tuple[int, int]:
    if len(a.shape) < 2 or 0 in a.shape[-2:]:
        wanted = "a matrix of at least one row and column, or a stack of such"
        raise wrong(ValueError, function, "a", described(a), wanted)
    return a.shape[-2], a.shape[-1]


def _last(function: str, name: str, value: Array, size: int, what: str) -> None:
    if len(value.shape) == 0 or value.shape[-1] != size:
        wanted = f"an array whose last axis has size {size}, {what}"
        raise wrong(ValueError, function, name, described(value), wanted)


def loss(a: ArrayLike, x: ArrayLike, b: ArrayLike, /, *, weights: ArrayLike | None = None) -> Any:
    r"""Half the squared distance of a softmax from its target.

    .. math:: L(x) = \tfrac12 \|\operatorname{softmax}(A x) - b\|_2^2
        + \tfrac12 \|w \circ A x\|_2^2

    Parameters
    ----------
    a : array, shape (..., n, d)
        An array of any array-API library, or a list (taken as NumPy's).
    x : array, shape (..., d)
        Where.
    b : array, shape (..., n)
        The target; a distribution if the loss is to reach 0.
    weights : float or array, shape (..., n), optional
        Weights w of the penalty of [2]_, which makes the problem convex where they are large.

    Returns
    -------
    array, shape (...)
        Of the widest floating dtype that is passed.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind or library.
    ValueError
        If the shapes do not fit.

    See Also
    --------
    gradient, hessian : Its derivatives.

    References
    ----------
    .. [1] S. Li, Z. Song, Y. Xia, T. Yu and T. Zhou, "The closeness of in-context learning and
       weight shifting for softmax regression", arXiv:2304.13276, 2023.
    .. [2] Y. Deng, Z. Li and Z. Song, "Attention scheme inspired softmax regression",
       arXiv:2304.10411, 2023.

    Examples
    --------
    >>> from normx.regression import loss
    >>> a, x, b = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.5, -0.5], [0.2, 0.3, 0.5]
    >>> loss(a, x, b).round(6)
    np.float64(0.072013)
    """
    it = _problem("loss", a, x, b, weights)
    value = it.xp.sum(it.residual**2, axis=-1)
    if it.weights is not None:
        value = value + it.xp.sum((it.weights * it.logits) ** 2, axis=-1)
    return it.rounded(0.5 * value)


def gradient(
    a: ArrayLike, x: ArrayLike, b: ArrayLike, /, *, weights: ArrayLike | None = None
) -> Any:
    r"""The gradient of `loss` in x.

    .. math:: \nabla L = A^\top \left( f \circ c - f \langle f, c\rangle \right)
        + A^\top (w^2 \circ A x), \qquad f = \operatorname{softmax}(A x), \quad c = f - b

    Parameters
    ----------
    a : array, shape (..., n, d)
        As for `loss`.
    x : array, shape (..., d)
        As for `loss`.
    b : array, shape (..., n)
        As for `loss`.
    weights : float or array, shape (..., n), optional
        As for `loss`.

    Returns
    -------
    array, shape (..., d)
        Of the widest floating dtype that is passed.

    Raises
    ------
    TypeError, ValueError
        As `loss`.

    See Also
    --------
    lipschitz_bound : How fast it changes.

    Examples
    --------
    >>> from normx.regression import gradient
    >>> a, x, b = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.5, -0.5], [0.2, 0.3, 0.5]
    >>> gradient(a, x, b).round(6)
    array([ 0.035121, -0.117333])
    """
    it = _problem("gradient", a, x, b, weights)
    return it.rounded(_gradient(it))


def _gradient(it: _Problem) -> Array:
    slope = it.pulled
    if it.weights is not None:
        slope = slope + it.weights**2 * it.logits
    return _transposed_times(it.xp, it.a, slope)


def hessian(
    a: ArrayLike, x: ArrayLike, b: ArrayLike, /, *, weights: ArrayLike | None = None
) -> Any:
    r"""The matrix of second derivatives of `loss` in x.

    .. math:: \nabla^2 L = A^\top \left( J^2 + \operatorname{diag}(g) - g f^\top - f g^\top
        + \operatorname{diag}(w^2) \right) A,
        \qquad J = \operatorname{diag}(f) - f f^\top, \quad g = J (f - b)

    Parameters
    ----------
    a : array, shape (..., n, d)
        As for `loss`.
    x : array, shape (..., d)
        As for `loss`.
    b : array, shape (..., n)
        As for `loss`.
    weights : float or array, shape (..., n), optional
        As for `loss`.

    Returns
    -------
    array, shape (..., d, d)
        Symmetric; without `weights` not positive definite in general.

    Raises
    ------
    TypeError, ValueError
        As `loss`.

    See Also
    --------
    gradient : The first derivatives.

    Notes
    -----
    For a target in the simplex, weights with
    :math:`w_i^2 \ge 1.5\sqrt2 + l/\sigma_{\min}(A)^2` make it at least l times the identity.
    Only matrices of the size of `a` are made, none of n by n.

    Examples
    --------
    >>> from normx.regression import hessian
    >>> a, x, b = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.5, -0.5], [0.2, 0.3, 0.5]
    >>> hessian(a, x, b).round(4)
    array([[ 0.0131, -0.0331],
           [-0.0331,  0.0941]])
    """
    it = _problem("hessian", a, x, b, weights)
    xp, f, g = it.xp, it.f, it.pulled
    mean = _transposed_times(xp, it.a, f)
    # J A, whose square is A^T J^2 A.
    moved = f[..., None] * (it.a - mean[..., None, :])
    diagonal = g if it.weights is None else g + it.weights**2
    along = _transposed_times(xp, it.a, g)
    crossed = along[..., None] * mean[..., None, :]
    value = (
        xp.matmul(xp.matrix_transpose(moved), moved)
        + xp.matmul(xp.matrix_transpose(it.a), diagonal[..., None] * it.a)
        - (crossed + xp.matrix_transpose(crossed))
    )
    return it.rounded(value)


def lipschitz_bound(
    a: ArrayLike, b: ArrayLike | None = None, /, *, weights: ArrayLike | None = None
) -> Any:
    r"""A Lipschitz constant of `gradient`, everywhere.

    .. math:: \Lambda = \left(\tfrac14 + \tfrac32 \max_i \|e_i - b\|_2 + \max_i w_i^2\right)
        \|A\|_2^2

    Parameters
    ----------
    a : array, shape (..., n, d)
        As for `loss`.
    b : array, shape (..., n), optional
        The target; without it, the bound for every distribution, with a distance of √2.
    weights : float or array, shape (..., n), optional
        As for `loss`.

    Returns
    -------
    array, shape (...)
        Gradient descent with steps of at most 1/Λ never raises the loss.

    Raises
    ------
    TypeError, ValueError
        As `loss`.

    See Also
    --------
    data_shift : Such a step.

    Notes
    -----
    It rests on :math:`\|J\|_2 \le \frac12` in the whole simplex, and on a softmax never being
    further from the target than the furthest corner.  The bound of [1]_ is exponential in the
    norms of A and x; this one does not depend on x.  For one softmax,
    :math:`\|f(x) - f(y)\| \le \frac12 \|A\|_2 \|x - y\|`.

    References
    ----------
    .. [1] S. Li, Z. Song, Y. Xia, T. Yu and T. Zhou, "The closeness of in-context learning and
       weight shifting for softmax regression", arXiv:2304.13276, 2023.

    Examples
    --------
    >>> from normx.regression import lipschitz_bound
    >>> lipschitz_bound([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).round(4)
    np.float64(7.114)
    """
    function = "regression.lipschitz_bound"
    library, arrays, dtype = _arrays(function, a=a, b=b, weights=weights)
    xp, a = library.namespace(), arrays["a"]
    n, _ = _of_matrix(function, a)
    furthest: Any = math.sqrt(2.0)
    if "b" in arrays:
        b = arrays["b"]
        _last(function, "b", b, n, "the number of rows of `a`")
        squares = xp.sum(b**2, axis=-1, keepdims=True) + 1.0 - 2.0 * b
        furthest = xp.sqrt(xp.max(squares, axis=-1))
    bound = 0.25 + 1.5 * furthest
    if "weights" in arrays:
        w = arrays["weights"]
        bound = bound + (xp.max(w**2, axis=-1) if len(w.shape) else w**2)
    value = bound * _norm(function, library, a) ** 2
    return library.finish(library.cast(value, dtype))


def _norm(function: str, library: Library, a: Array) -> Array:
    """The largest singular value."""
    norm = library.spectral_norm(a)
    if norm is None:
        cure = "convert the arrays to NumPy first"
        wanted = "of a library that has the singular values of stacks of matrices"
        raise wrong(TypeError, function, "a", f"an array of {library.name}", wanted, cure)
    return norm


class DataShift(NamedTuple):
    """A gradient step, and the change of the target that stands for it.

    Parameters
    ----------
    x : array
        Where the step leads.
    target : array
        The target for which the loss, before the step, is that of the true one after it.
    bound : array
        What the distance of the two targets cannot exceed.
    """

    x: Array
    target: Array
    bound: Array


def data_shift(a: ArrayLike, x: ArrayLike, b: ArrayLike, /, *, step: Any = None) -> DataShift:
    r"""The shift of the target that equals a gradient step.

    .. math:: x' = x - \eta \nabla L(x), \qquad \tilde b = b + f(x) - f(x'), \qquad
        f(x') - b = f(x) - \tilde b

    Parameters
    ----------
    a : array, shape (..., n, d)
        As for `loss`.
    x : array, shape (..., d)
        As for `loss`.
    b : array, shape (..., n)
        As for `loss`.
    step : float, optional
        η, above 0; 1 over `lipschitz_bound` by default, with which the loss does not rise.

    Returns
    -------
    DataShift
        ``(x, target, bound)``: x', :math:`\tilde b` and :math:`\frac12 \|A\|_2 \|x' - x\|_2`, which
        :math:`\|b - \tilde b\|_2` does not exceed.

    Raises
    ------
    TypeError, ValueError
        As `loss`; ValueError for a step that is not above 0.

    See Also
    --------
    lipschitz_bound : How long a step can be.

    Notes
    -----
    This is how a change of weights and a change of the data in context come to the same.

    References
    ----------
    .. [1] S. Li, Z. Song, Y. Xia, T. Yu and T. Zhou, "The closeness of in-context learning and
       weight shifting for softmax regression", arXiv:2304.13276, 2023.

    Examples
    --------
    >>> from normx.regression import data_shift, loss
    >>> a, x, b = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.5, -0.5], [0.2, 0.3, 0.5]
    >>> shifted = data_shift(a, x, b)
    >>> bool(abs(loss(a, shifted.x, b) - loss(a, x, shifted.target)) < 1e-15)
    True
    """
    it = _problem("data_shift", a, x, b, None)
    xp = it.xp
    eta: Any = step
    if step is None:
        bound = lipschitz_bound(it.a, it.b)
        zero = bound == 0.0  # of zeros: every step is the same
        eta = xp.where(zero, 0.0, 1.0 / xp.where(zero, 1.0, bound))[..., None]
    elif isinstance(step, bool) or not isinstance(step, numbers.Real):
        raise wrong(TypeError, "regression.data_shift", "step", described(step), "a number")
    elif not 0.0 < float(step) < math.inf:
        raise wrong(ValueError, "regression.data_shift", "step", repr(step), "above 0")
    move = eta * _gradient(it)
    after = it.x - move
    target = it.b + it.f - softmax(_times(xp, it.a, after))
    norm = _norm("regression.data_shift", it.library, it.a)
    bound = 0.5 * norm * xp.sqrt(xp.sum(move**2, axis=-1))
    return DataShift(*(it.rounded(value) for value in (after, target, bound)))
