"""Values from the papers and from other libraries' bug reports, on every array library."""

from dataclasses import dataclass, field

import numpy as np
import pytest

import normx
from normx import _dispatch as dispatch
from normx._libraries import numpy_library
from normx._record import record_of
from normx.testing.ulp import error_in_ulp

inf = np.inf
ROW = (1.0, 2.0, 3.0, -1.0)


@dataclass(frozen=True)
class Golden:
    function: str
    x: tuple
    y: tuple
    keywords: dict = field(default_factory=dict)
    #: Absolute: what the source gives.
    digits: float = 5.1e-11

    def __str__(self):
        keywords = "-".join(f"{k}={v}" for k, v in self.keywords.items())
        return f"{self.function}-{self.x[:2]}-{keywords}".replace(" ", "")


GOLDEN = [
    Golden("softmax", ROW, (0.0889468173, 0.2417825172, 0.6572330228, 0.0120376427)),
    Golden("log_softmax", ROW, (-2.4197166463, -1.4197166463, -0.4197166463, -4.4197166463)),
    Golden("ssmax", ROW, (0.1559344496, 0.2830269999, 0.5137048478, 0.0473337027)),
    Golden("ssmax", ROW, (0.0474777448, 0.1899109792, 0.7596439169, 0.0029673591), {"s": 1.0}),
    Golden(
        "entropy_invariant_softmax", ROW, (0.2247366379, 0.2806620961, 0.3505045412, 0.1440967248)
    ),
    Golden("adaptive_softmax", ROW, (0.0792186548, 0.2320160733, 0.6795300732, 0.0092351987)),
    Golden(
        "adaptive_softmax",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        (
            0.0531749106,
            0.0656959865,
            0.0811653955,
            0.1002773803,
            0.1238896568,
            0.1530619072,
            0.1891033362,
            0.2336314269,
        ),
    ),
    Golden("taylor_softmax", ROW, (0.1515151515, 0.3030303030, 0.5151515152, 0.0303030303)),
    Golden("spherical_softmax", ROW, (1 / 15, 4 / 15, 9 / 15, 1 / 15)),
    Golden(
        "spherical_softmax",
        ROW,
        (0.0667155425, 0.2666622234, 0.5999066915, 0.0667155425),
        {"eps": 1e-3},
    ),
    Golden("spherical_softmax", (1.0, -2.0, 3.0), (1 / 14, 4 / 14, 9 / 14)),
    Golden("sigmoid", ROW, (0.4046096752, 0.6487856443, 0.8339252302, 0.0842238084)),
    Golden(
        "sigmoid",
        ROW,
        (0.2580172260, 0.3108654018, 0.3361981392, 0.0949192329),
        {"normalize": True, "bias": 0.0},
    ),
    Golden("squared_relu", ROW, (0.25, 1.0, 2.25, 0.0)),
    Golden("normalized_squared_relu", ROW, (0.0714285714, 0.2857142857, 0.6428571429, 0.0)),
    Golden("lips_relu", ROW, (0.125, 0.5, 1.125, 0.0)),
    Golden("nonnegative_softmax", ROW, (0.0900305732, 0.2447284711, 0.6652409558, 0.0)),
    Golden("expm1_relu", ROW, (0.0631886786, 0.2349533153, 0.7018580061, 0.0)),
    Golden("inhibited_softmax", ROW, (0.0861285444, 0.2341216573, 0.6364086466, 0.0116562310)),
    Golden("zscore", ROW, (-0.1690308509, 0.5070925528, 1.1832159566, -1.5212776585)),
    *(
        Golden(
            "masked_softmax",
            (0.5, -1.0, 2.0, 0.3),
            (rest, rest, p, q),
            {"where": np.array([False, False, True, True]), "fill": fill},
            6e-8,
        )
        for fill, p, q in (
            (-inf, 0.8455347, 0.1544653),
            (-1.0, 0.7798745, 0.1424702),
            (0.0, 0.6880636, 0.1256979),
            (5.0, 0.0241816, 0.0044176),
        )
        for rest in [(1.0 - p - q) / 2]
    ),
    Golden("sparsemax", (-2.0, 0.0, 0.5), (0.0, 0.25, 0.75)),
    Golden("entmax15", (-2.0, 0.0, 0.5), (0.0, 0.32600736, 0.67399264), {}, 6e-9),
    Golden("entmax15", (0.0, 0.5, 1.0), (0.0841358, 0.29166667, 0.62419753), {}, 6e-8),
    Golden("entmax", (-1.0, 0.0, 0.5), (0.0460, 0.3276, 0.6264), {"alpha": 1.33}, 6e-5),
    Golden("entmax", (1.0, 2.0, 3.5), (0.0026, 0.1012, 0.8963), {"alpha": 1.33}, 6e-5),
    Golden("sparsemax", (1.0, 1.0, -5.0), (0.5, 0.5, 0.0)),
    Golden("sparsemax", (3.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
    Golden("entmax15", (3.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
    Golden("normmax", (0.0, 0.25, 0.5, 0.75, 1.0), (0, 0.0239, 0.1746, 0.3254, 0.4761), {}, 6e-5),
    Golden(
        "normmax",
        (0.0, 0.25, 0.5, 0.75, 1.0),
        (0, 0, 0.3330, 0.3334, 0.3336),
        {"alpha": 1000.0},
        6e-5,
    ),
    Golden(
        "softmax",
        (-25.0, 0.0, 25.0, 50.0),
        (2.678636961770877e-33, 1.9287498479371314e-22, 1.3887943864771144e-11, 0.999999999986112),
        {},
        1e-13,
    ),
    Golden("log_softmax", (50.0, 0.0), (-1.9287498479639178e-22, -50.0), {}, 1e-30),
]

LIBRARIES = ("numpy", "array_api_strict", "torch", "jax", "mlx", "dask")


@pytest.fixture(params=LIBRARIES)
def library(request):
    module = pytest.importorskip(request.param if request.param != "mlx" else "mlx.core")
    if request.param == "array_api_strict":
        return dispatch.library_of(module.asarray(1.0))
    return dispatch.library(request.param)


def computed(library, golden, dtype):
    x = numpy_library.cast(np.array([golden.x]), dtype)
    try:
        library.dtype(dtype)
    except AttributeError:
        pytest.skip(f"{library.name} has no {dtype} here")
    keywords = {
        k: library.from_numpy(v) if isinstance(v, np.ndarray) else v
        for k, v in golden.keywords.items()
    }
    y = record_of(golden.function).function(library.from_numpy(x), axis=-1, **keywords)
    return library.to_numpy(y)[0]


@pytest.mark.parametrize("golden", GOLDEN, ids=str)
def test_golden_values_in_float64(library, golden):
    np.testing.assert_allclose(
        computed(library, golden, "float64"), golden.y, rtol=0, atol=max(golden.digits, 1e-15)
    )


@pytest.mark.parametrize("golden", GOLDEN, ids=str)
def test_golden_values_in_float32(library, golden):
    """Within the budget of what float64 gives for the same float32 scores."""
    x = tuple(np.array(golden.x, np.float32).astype(float))
    numbers = {
        k: float(np.float32(v)) if isinstance(v, float) else v for k, v in golden.keywords.items()
    }
    defaults = {
        p.name: float(np.float32(default))
        for p in record_of(golden.function).parameters
        if isinstance(default := record_of(golden.function).keywords[p.name].default, float)
    }
    exact = Golden(golden.function, x, golden.y, defaults | numbers)
    want = computed(numpy_library, exact, "float64")
    error = error_in_ulp(computed(library, golden, "float32"), want, "float32", want)
    if library.flushes_subnormals:
        error = np.where(np.abs(want) < 2.0**-125, 0.0, error)
    assert error.max() <= record_of(golden.function).ulp["float32"]


def test_the_table_of_scalable_softmax():
    """Of its paper: all scores -2, the last one +3, s = 0.43."""
    table = {
        10: (0.942826, 0.940101),
        100: (0.599860, 0.995063),
        1_000: (0.129346, 0.999646),
        10_000: (0.014626, 0.999975),
        100_000: (0.001482, 0.999998),
    }
    for n, (softmax, ssmax) in table.items():
        x = np.full(n, -2.0)
        x[-1] = 3.0
        assert round(float(normx.softmax(x)[-1]), 6) == softmax
        assert round(float(normx.ssmax(x)[-1]), 6) == ssmax


def test_the_range_of_the_adaptive_temperature():
    """The published polynomial acts between 0.8486 and 5.9445 nats, and nowhere else."""

    def sharpened(entropy):
        # Rows of n - 1 equal scores and one above them have every entropy up to log n.
        n = 2000
        low, high = 0.0, 60.0
        for _ in range(200):
            gap = (low + high) / 2
            x = np.zeros(n)
            x[0] = gap
            p = normx.softmax(x)
            low, high = (gap, high) if -np.sum(p * np.log(p)) > entropy else (low, gap)
        plain = normx.softmax(x, backend="reference")
        return not np.array_equal(normx.adaptive_softmax(x), plain)

    assert not sharpened(0.6) and not sharpened(0.8480) and sharpened(0.8492)
    assert sharpened(2.0) and sharpened(5.9440) and not sharpened(5.9450)
    assert not sharpened(7.0)


def test_rows_disperse_within_the_bounds():
    """Lemma 2.1 of the paper on sharpness, at several temperatures."""
    rng = np.random.default_rng(0)
    for n in (4, 64, 1024, 16_384):
        x = rng.uniform(-1.0, 1.0, n)
        for t in (0.5, 1.0, 3.0):
            y = normx.softmax(x, temperature=t)
            spread = np.exp((x.max() - x.min()) / t)
            assert 1 / (n * spread) <= y.min() and y.max() <= spread / n
