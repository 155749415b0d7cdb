"""The losses on every library: values, gradients in both ways, and what happens at their limits."""

import contextlib
from functools import partial

import numpy as np
import pytest

import normx
from normx import losses
from normx._dispatch import library as library_named
from normx._dispatch import library_of
from normx.losses import CrossEntropy, cross_entropy
from normx.testing.gradients import differences

INF, NAN = np.inf, np.nan
LIBRARIES = ("numpy", "array_api_strict", "torch", "jax", "mlx")
DIFFERENTIATING = ("torch", "jax")

RNG = np.random.default_rng(0)
X, TARGETS = RNG.normal(0.0, 1.5, (4, 5)), np.array([2, 0, 4, 2])
MASK = RNG.random((4, 5)) < 0.6
np.put_along_axis(MASK, TARGETS[:, None], True, -1)
FEATURES, WEIGHTS = RNG.normal(size=(4, 3)), RNG.normal(size=(5, 3))
BIAS, CLASS_WEIGHTS = RNG.normal(size=5), RNG.uniform(0.5, 2.0, 5)


def every(loss, **keywords):
    """A loss of logits with its own keywords, and with those that all have."""
    for name, shared in {
        "": {},
        "where": {"where": MASK},
        "sum": {"reduction": "sum", "ignore_index": 2},
        "none": {"reduction": "none"},
        "axis": {"axis": 0},
    }.items():
        yield pytest.param(
            loss,
            keywords | shared,
            id=" ".join(filter(None, (loss.__name__, *map(str, keywords.values()), name))),
        )


SAME = [
    *every(losses.sparsemax_loss),
    *every(losses.entmax15_loss),
    *every(losses.entmax_loss, alpha=1.3),
    *every(losses.entmax_loss, alpha=1.0),
    *every(losses.zloss, a=0.7, b=0.4),
    *every(losses.taylor_cross_entropy),
    *every(losses.spherical_cross_entropy, eps=0.2),
    *every(losses.evidential_loss, annealing=0.3),
    pytest.param(losses.masked_cross_entropy, {"where": MASK}, id="masked"),
    pytest.param(losses.masked_cross_entropy, {"where": MASK, "fill": 0.7}, id="masked, filled"),
]
FIELDS = [
    {},
    {"label_smoothing": 0.3},
    {"weight": CLASS_WEIGHTS},
    {"label_smoothing": 0.3, "weight": CLASS_WEIGHTS, "reduction": "sum"},
    {"z_loss": 0.1, "ignore_index": 2},
    {"softcap": 2.0},
    {"where": MASK},
    {"where": MASK, "label_smoothing": 0.2, "weight": CLASS_WEIGHTS, "softcap": 1.5, "z_loss": 0.2},
    {"reduction": "none", "z_loss": 0.1, "label_smoothing": 0.1},
    {"normalizer": "ssmax"},
    {"normalizer": "taylor_softmax", "where": MASK, "z_loss": 0.1, "softcap": 3.0},
    {"axis": 0, "ignore_index": 0},
]


class Home:
    """Arrays of one library."""

    def __init__(self, name):
        self.name = name
        if name == "array_api_strict":
            self.library = library_of(pytest.importorskip(name).asarray(1.0))
        else:
            pytest.importorskip("mlx.core" if name == "mlx" else name)
            self.library = library_named(name)

    def __call__(self, value):
        if isinstance(value, np.ndarray):
            wide = value.dtype != np.float64 or self.name != "mlx"
            return self.library.from_numpy(value if wide else value.astype(np.float32))
        return value

    def keywords(self, keywords):
        return {name: self(value) for name, value in keywords.items()}

    def back(self, value):
        return self.library.to_numpy(value)

    @property
    def tolerance(self):
        return 2e-5 if self.name == "mlx" else 1e-12


@pytest.fixture
def home(library):
    wide = contextlib.nullcontext()
    if library == "jax":
        wide = pytest.importorskip("jax").enable_x64(True)
    with wide:
        yield Home(library)


