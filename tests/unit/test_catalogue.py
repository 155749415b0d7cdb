"""What the records promise beyond the conformance suite."""

import importlib
import sys
import textwrap
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

import normx
from normx import _dispatch as dispatch
from normx import _record, laws
from normx._libraries import numpy_library
from normx._plan import prepare
from normx._record import record_of, registry
from normx._reference import row_of, states_of
from normx.testing import conformance
from normx.testing.plugin import Case
from normx.testing.samples import random_rows

STAGED = [record for record in registry().values() if record.stages]
MASK = np.array([True, True, False, True, True, False, True, True, True, True, True, True])


def bound(record, x, **keywords):
    """The rows of a call and its parameters, as the formula gets them."""
    keywords = dict(record.example) | keywords
    if record.random:
        keywords["rng"] = np.random.default_rng(0)
    prepared = prepare(record, numpy_library, x, {"axis": -1, **keywords}, dispatch.library_of)
    scores, where, parameters = prepared.arguments(x, keywords)
    row, own = row_of(prepared.plan, scores, where, parameters)
    return row, own | dict(prepared.plan.constants)


def cut(row, first, last):
    return replace(
        row,
        scores=row.scores[:, first:last],
        kept=None
        if row.kept is None
        else np.broadcast_to(row.kept, row.scores.shape)[:, first:last],
    )


@pytest.mark.parametrize("record", STAGED, ids=lambda record: record.name)
@pytest.mark.parametrize("keywords", [{}, {"where": MASK}, {"temperature": 0.3}], ids=str)
def test_blocks_merge_to_the_whole(record, keywords):
    """Whatever the cuts, and whatever the order in which the states of blocks merge."""
    if not set(keywords) <= set(record.keywords) or record.random:
        pytest.skip(f"{record.name} has no {set(keywords)}, or its noise would be cut as well")
    inf = np.inf
    x = np.array(
        [
            random_rows(12, 1, 3.0)[0],
            random_rows(12, 1, 1e3)[0],
            [-inf] * 12,
            [-inf] * 8 + [1.0, 2.0, 0.5, 0.0],
            [inf, 0.5, -inf, 2.0] * 3,
            [0.5] * 11 + [inf],
            [-1.0] * 12,
            [0.0] * 12,
        ]
    )
    with np.errstate(all="ignore"):
        row, own = bound(record, x, **keywords)
        whole = record.apply(row, *states_of(record, (row,), own), **own)
        for cuts in ([0, 5, 12], [0, 1, 2, 11, 12], [0, 4, 8, 12]):
            blocks = [cut(row, *pair) for pair in pairwise(cuts)]
            for order in (blocks, blocks[::-1]):
                states = states_of(record, order, own)
                parts = [record.apply(block, *states, **own) for block in blocks]
                got = parts[0] if record.kind == "reduction" else np.concatenate(parts, axis=-1)
                np.testing.assert_allclose(got, whole, rtol=3e-13, atol=1e-300)


@pytest.mark.parametrize("record", STAGED, ids=lambda record: record.name)
def test_the_neutral_state_changes_nothing(record):
    x = random_rows(9, 3, 2.0)
    row, own = bound(record, x)
    states = ()
    for stage in record.stages:
        state = stage.lift(row, *states, **own)
        if state is not None:
            neutral = stage.monoid.identity(np, np.zeros((3, 1)))
            for merged in (
                stage.monoid.merge(np, neutral, state),
                stage.monoid.merge(np, state, neutral),
            ):
                both = ((s if isinstance(s, tuple) else (s,)) for s in (merged, state))
                for got, want in zip(*both, strict=True):
                    np.testing.assert_array_equal(got, want)
        states += (state,)


# A law that a record does not declare, where the literature says that it does not hold.
BROKEN = {
    laws.sums_to_one: ["sigmoid", "squared_relu", "lips_relu", "inhibited_softmax", "zscore"],
    laws.shift_invariant: [
        "sigmoid",
        "taylor_softmax",
        "spherical_softmax",
        "squared_relu",
        "normalized_squared_relu",
        "lips_relu",
        "expm1_relu",
        "nonnegative_softmax",
        "inhibited_softmax",
    ],
    laws.scale_invariant: [
        "softmax",
        "ssmax",
        "entropy_invariant_softmax",
        "adaptive_softmax",
        "sigmoid",
        "taylor_softmax",
        "squared_relu",
        "expm1_relu",
        "sparsemax",
        "entmax15",
    ],
    laws.exact_zeros: ["softmax", "sigmoid", "taylor_softmax", "inhibited_softmax"],
    laws.monotone: ["taylor_softmax", "spherical_softmax", "softmin"],
    laws.even: ["softmax", "taylor_softmax", "squared_relu", "zscore"],
    laws.disperses: ["ssmax", "sparsemax", "normalized_squared_relu", "zscore"],
    laws.positive: ["sparsemax", "squared_relu", "nonnegative_softmax"],
    laws.within_unit_interval: ["squared_relu", "zscore"],
}


