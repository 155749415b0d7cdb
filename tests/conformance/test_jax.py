"""What a JAX user finds: kernels inside of compiled programs, derivatives of every kind, shards."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import normx
from normx._dispatch import backend
from normx._record import registry
from normx.plugins import Refusal

RECORDS = [record for record in registry().values() if not record.random]
#: How XLA's text of a program says that it calls the kernels.
CALL = 'custom_call_target="normx_native"'
NATIVE = not isinstance(backend("native"), Refusal)
needs_native = pytest.mark.skipif(not NATIVE, reason="the compiled part is not installed")


@pytest.fixture(autouse=True)
def only_if_asked(request):
    if "jax" not in (request.config.getoption("--library") or ()):
        pytest.skip("runs with --library jax")
    pytest.importorskip("jax")


@pytest.fixture
def float64():
    import jax

    with jax.enable_x64(True):
        yield


def rows(shape=(3, 5), dtype=np.float32):
    import jax.numpy as jnp

    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(dtype))


def calls():
    """How many times XLA called the kernels."""
    from normx_native import _core

    return _core.xla_calls()


@needs_native
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_compiled_programs_call_the_kernels(record):
    import jax

    x = rows()
    f = lambda x: record.function(x, axis=-1, **record.example)  # noqa: E731
    with normx.trace() as ran:
        compiled = jax.jit(f).lower(x).compile()
    (event,) = ran
    assert event.backend == "native" and event.kernel == f"{record.name}_staged"
    assert CALL in compiled.as_text()
    before = calls()
    y = jax.block_until_ready(compiled(x))
    assert calls() == before + 1
    want = record.function(np.asarray(x), axis=-1, **record.example)
    assert np.array_equal(y, want), "other bits than NumPy's arrays get"


@needs_native
@pytest.mark.parametrize("columns", [256, 2048, 10240], ids=["copied", "shared", "huge pages"])
def test_results_of_every_size(columns):
    import jax

    x = rows((1024, columns))
    want = normx.softmax(np.asarray(x))
    for f in (jax.jit(normx.softmax), normx.softmax):
        y = f(x)
        assert np.array_equal(y, want)
        again = jax.jit(lambda y: y + 1, donate_argnums=0)(y)  # may write into what we lent
        assert np.array_equal(again, want + 1)


def test_large_results_are_shared():
    from normx_jax import _host

    for shape in ((1024, 300), (2**19,)):
        memory = _host.empty(shape, np.dtype(np.float32))
        memory[...] = 1
        assert _host.adopt(memory).unsafe_buffer_pointer() == memory.ctypes.data


@needs_native
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_rows_that_kernels_leave_are_right(record):
    """NaN and infinities, beside a row that is the kernel's, forward and backward."""
    import jax
    import jax.numpy as jnp

    x = rows((5, 4)).at[1, 2].set(np.inf).at[2, 0].set(np.nan).at[3].set(-np.inf)
    dy = rows((5, 4))[:, ::-1]

    keywords = {"axis": -1, **record.example}
    y, pullback = normx.vjp(record.function, x, backend="reference", **keywords)
    dy = dy if y.shape == dy.shape else dy[:, 0]

    @jax.jit
    def both(x):
        got, pullback = jax.vjp(lambda x: record.function(x, **keywords), x)
        return got, pullback(dy)[0]

    for one, want in zip(both(x), (y, pullback(dy)["x"]), strict=True):
        finite = jnp.isfinite(want)
        assert np.array_equal(jnp.isfinite(one), finite)
        assert np.array_equal(jnp.where(finite, 0, one), jnp.where(finite, 0, want), equal_nan=True)
        np.testing.assert_allclose(one[finite], want[finite], rtol=2e-5, atol=1e-6)


@needs_native
def test_gradients_are_the_kernels():
    import jax

    x, loss = rows(), lambda x: (normx.entmax15(x) ** 2).sum()
    before = calls()
    compiled = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    assert compiled.count(CALL) == 2
    jax.block_until_ready(jax.jit(jax.grad(loss))(x))
    assert calls() == before + 2
    reference = lambda x: (normx.entmax15(x, backend="reference") ** 2).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(x), jax.grad(reference)(x), rtol=1e-4, atol=1e-6)


def test_what_integers_become_is_asked_in_every_call():
    import jax

    x = rows(dtype=np.int32)
    assert normx.softmax(x).dtype == "float32"
    with jax.enable_x64(True):
        assert normx.softmax(x).dtype == "float64"
        assert normx.softmax(rows(), dtype="float64").dtype == "float64"
    assert normx.softmax(x).dtype == "float32"
    with pytest.raises(TypeError):
        normx.softmax(rows(), dtype="float64")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_derivatives_to_the_second_order(record, float64):
    """Forward, reverse, and each over the other, against differences."""
    import jax.numpy as jnp
    from jax.test_util import check_grads

    keywords = dict(record.example)
    if "differentiate_temperature" in record.keywords:
        keywords["differentiate_temperature"] = True  # or it is no derivative of the function
    f = lambda x: record.function(jnp.asarray(x), axis=-1, **keywords)  # noqa: E731
    check_grads(f, (rows((2, 4), np.float64),), 2, modes=("fwd", "rev"), eps=1e-5, rtol=1e-5)