def targets_of(keywords):
    return np.array([1, 2, 0, 3, 1]) if keywords.get("axis") == 0 else TARGETS


def total(result, weights):
    """A number out of all that a loss returns."""
    results = result if isinstance(result, tuple) else (result,)
    return sum((part * w).sum() for part, w in zip(results, weights, strict=True))


def weights_of(result):
    rng = np.random.default_rng(3)
    results = result if isinstance(result, tuple) else (result,)
    return [np.asarray(rng.normal(size=np.shape(part))) for part in results]


def cotangent(home, weights):
    arrays = [home(w) for w in weights]
    return CrossEntropy(*arrays) if len(arrays) > 1 else arrays[0]


def on_numpy(loss, keywords):
    """The values of NumPy, weights for all, and the gradient by differences."""
    targets = targets_of(keywords)
    result = loss(X, targets, **keywords)
    weights = weights_of(result)
    slopes = differences(lambda x: total(loss(x, targets, **keywords), weights), X)
    return result, weights, slopes


CASES = [
    *SAME,
    *(pytest.param(cross_entropy, keywords, id=f"{i}") for i, keywords in enumerate(FIELDS)),
]


#: What is compiled on JAX, in one go: every loss.  Operation by operation it takes seconds more.
COMPILED = [
    case
    for case in CASES
    if case.id not in ("entmax15_loss", "entmax_loss 1.3")
    and case.id.split()[-1] not in ("where", "sum", "none", "axis", *"1234568", "9", "11")
]
EAGER = [case for case in CASES if case.id in ("0", "zloss 0.7 0.4", "masked, filled")]


def on(libraries, chosen=CASES, of_jax=EAGER):
    """Cases on libraries."""
    return [
        pytest.param(*case.values, name, id=f"{case.id}-{name}")
        for name in libraries
        for case in (of_jax if name == "jax" else chosen)
    ]


@pytest.mark.parametrize(("loss", "keywords", "library"), on(LIBRARIES))
def test_values_and_gradients(loss, keywords, library, home):
    """Values are those of NumPy, and the pullback is the slope."""
    want, weights, slopes = on_numpy(loss, keywords)
    passed = home.keywords(keywords)
    got, pullback = normx.vjp(loss, home(X), home(targets_of(keywords)), **passed)
    for a, b in zip(
        got if isinstance(got, tuple) else (got,),
        want if isinstance(want, tuple) else (want,),
        strict=True,
    ):
        np.testing.assert_allclose(home.back(a), b, rtol=home.tolerance, atol=home.tolerance)
    gradient = home.back(pullback(cotangent(home, weights))["x"])
    tolerance = max(1e-7, home.tolerance)
    np.testing.assert_allclose(gradient, slopes, rtol=tolerance, atol=tolerance)
    if isinstance(keywords.get("where"), np.ndarray):
        assert not gradient[~keywords["where"]].any()


@pytest.mark.parametrize(("loss", "keywords", "library"), on(DIFFERENTIATING, of_jax=COMPILED))
def test_the_library_differentiates(loss, keywords, library, home):
    """Its own gradient, compiled on JAX, through every field, is the slope."""
    want, weights, slopes = on_numpy(loss, keywords)
    targets, passed = home(targets_of(keywords)), home.keywords(keywords)
    f = lambda x: total(loss(x, targets, **passed), [home(w) for w in weights])  # noqa: E731
    if library == "torch":
        x = home(X).requires_grad_()
        value = f(x)
        value.backward()
        gradient = x.grad
    else:
        import jax

        # The halvings of the sparse ones are long to compile, in one go above all.
        compiled = (lambda f: f) if "max_loss" in loss.__name__ else jax.jit
        value, gradient = compiled(jax.value_and_grad(f))(home(X))
    np.testing.assert_allclose(home.back(value), total(want, weights), rtol=1e-12)
    np.testing.assert_allclose(home.back(gradient), slopes, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("loss", "keywords", "library"), on(["torch"], CASES[::3]))