@pytest.mark.parametrize(
    ("law", "name"), [(law, name) for law, names in BROKEN.items() for name in names], ids=str
)
def test_a_law_that_is_not_declared_does_not_hold(law, name):
    record = record_of(name)
    assert law not in record.laws
    f = partial(record.function, axis=-1, **record.example)
    x = np.concatenate([random_rows(64, 4, spread) for spread in (1.0, 4.0)])
    with pytest.raises(AssertionError):
        law.check(f, x, 4 * 2.0**-52)


def test_the_shift_by_log_n_is_not_scalable_softmax():
    """A published implementation subtracts s*log(n), which changes nothing at all."""
    x = random_rows(100, 2)
    np.testing.assert_allclose(normx.softmax(x - 0.43 * np.log(100)), normx.softmax(x), rtol=1e-13)
    assert np.abs(normx.ssmax(x) - normx.softmax(x)).max() > 1e-3


# ------------------------------------------------------------- parameters

REFUSED = [
    ("ssmax", {"s": "large"}, TypeError, "`s` must be a number or an array"),
    ("ssmax", {"n": 0.5}, ValueError, "`n` must be .* at least 1"),
    ("ssmax", {"s": np.ones(3)}, ValueError, "one value per row"),
    ("taylor_softmax", {"order": 3}, ValueError, "`order` must be an even whole number"),
    ("taylor_softmax", {"order": 0}, ValueError, "`order` must be an even whole number"),
    ("taylor_softmax", {"order": 2.0}, TypeError, "`order` must be an even whole number"),
    ("entmax", {"alpha": 0.5}, ValueError, "`alpha` must be .* at least 1"),
    ("entmax", {"alpha": np.array([0.9])}, ValueError, "`alpha` must be .* at least 1"),
    ("normmax", {"alpha": 1.0}, ValueError, "`alpha` must be .* above 1"),
    ("spherical_softmax", {"eps": -1e-3}, ValueError, "`eps` must be .* at least 0"),
    ("zscore", {"eps": -1.0}, ValueError, "`eps` must be .* at least 0"),
    ("squared_relu", {"scale": 0.0}, ValueError, "`scale` must be .* above 0"),
    ("entropy_invariant_softmax", {"n0": 1}, ValueError, "`n0` must be .* above 1"),
    ("budget", {"budget": -1.0}, ValueError, "`budget` must be .* at least 0"),
    ("budget", {}, TypeError, "keyword `budget` is missing"),
    ("masked_softmax", {}, TypeError, "keyword `where` is missing"),
    ("gumbel_softmax", {}, TypeError, "keyword `rng` is missing"),
    ("gumbel_softmax", {"rng": 3}, TypeError, "`rng` must be a numpy.random.Generator"),
    ("adaptive_softmax", {"coefficients": ()}, ValueError, "`coefficients` must be a sequence"),
    ("adaptive_softmax", {"coefficients": "abc"}, TypeError, "`coefficients` must be a sequence"),
    ("adaptive_softmax", {"threshold": "low"}, TypeError, "`threshold` must be a number"),
    ("sigmoid", {"normalize": 1}, TypeError, "`normalize` must be True or False"),
    ("sigmoid", {"bias": "small"}, TypeError, "`bias` must be a number or an array"),
]


@pytest.mark.parametrize(("name", "keywords", "kind", "message"), REFUSED, ids=str)
def test_wrong_parameters_are_refused(name, keywords, kind, message):
    with pytest.raises(kind, match=message) as caught:
        getattr(normx, name)([1.0, 2.0, 3.0], **keywords)
    assert f"normx.{name}" in str(caught.value)


def test_the_functions_that_are_no_records_refuse_too():
    with pytest.raises(ValueError, match="`k` must be an int between 0 and 3"):
        normx.softmax_topk([1.0, 2.0, 3.0], 4)
    with pytest.raises(ValueError, match="in rising order"):
        normx.segment_softmax([1.0, 2.0, 3.0], [0, 2, 1, 3])