def test_derivatives_of_parameters(float64):
    import jax
    import jax.numpy as jnp
    from jax.test_util import check_grads

    x, where = rows((2, 4), np.float64), jnp.asarray([True, True, False, True])
    sink = jnp.asarray([0.3, -0.2])

    def f(t, sink):
        return normx.softmax(x, temperature=jnp.asarray(t), sink=jnp.asarray(sink), where=where)

    check_grads(f, (jnp.asarray(0.7), sink), 2, modes=("fwd", "rev"), eps=1e-5, rtol=1e-5)
    entmax = lambda a: normx.entmax(x, alpha=jnp.asarray(a))  # noqa: E731
    check_grads(jax.jit(entmax), (jnp.asarray([[1.3], [1.7]]),), 2, eps=1e-5, rtol=1e-5)


def test_transformations_go_through_each_other(float64):
    import jax
    import jax.numpy as jnp

    x, t = rows((2, 3, 4), np.float64), jnp.asarray([[0.5], [1.0], [2.0]])

    def loss(x, t, backend=None):
        return (normx.softmin(x, temperature=t, backend=backend) ** 2).sum()

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)

    plain = [jax.grad(loss, (0, 1))(one, t, "reference") for one in x]
    for i in (0, 1):
        want = jnp.stack([gradients[i] for gradients in plain])
        close(jax.vmap(jax.grad(loss, i), (0, None))(x, t), want)
        close(jax.jit(jax.vmap(jax.grad(loss, i), (0, None)))(x, t), want)
        total = lambda x, t: jax.vmap(loss, (0, None))(x, t).sum()  # noqa: E731
        close(jax.jit(jax.grad(total, i))(x, t), want if i == 0 else want.sum(0))
        along = jax.vmap(jax.grad(loss, i), (2, None), 2)
        close(along(jnp.moveaxis(x, 0, 2), t), jnp.moveaxis(want, 0, 2))
    close(
        jax.jit(jax.hessian(loss))(x[0], t),
        jax.hessian(lambda x: loss(x, t, "reference"))(x[0]),
    )
    close(jax.grad(jax.checkpoint(loss))(x[0], t), plain[0][0])
    _, states = jax.lax.scan(lambda c, one: (c, normx.softmin(one)), 0.0, x)
    close(states, normx.softmin(x))


@needs_native
def test_programs_that_xla_splits_have_the_formula():
    """A kernel cannot be seen through: shards of a batch must not be gathered for it."""
    out = _on_8_devices("""
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
        x = jax.device_put(x, NamedSharding(mesh, P("rows")))
        y = jax.jit(normx.ssmax)(x)
        text = jax.jit(normx.ssmax).lower(x).compile().as_text()
        assert y.sharding.is_equivalent_to(x.sharding, 2), y.sharding
        assert CALL not in text and "all-gather" not in text
        assert normx.ssmax(x).sharding.is_equivalent_to(x.sharding, 2)
        inside = jax.jit(
            jax.shard_map(normx.ssmax, mesh=mesh, in_specs=P("rows"), out_specs=P("rows")))
        assert CALL in inside.lower(x).compile().as_text()
        np.testing.assert_allclose(inside(x), y, rtol=1e-6)
        t = jnp.float32(0.7)  # the same on every device: its gradients are summed
        def loss(f):
            return lambda t: (f(t) ** 2).sum()
        f = jax.shard_map(lambda x, t: normx.softmax(x, temperature=t), mesh=mesh,
                          in_specs=(P("rows"), P()), out_specs=P("rows"))
        got = jax.jit(jax.grad(loss(lambda t: f(x, t))))(t)
        want = jax.grad(loss(lambda t: normx.softmax(x, temperature=t, backend="reference")))(t)
        np.testing.assert_allclose(got, want, rtol=1e-4)
    """)
    assert out == ""


STATES = [record for record in RECORDS if record.stages is not None]