def test_second_derivatives(loss, keywords, library, home):
    import torch

    targets, passed = home(targets_of(keywords)), home.keywords(keywords)
    x = home(X).requires_grad_()
    assert torch.autograd.gradgradcheck(
        partial(loss_of, loss, targets, passed), (x,), fast_mode=True
    )


def loss_of(loss, targets, keywords, x):
    return loss(x, targets, **keywords)


@pytest.mark.parametrize("library", ["torch"])
def test_a_graph_is_followed_twice(library, home):
    """The gradient of one field does not need the others."""
    x = home(X).requires_grad_()
    found = cross_entropy(x, home(TARGETS), z_loss=0.1)
    for field, want in zip(CrossEntropy._fields, found, strict=True):
        x.grad = None
        want.sum().backward(retain_graph=True)
        weights = [np.ones(np.shape(part.detach())) * (part is want) for part in found]
        slopes = differences(
            lambda a, w=weights: total(cross_entropy(a, TARGETS, z_loss=0.1), w), X
        )
        np.testing.assert_allclose(home.back(x.grad), slopes, rtol=1e-7, atol=1e-7, err_msg=field)


@pytest.mark.parametrize("library", ["torch"])
def test_torch_maps_and_compiles(library, home):
    import torch

    x, targets = home(X), home(TARGETS)
    f = lambda x: cross_entropy(x, targets, label_smoothing=0.1).loss  # noqa: E731
    mapped = torch.func.vmap(f)(torch.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped, [f(x), f(2 * x)], rtol=1e-12)
    np.testing.assert_allclose(
        torch.func.grad(f)(x),
        normx.vjp(cross_entropy, X, TARGETS, label_smoothing=0.1)[1](1.0)["x"],
        rtol=1e-12,
    )


@pytest.mark.parametrize("library", ["jax"])
def test_a_target_that_cannot_be_seen_may_be_no_class(library, home):
    """A compiled function cannot raise: the loss is infinite, a constant, and no NaN."""
    import jax

    f = lambda x, t: cross_entropy(x, t, reduction="none").loss  # noqa: E731
    targets = home(np.array([2, 7, -1, 4]))
    got = np.asarray(jax.jit(f)(home(X), targets))
    np.testing.assert_array_equal(np.isinf(got), [False, True, True, False])
    slope = jax.jit(lambda x, t: jax.grad(lambda x: f(x, t)[1:3].sum())(x))
    gradient = np.asarray(slope(home(X), targets))
    assert not gradient.any()
    masked = jax.jit(lambda x, t: cross_entropy(x, t, where=home(MASK)).loss)
    assert np.asarray(masked(home(X), home(np.argmin(MASK, -1)))) == INF


