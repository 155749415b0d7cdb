"""The libraries' own differentiation through the formulas agrees with the records' gradients."""

import numpy as np
import pytest

import normx
from normx._record import registry

RECORDS = [record for record in registry().values() if record.vjp is not None and not record.random]
MASK = np.array([True, True, False, True, True])
ROWS = {
    "plain": np.random.default_rng(0).normal(size=(3, 5)),
    "ties": np.array([[0.0, 0.0, 0.0, -1.0, 2.0], [1.0] * 5]),
    "infinite": np.array([[-np.inf, 0, 1, -np.inf, 2], [-np.inf] * 5, [0.0, 1, 2, 3, 4]]),
}
OPTIONS = {
    "none": {},
    "where": {"where": MASK},
    "temperature": {"temperature": np.array([[0.7]])},
    "softcap": {"softcap": 3.0},
}


def torch_gradient(f, x, weights, keywords):
    torch = pytest.importorskip("torch")
    scores = torch.tensor(x, requires_grad=True)
    arrays = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in keywords.items()}
    y = f(scores, **arrays)
    torch.where(torch.isfinite(y), y * torch.tensor(weights), 0.0).sum().backward()
    return scores.grad.numpy()


def jax_gradient(f, x, weights, keywords):
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    arrays = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in keywords.items()}

    def loss(scores):
        y = f(scores, **arrays)
        return jnp.sum(jnp.where(jnp.isfinite(y), y, 0.0) * weights.astype(np.float32))

    return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(x.astype(np.float32))))


def mlx_gradient(f, x, weights, keywords):
    mx = pytest.importorskip("mlx.core")
    arrays = {k: mx.array(v) if isinstance(v, np.ndarray) else v for k, v in keywords.items()}

    def loss(scores):
        y = f(scores, **arrays)
        return mx.sum(mx.where(mx.isfinite(y), y, 0.0) * mx.array(weights))

    return np.asarray(mx.grad(loss)(mx.array(x)))


GRADIENTS = {
    "torch": (torch_gradient, 1e-10),
    "jax": (jax_gradient, 1e-4),
    "mlx": (mlx_gradient, 1e-4),
}


@pytest.mark.parametrize("library", GRADIENTS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_the_library_differentiates_through_the_formula(record, rows, option, library):
    x, keywords = ROWS[rows], dict(record.example) | OPTIONS[option]
    if not set(keywords) <= set(record.keywords):
        pytest.skip(f"{record.name} has no {option}")
    y, pullback = normx.vjp(record.function, x, axis=-1, **keywords)
    weights = np.where(np.isfinite(y), np.random.default_rng(1).normal(size=y.shape), 0.0)
    gradient, tolerance = GRADIENTS[library]
    got = gradient(lambda a, **k: record.function(a, axis=-1, **k), x, weights, keywords)
    np.testing.assert_allclose(got, pullback(weights)["x"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("library", ["torch"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_second_derivatives(record, library):
    """The gradient differentiates again, and agrees with differences of itself."""
    torch = pytest.importorskip(library)
    x = torch.tensor(ROWS["plain"][:, :4], requires_grad=True)
    keywords = dict(record.example)
    if "differentiate_temperature" in record.keywords:
        keywords["differentiate_temperature"] = True
    f = lambda scores: record.function(scores, axis=-1, **keywords)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(f, (x,))