# -------------------------------------------------------------- the family


def test_negative_scales_of_scalable_softmax():
    x = np.array([[1.0, 2.0, 3.0, -1.0], [0.0, -np.inf, 1.0, np.inf]])
    np.testing.assert_allclose(
        normx.ssmax(x[0], s=-0.5), normx.softmax(-0.5 * np.log(4) * x[0]), rtol=1e-14
    )
    # What is left out stays left out, and +inf is the least of all.
    y = normx.ssmax(x[1], s=-0.5)
    assert y[1] == 0.0 and y[3] == 0.0 and y[0] > y[2] > 0.0


def test_a_scale_of_zero_never_meets_an_infinity():
    x = np.array([[5.0, -np.inf, -np.inf], [1.0, 2.0, -np.inf]])
    np.testing.assert_array_equal(normx.ssmax(x)[0], [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(normx.entropy_invariant_softmax(x)[0], [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(normx.ssmax(x, s=0.0)[1], [0.5, 0.5, 0.0])


def test_masked_lengths_are_counted_per_row():
    x = random_rows(6, 6)
    causal = np.tril(np.ones((6, 6), bool))
    for f in (normx.ssmax, normx.entropy_invariant_softmax, normx.sigmoid, normx.squared_relu):
        y = f(x, where=causal)
        for i in range(6):
            np.testing.assert_allclose(y[i, : i + 1], f(x[i, : i + 1]), rtol=1e-14)
            assert np.all(y[i, i + 1 :] == 0.0)


def test_softmin_is_the_softmax_of_the_negated_scores():
    x = np.array([[1.0, -np.inf, 2.0], [np.inf, 0.0, 1.0], [np.inf] * 3])
    np.testing.assert_array_equal(normx.softmin(x), normx.softmax(-x, backend="reference"))


def test_weights_of_half_precision_do_not_overflow():
    x = np.array([[6e4, 3e4, -6e4, 300.0]], np.float16)
    for name in ("taylor_softmax", "spherical_softmax", "normalized_squared_relu", "expm1_relu"):
        y = getattr(normx, name)(x)
        assert np.isfinite(y).all() and abs(float(y.sum()) - 1.0) < 2e-3
    assert normx.squared_relu(np.array([300.0, 0.0, 0.0, 0.0], np.float16))[0] == 22_500.0


class TestGumbel:
    def test_the_index_is_distributed_as_the_softmax(self):
        p = np.array([0.1, 0.2, 0.3, 0.4])
        x = np.broadcast_to(np.log(p), (200_000, 4))
        hard = normx.gumbel_softmax(x, rng=np.random.default_rng(1), hard=True)
        assert set(np.unique(hard)) == {0.0, 1.0} and np.all(hard.sum(axis=-1) == 1.0)
        count = hard.sum(axis=0)
        chi2 = np.sum((count - 200_000 * p) ** 2 / (200_000 * p))
        assert chi2 < 21.1  # 3 degrees of freedom: one in 10^4

    def test_noise_is_finite(self):
        x = np.zeros((1000, 1000), np.float16)
        y = normx.gumbel_softmax(x, rng=np.random.default_rng(2), temperature=0.1)
        assert np.isfinite(y).all()

    def test_temperature_zero_is_one_hot(self):
        y = normx.gumbel_softmax(np.zeros((50, 7)), rng=np.random.default_rng(3), temperature=0.0)
        assert np.all((y == 0.0) | (y == 1.0)) and np.all(y.sum(axis=-1) == 1.0)

    def test_masks_and_seeds(self):
        x = random_rows(6, 5)
        kept = np.arange(6) % 2 == 0
        first, second = (
            normx.gumbel_softmax(x, rng=np.random.default_rng(4), where=kept) for _ in range(2)
        )
        assert np.array_equal(first, second) and np.all(first[:, ~kept] == 0.0)
        rng = np.random.default_rng(4)
        assert not np.array_equal(
            normx.gumbel_softmax(x, rng=rng), normx.gumbel_softmax(x, rng=rng)
        )

    def test_the_pullback_has_the_noise_of_the_result(self):
        x, step = random_rows(5, 1)[0], 1e-6
        dy = np.arange(5.0)
        rng = np.random.default_rng(5)
        _, pullback = normx.vjp(normx.gumbel_softmax, x, rng=rng, temperature=0.7)
        numeric = [
            sum(
                sign
                * normx.gumbel_softmax(
                    x + sign * step * np.eye(5)[i], rng=np.random.default_rng(5), temperature=0.7
                )
                @ dy
                for sign in (1, -1)
            )
            / (2 * step)
            for i in range(5)
        ]
        np.testing.assert_allclose(pullback(dy)["x"], numeric, rtol=1e-6)
        np.testing.assert_array_equal(pullback(dy)["x"], pullback(dy)["x"])

    @pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
    def test_every_library_has_its_own_source(self, name):
        pytest.importorskip(name if name != "mlx" else "mlx.core")
        library = dispatch.library(name)
        x = library.from_numpy(np.zeros((2000, 2), np.float32))
        y = library.to_numpy(normx.gumbel_softmax(x, rng=library.rng(0), hard=True))
        assert np.all(y.sum(axis=-1) == 1.0) and 900 < y[:, 0].sum() < 1100
        again = library.to_numpy(normx.gumbel_softmax(x, rng=library.rng(0), hard=True))
        assert np.array_equal(y, again)
        with pytest.raises(TypeError, match="`rng` must be a"):
            normx.gumbel_softmax(x, rng=np.random.default_rng(0))

    def test_hard_draws_have_the_gradient_of_the_soft_ones(self):
        torch = pytest.importorskip("torch")
        gradients = []
        for hard in (False, True):
            x = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
            y = normx.gumbel_softmax(x, rng=torch.Generator().manual_seed(1), hard=hard)
            (y * torch.arange(4.0)).sum().backward()
            gradients.append(x.grad)
        assert torch.equal(*gradients) and gradients[0].abs().sum() > 0


# ------------------------------------------------------------ a new record


def test_a_new_normalizer_is_one_file_and_one_export(tmp_path, monkeypatch):
    """A package of one's own: the conformance suite runs on it, and finds it sound."""
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("from toy.cubic import cubic as cubic\n")
    (package / "cubic.py").write_text(
        textwrap.dedent(
            '''
            from normx import laws
            from normx._record import Paper, Stage, normalizer
            from normx.states import SUM


            def _cubes(row):
                u = row.shared().scores
                return row.xp.where(u <= 0, 0.0, u) ** 3


            def _vjp(row, cotangent):
                xp, total = row.xp, row.sum(_cubes(row))
                y = _cubes(row) / xp.where(total == 0, 1.0, total)
                slope = 3 * xp.where(row.scores > 0, row.tempered.hi, 0.0) ** 2
                t = 1.0 if row.temperature is None else row.temperature
                total = xp.where(total == 0, 1.0, total) / t**3
                return {"x": slope / total * (cotangent - row.sum(y * cotangent))}


            @normalizer(
                stages=(Stage(lambda row: row.sum(_cubes(row.shared())), SUM),),
                apply=lambda row, total: _cubes(row) / row.xp.where(total == 0, 1.0, total),
                definition=lambda m, x: x**3 / m.sum(x**3),
                vjp=_vjp,
                massless=lambda scores: scores <= 0,
                laws=(laws.sums_to_at_most_one, laws.scale_invariant, laws.exact_zeros),
                papers=(Paper("A. Newcomer", "Cubes", 2026, "A preprint"),),
            )
            def cubic(x, /, *, axis=-1, **options):
                r"""Cubes of the positive scores over their sum.

                Parameters
                ----------
                {x}
                {axis}
                {options}
                """
            '''
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        toy = importlib.import_module("toy")
        np.testing.assert_allclose(toy.cubic([1.0, 2.0, -1.0]), [1 / 9, 8 / 9, 0.0], rtol=1e-15)
        assert "temperature" in toy.cubic.__doc__
        case = Case(record_of("cubic"), numpy_library, "reference", "eager", None)
        for name, sample in conformance._SAMPLES.items():
            if np.abs(sample.rows).max() < 1e5:
                conformance.test_oracle(case, name, "float32")
        conformance.test_special_values(case, "float32")
        conformance.test_masks(case, "float32")
        conformance.test_axes(case)
        conformance.test_layouts(case)
        conformance.test_empty_policies(case, "uniform")
        conformance.test_gradients(case)
        for law in case.record.laws:
            conformance.test_laws(case, law)
        assert any(row.function == "cubic" for row in normx.capabilities())
    finally:
        _record._REGISTRY.pop("cubic", None)
        for module in ("toy", "toy.cubic"):
            sys.modules.pop(module, None)
        dispatch.clear_caches()