NOISES = ("annealed", "amplitude", "free", "negative", "normal")


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("differentiated", [True, False])
def test_noisy(noise, differentiated, library, home, monkeypatch):
    """Of a given noise, the values are NumPy's, and the gradients are slopes, of all three."""
    from normx.losses import noisy

    if library == "jax" and noise != "annealed":
        pytest.skip("compiles for each")

    xi = np.array([0.3, -1.3, 0.8, 2.0])
    monkeypatch.setattr(noisy, "_normal", lambda batch, rng: library_xi(batch, xi))
    keywords = {"alpha": 0.4, "noise": noise, "differentiate_noise": differentiated}
    call = partial(losses.noisy_cross_entropy, rng=np.random.default_rng(0), **keywords)
    want = call(FEATURES, WEIGHTS, TARGETS, bias=BIAS)
    got, pullback = normx.vjp(
        losses.noisy_cross_entropy,
        home(FEATURES),
        home(WEIGHTS),
        home(TARGETS),
        bias=home(BIAS),
        rng=home.library.rng(0),
        **keywords,
    )
    np.testing.assert_allclose(home.back(got), want, rtol=home.tolerance)
    gradients = pullback(home(np.array(1.7)))
    slopes = {
        "x": differences(lambda x: 1.7 * call(x, WEIGHTS, TARGETS, bias=BIAS), FEATURES),
        "weights": differences(lambda w: 1.7 * call(FEATURES, w, TARGETS, bias=BIAS), WEIGHTS),
        "bias": differences(lambda b: 1.7 * call(FEATURES, WEIGHTS, TARGETS, bias=b), BIAS),
    }
    if not differentiated and noise in ("annealed", "amplitude"):  # a constant: that of no noise
        taken = noisy._Noise(library_of(FEATURES), noise, FEATURES, WEIGHTS[TARGETS], 0.4 * xi)
        less = np.zeros((4, 5))
        np.put_along_axis(less, TARGETS[:, None], taken.amount()[:, None], -1)
        plain = lambda x, w: 1.7 * cross_entropy(x @ w.T + BIAS - less, TARGETS).loss  # noqa: E731
        slopes["x"] = differences(lambda x: plain(x, WEIGHTS), FEATURES)
        slopes["weights"] = differences(lambda w: plain(FEATURES, w), WEIGHTS)
    for name, slope in slopes.items():
        tolerance = max(1e-7, home.tolerance)
        np.testing.assert_allclose(
            home.back(gradients[name]), slope, rtol=tolerance, atol=tolerance, err_msg=name
        )
    if library == "torch":
        arrays = [home(a).requires_grad_() for a in (FEATURES, WEIGHTS)]
        options = keywords | {"bias": home(BIAS), "rng": home.library.rng(0)}
        (1.7 * losses.noisy_cross_entropy(*arrays, home(TARGETS), **options)).backward()
        for array, name in zip(arrays, ("x", "weights"), strict=True):
            np.testing.assert_allclose(home.back(array.grad), slopes[name], rtol=1e-7, atol=1e-7)


def library_xi(batch, xi):
    return batch.library.cast(batch.library.from_numpy(xi.astype(np.float32)), batch.dtype) * 1.0


@pytest.mark.parametrize("library", LIBRARIES)
def test_noise_comes_from_the_librarys_source(library, home):
    call = lambda seed: home.back(  # noqa: E731
        losses.noisy_cross_entropy(
            home(FEATURES), home(WEIGHTS), home(TARGETS), alpha=0.5, rng=home.library.rng(seed)
        )
    )
    assert call(0) == call(0) != call(1)


LIMITS = np.array(
    [
        [0.5, -1.0, 2.0, 0.0, 1.0],
        [-INF, 1.0, 2.0, 0.0, 1.0],
        [-INF] * 5,
        [INF, 0.0, INF, -INF, 1.0],
        [INF, 0.0, INF, -INF, 1.0],
        [0.3] * 5,
        [0.0] * 5,
        [1e30, -1e30, 1e30, 0.0, 0.0],
    ]
)
OF_LIMITS = np.array([2, 0, 1, 0, 1, 3, 0, 0])


#: Without the keywords that all have: here they make no difference.
OWN = [
    case
    for case in CASES
    if not any(word in case.id for word in (" where", " sum", " none", " axis"))
    and "axis" not in case.values[1]
]