@pytest.mark.parametrize("record", STATES, ids=lambda record: record.name)
def test_rows_split_over_devices_are_those_of_one(record):
    out = _on_8_devices(f"""
        from jax.sharding import AxisType, PartitionSpec as P
        from normx._record import registry
        record = registry()[{record.name!r}]
        mesh = jax.make_mesh((2, 4), ("rows", "parts"), axis_types=(AxisType.Auto,) * 2)
        x = x.at[2, 5].set(jnp.inf).at[3, 9].set(-jnp.inf).at[4, 2].set(jnp.nan)
        where = jnp.asarray(np.random.default_rng(1).random(x.shape) < 0.6)
        where = where.at[1].set(False).at[0, :8].set(False)
        specs = {{"where": P("rows", "parts"), "temperature": P("rows"), "sink": P()}}
        t = jnp.linspace(0.5, 2.0, 8)[:, None]
        options = [{{}}, {{"where": where, "temperature": t, "sink": jnp.asarray([0.3, 1.0])}}]
        for chosen in options:
            chosen = {{k: v for k, v in chosen.items() if k in record.keywords}}
            plain = {{k: v for k, v in record.example.items() if k != "where"}}
            if "where" in record.example:
                chosen["where"] = where
            if chosen and "empty" in record.keywords:
                plain["empty"] = "uniform"
            f = jax.shard_map(
                lambda x, a: normx_jax.sharded(
                    record.function, x, axis=-1, axis_name="parts", **plain, **a),
                mesh=mesh, in_specs=(P("rows", "parts"), {{k: specs[k] for k in chosen}}),
                out_specs=P("rows", "parts") if record.kind == "normalizer" else P("rows"),
            )
            g = lambda x, a: record.function(x, axis=-1, backend="reference", **plain, **a)
            want = jax.jit(g)(x, chosen)
            atol = 1e-6 if record.name == "zscore" else 0.0
            rtol = 2 * record.ulp["float32"] * np.finfo(np.float32).eps
            np.testing.assert_allclose(jax.jit(f)(x, chosen), want, rtol=rtol, atol=atol)
        z = jnp.nan_to_num(x, posinf=1.0, neginf=0.5)
        slope = lambda f: jax.jit(jax.grad(lambda z: (f(z, chosen) ** 2).sum()))(z)
        np.testing.assert_allclose(slope(f), slope(g), rtol=1e-4, atol=2e-6)
    """)
    assert out == ""


def test_what_needs_the_whole_row_is_not_split():
    import normx_jax

    with pytest.raises(ValueError, match=r"sharded: `f` .* sparsemax.*all_gather"):
        normx_jax.sharded(normx.sparsemax, rows(), axis_name="parts")
    with pytest.raises(TypeError, match=r"sharded: `x` must be an array of jax"):
        normx_jax.sharded(normx.softmax, np.zeros(3), axis_name="parts")


def _on_8_devices(program):
    before = """
        import jax, jax.numpy as jnp, numpy as np, normx, normx_jax
        CALL = 'custom_call_target="normx_native"'
        x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32) * 3)
    """
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    text = textwrap.dedent(before) + textwrap.dedent(program)
    ran = subprocess.run(
        [sys.executable, "-c", text], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


#: Softmax's place in attention over the rows of the image, taken by others.
NORMALIZERS = (normx.softmax, normx.ssmax, normx.sigmoid, normx.entmax15)


def test_digits_are_learned_as_with_the_softmax_of_jax():
    """A small attention network, 300 steps: as accurate on images it has not seen."""
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    import jax
    import jax.numpy as jnp

    images, labels = datasets.load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 8, 8) / 16.0, jnp.float32)
    labels = jnp.asarray(labels)
    new = slice(1400, None)
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"embed": (8, 32), "place": (8, 32), "q": (32, 32), "k": (32, 32), "out": (256, 10)}
    start = {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def accuracy(weigh):
        def logits(p, x):
            h = x @ p["embed"] + p["place"]
            scores = (h @ p["q"]) @ jnp.swapaxes(h @ p["k"], -1, -2) / 32**0.5
            h = jnp.tanh(h + weigh(scores) @ h)
            return h.reshape(len(x), -1) @ p["out"]

        def loss(p, x, y):
            return -jnp.take_along_axis(normx.log_softmax(logits(p, x)), y[:, None], 1).mean()

        @jax.jit
        def step(p, m, key):
            batch = jax.random.randint(key, (64,), 0, 1400)
            g = jax.grad(loss)(p, images[batch], labels[batch])
            m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
            return jax.tree.map(lambda p, m: p - 0.05 * m, p, m), m

        p, m = start, jax.tree.map(jnp.zeros_like, start)
        for key in jax.random.split(jax.random.key(1), 300):
            p, m = step(p, m, key)
        return float((logits(p, images[new]).argmax(-1) == labels[new]).mean())

    own = accuracy(jax.nn.softmax)
    found = {f.__name__: accuracy(f) for f in NORMALIZERS}
    assert own > 0.85
    assert all(value > own - 0.03 for value in found.values()), (own, found)


def test_gradients_of_nothing():
    import jax
    import jax.numpy as jnp

    x, t = jnp.zeros((3, 0)), jnp.ones((3, 1))

    def f(x, t):
        return normx.entmax15(x, temperature=t).sum() + normx.softmax(x).sum()

    for of in (jax.grad(f, (0, 1)), jax.jit(jax.grad(f, (0, 1)))):
        dx, dt = of(x, t)
        assert dx.shape == x.shape and dt.shape == t.shape and not dt.any()