@pytest.mark.parametrize(
    ("loss", "keywords", "library"),
    on(LIBRARIES, OWN),
)
def test_limits_are_no_nan(loss, keywords, library, home):
    """Infinite scores, targets without mass, rows of nothing; and NaN stays in its row."""
    keywords = {k: v for k, v in keywords.items() if k not in ("where", "reduction")}
    if loss is losses.masked_cross_entropy:
        keywords["where"] = np.array([True, True, True, True, False])
    passed = home.keywords(keywords)
    x = np.concatenate([LIMITS, [[NAN, 0.0, 0.0, 0.0, 0.0]]])
    targets = np.append(OF_LIMITS, 1)
    got, pullback = normx.vjp(loss, home(x), home(targets), reduction="none", **passed)
    values = got.loss if isinstance(got, tuple) else got
    values = home.back(values)
    assert np.isnan(values[-1]) and not np.isnan(values[:-1]).any()
    gradient = home.back(pullback(home(np.ones(len(x))))["x"])
    assert not np.isnan(gradient[:-1]).any()
    assert not np.isinf(gradient).any()
    if library == "torch":
        tensor = home(x).requires_grad_()
        found = loss(tensor, home(targets), reduction="none", **passed)
        (found.loss if isinstance(found, tuple) else found).sum().backward()
        np.testing.assert_allclose(tensor.grad[:-1], gradient[:-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_fields_at_their_limits(library, home):
    found = cross_entropy(home(LIMITS), home(OF_LIMITS), reduction="none")
    loss, _, lse, entropy = (home.back(part) for part in found)
    np.testing.assert_allclose(
        loss[1:7], [INF, INF, np.log(2), INF, np.log(5), np.log(5)], rtol=1e-6
    )
    np.testing.assert_allclose(lse[2:5], [-INF, INF, INF])
    np.testing.assert_allclose(entropy[2:], [0.0, *np.log([2, 2, 5, 5, 2])], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(("loss", "keywords", "library"), on(LIBRARIES, OWN[::3]))
def test_nothing_counts_as_nothing(loss, keywords, library, home):
    """No rows, and rows that are all ignored, whatever they hold: 0, and no gradient."""
    keywords = {
        k: v for k, v in keywords.items() if k not in ("axis", "where", "reduction", "ignore_index")
    }
    if loss is losses.masked_cross_entropy:
        keywords["where"] = np.ones(5, bool)
    passed = home.keywords(keywords)
    for x, targets in ((X[:0], TARGETS[:0]), (np.full((3, 5), NAN), np.full(3, -1))):
        got, pullback = normx.vjp(loss, home(x), home(targets), ignore_index=-1, **passed)
        assert home.back(got.loss if isinstance(got, tuple) else got) == 0.0
        gradient = home.back(pullback(1.0)["x"])
        assert gradient.shape == x.shape and not gradient.any()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "loss", [losses.zloss, losses.taylor_cross_entropy, losses.spherical_cross_entropy]
)
def test_the_family_from_its_sums(loss, library, home):
    want = loss(X, TARGETS, reduction="none")
    at_target = np.take_along_axis(X, TARGETS[:, None], -1)[:, 0]
    numbers = (at_target, X.sum(-1), (X * X).sum(-1))
    sums = losses.SphericalSums(*map(home, numbers), 5)
    got, pullback = normx.vjp(loss, sums)
    np.testing.assert_allclose(home.back(got), want.mean(), rtol=max(1e-12, home.tolerance))
    gradients = pullback(2.0)
    for i, name in enumerate(losses.SphericalSums._fields[:3]):

        def value(x, i=i):
            return 2.0 * loss(losses.SphericalSums(*numbers[:i], x, *numbers[i + 1 :], 5))

        np.testing.assert_allclose(
            home.back(gradients[name]), differences(value, numbers[i]), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("library", LIBRARIES)
def test_spherical_head_on_every_library(library, home):
    """The dense step, whatever the arrays are."""
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(12, 3))
    head = losses.SphericalHead(home(dense), loss=losses.zloss, stabilize_every=2)
    for _ in range(4):
        x, targets = rng.normal(size=(5, 3)), rng.integers(0, 4, 5)
        _, pullback = normx.vjp(losses.zloss, x @ dense.T, targets)
        slope = pullback(1.0)["x"]
        step = head.step(home(x), home(targets), learning_rate=0.2)
        tolerance = 1e-4 if library == "mlx" else 1e-12
        np.testing.assert_allclose(
            home.back(step.gradient), slope @ dense, rtol=tolerance, atol=tolerance
        )
        dense -= 0.2 * slope.T @ x
        np.testing.assert_allclose(home.back(head.weights), dense, rtol=tolerance, atol=tolerance)
