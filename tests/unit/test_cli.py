"""The command line: every command at tiny sizes, and every way to get it wrong."""

# ruff: noqa: E402  # what may be missing is looked for before it is imported

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from contextlib import nullcontext
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest

import normx
from normx._record import record_of, registry

for _package in ("typer", "rich"):
    pytest.importorskip(_package, reason=f"{_package} is not installed")

from typer.testing import CliRunner

from normx.cli import (
    algorithms,
    bench,
    bench_report,
    demo,
    gpu,
    homes,
    peers,
    plot,
    samples,
    screen,
    targets,
    timing,
)
from normx.cli.app import app
from normx.cli.exact import exact, largest_error, some_rows

COMMANDS = ("demo", "info", "capabilities", "plot", "experiment", "bench")
TINY = ("--shape", "4x32", "--repeats", "2", "--peer", "scipy")


def run(*arguments, code=0):
    """The outcome of a command, which must end with that exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def error(*arguments):
    """The message of a command that is wrong: one line, and nothing else."""
    result = run(*arguments, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("normx: ")
    return line


@pytest.fixture
def drawing():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def only_numpy(monkeypatch):
    """The demo on NumPy arrays alone: importing every framework takes long."""
    first = homes.homes()[:1]
    monkeypatch.setattr(demo, "homes", lambda: first)


def is_picture(path, least):
    from matplotlib.image import imread

    pixels = imread(path)
    # More than a frame was drawn: many shades.
    return pixels.shape[1] >= least and len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0))


# ------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_does(command):
    text = run(command, "--help").stdout
    callback = next(c.callback for c in app.registered_commands if c.callback.__name__ == command)
    assert callback.__doc__.split()[0] in text
    assert "Usage" in text


def test_no_command_shows_all_commands():
    text = run().stdout
    assert all(command in text for command in COMMANDS)


def test_commands_tested_here_are_all_there_are():
    assert set(COMMANDS) == {c.callback.__name__ for c in app.registered_commands}


def test_version():
    assert run("--version").stdout == f"normx {normx.__version__}\n"


def test_module_and_script_are_the_same():
    done = subprocess.run(
        [sys.executable, "-m", "normx", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"normx {normx.__version__}\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_one_line_that_says_what_to_install(missing):
    program = (
        f"import sys; sys.modules[{missing!r}] = None; from normx.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f'normx: the command line needs {missing}; pip install "normx[cli,plot]"\n'
    )


def test_missing_matplotlib_is_one_line_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for arguments in (
        ("plot", "softmax"),
        ("experiment", "dispersion", "--quick"),
        ("bench", "softmax", "--plot", tmp_path / "b.png"),
    ):
        assert 'pip install "normx[cli,plot]"' in error(*arguments)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("frobnicate",), ("'frobnicate'", *COMMANDS)),
        (("--frobnicate",), ("--frobnicate", "normx --help")),
        (("bench", "--shape", "4x4"), ("--shape needs a FUNCTION", "normx bench softmax --shape")),
        (("bench", "--axis", "0"), ("--axis needs a FUNCTION",)),
        (("bench", "--fresh"), ("--fresh needs a FUNCTION",)),
        (("bench", "sofmax"), ("'sofmax'", "softmax", "logsumexp")),
        (("bench", "entropy"), ("'entropy'", "cross_entropy", "SphericalHead")),
        (("bench", "cross_entropy", "--axis", "0"), ("--repeats, --threads, --quick and --json",)),
        (("bench", "SphericalHead", "--dtype", "float64"), ("takes --repeats",)),
        (("plot", "sofmax"), ("'sofmax'", "softmax", "logsumexp")),
        (("bench", "softmax", "--shape", "3x"), ("'3x'", "64x1024")),
        (("bench", "softmax", "--shape", "0x4"), ("'0x4'", "positive")),
        (("bench", "softmax", "--shape", "99999999x99999999"), ("needs", "this machine has")),
        (("bench", "softmax", "--shape", "4x4", "--axis", "2"), ("-2 to 1", "not 2")),
        (("bench", "softmax", "--repeats", "-1"), ("--repeats", "at least 1", "-1")),
        (("bench", "softmax", "--repeats", "many"), ("--repeats", "integer")),
        (("bench", "softmax", "--threads", "0"), ("--threads", "at least 1")),
        (("bench", "softmax", "--dtype", "int8"), ("'int8'", "float16, bfloat16, float32")),
        (("bench", "softmax", "--peer", "nobody"), ("'nobody'", "normx, copy", "torch")),
        (("bench", "softmax", "--json", "no/such/file.json"), ("'no/such'", "'file.json'")),
        (("bench", "softmax", "--plot", "b.pdf"), (".png", "'b.pdf'")),
        (("plot", "softmax", "--out", "no/such/p.png"), ("'no/such'", "'p.png'")),
        (("demo", "--out", "d.jpg"), (".png", "'d.jpg'")),
        (("experiment", "dispersal"), ("'dispersal'", "dispersion")),
        (("experiment", "dispersion", "--out", "d.jpg"), (".png", "'d.jpg'")),
    ],
)
def test_error_is_one_line_that_says_what_is_allowed(arguments, parts):
    line = error(*arguments)
    assert all(part in line for part in parts), line


def test_error_inside_a_command_is_one_line_too(monkeypatch):
    def broken():
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(normx, "backends", broken)
    assert error("info") == "normx: RuntimeError: first line second line"


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(normx, "backends", lambda: 1 / 0)
    result = CliRunner().invoke(app, ["--debug", "info"])
    assert isinstance(result.exception, ZeroDivisionError)


# --------------------------------------------------------- info, capabilities


def test_info_names_versions_backends_libraries_and_variables(monkeypatch):
    monkeypatch.setenv("NORMX_NUM_THREADS", "1")
    text = run("info").stdout
    assert normx.__version__ in text
    assert np.__version__ in text
    for there in (*normx.backends().values(), *normx.libraries().values()):
        assert there.name in text
    assert "NORMX_BACKEND" in text
    (line,) = [line for line in text.splitlines() if "NORMX_NUM_THREADS" in line]
    assert line.split()[-1] == "1"


def test_info_gives_the_reason_why_a_backend_is_missing(monkeypatch):
    from normx._insight import Availability

    there = {"reference": normx.backends()["reference"]}
    there["native"] = Availability("native", False, "left out for this test")
    monkeypatch.setattr(normx, "backends", lambda: there)
    (line,) = [line for line in run("info").stdout.splitlines() if "left out for" in line]
    assert line.split()[:2] == ["native", "no"]


@pytest.fixture
def claims(monkeypatch):
    """Capabilities of two backends, one of which has float32 only."""
    from normx._insight import Capability

    rows = tuple(
        Capability("softmax", "numpy", backend, dtype, supported, True, "")
        for backend, dtype, supported in (
            ("native", "float32", True),
            ("native", "float64", False),
            ("reference", "float32", True),
            ("reference", "float64", True),
        )
    )
    monkeypatch.setattr(normx, "capabilities", lambda: rows)


@pytest.mark.usefixtures("claims")
def test_capabilities_markdown_is_a_table():
    lines = run("capabilities", "--markdown").stdout.splitlines()
    assert lines[:3] == [
        "| function | numpy | gradient |",
        "| --- | --- | --- |",
        "| `softmax` | native: f32<br>reference: all | yes |",
    ]


@pytest.mark.usefixtures("claims")
def test_capabilities_table_has_the_same_cells():
    text = run("capabilities").stdout
    assert "native: f32" in text
    assert "reference: all" in text


# ------------------------------------------------------------------------ demo


@pytest.mark.usefixtures("only_numpy")
def test_demo_runs_every_function_on_every_backend():
    lines = list(demo.run(samples.table_scores()[:, :4], lambda text: None))
    usable = [name for name, there in normx.backends().items() if there.usable]
    assert [(line.function, line.place.backend) for line in lines] == [
        (name, backend) for name in registry() for backend in usable
    ]
    reference = [line for line in lines if line.place.backend == "reference"]
    assert all(line.ran.startswith("reference: ") for line in reference if not line.refused)
    softmax = next(line for line in reference if line.function == "softmax")
    assert 0 < softmax.ulp < 100
    assert softmax.time > 0


@pytest.mark.usefixtures("only_numpy", "drawing")
def test_demo_writes_a_table_and_a_picture(tmp_path):
    path = tmp_path / "demo.png"
    text = run("demo", "--out", path).stdout
    assert all(name in text for name in registry())
    assert str(path) in text.replace("\n", "")
    assert is_picture(path, 1500) > 500


@pytest.mark.usefixtures("only_numpy")
def test_demo_without_a_picture_writes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "picture" not in run("demo", "--no-picture").stdout
    assert not list(tmp_path.iterdir())


def test_demo_says_why_nothing_ran(monkeypatch):
    def refuse(x):
        raise TypeError("no room here")

    home = homes.Home("elsewhere", "elsewhere", refuse)
    monkeypatch.setattr(demo, "homes", lambda: (homes.homes()[0], home))
    lines = list(demo.run(samples.table_scores()[:, :2], lambda text: None))
    (reason,) = demo.refusals([line for line in lines if str(line.place) == "elsewhere"])
    assert reason == f"{', '.join(registry())} on elsewhere: no room here"


def test_shipped_scores_are_what_the_readme_says():
    scores, tokens = samples.attention()
    assert scores.shape == (3, 4, 181, 181)
    assert scores.dtype == np.float32
    assert len(tokens) == 181
    assert np.isfinite(scores).all()


def test_homes_name_a_library_once(monkeypatch):
    numpy = normx.libraries()["numpy"]
    monkeypatch.setattr(normx, "libraries", lambda: {"numpy": numpy, "numpylib": numpy})
    monkeypatch.setattr(homes, "plugin", lambda root: homes.numpy_library)
    assert [home.root for home in homes.homes() if home.name == "numpy"] == ["numpy"]


def test_homes_take_arrays_and_give_them_back():
    found = homes.homes()
    assert found[0].name == "numpy"
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for home in found:
        if home.name in ("numpy", "array_api_strict", "sparse", "dask"):
            np.testing.assert_array_equal(homes.to_numpy(home.make(x)), x)


# ------------------------------------------------------------------------ plot


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_plot_writes_a_picture(name, tmp_path):
    path = tmp_path / "p.png"
    assert str(path) in run("plot", name, "--out", path).stdout.replace("\n", "")
    assert is_picture(path, 1000) > 100


@pytest.mark.usefixtures("drawing")
def test_plot_is_named_after_the_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("plot", "softmax")
    assert [path.name for path in tmp_path.iterdir()] == ["normx-softmax.png"]


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("name", registry())
def test_plot_takes_every_function(name):
    picture = BytesIO()
    plot.draw(plot.record_named(name), picture)
    assert len(picture.getvalue()) > 30_000


@pytest.mark.usefixtures("drawing")
def test_plot_is_the_same_every_time():
    pictures = [BytesIO(), BytesIO()]
    for picture in pictures:
        plot.draw(record_of("gumbel_softmax"), picture)
    assert pictures[0].getvalue() == pictures[1].getvalue()


def test_plot_says_what_was_passed():
    assert plot._label(record_of("softmax")) == "softmax"
    assert plot._label(record_of("budget")).startswith("budget (budget = ")
    assert "left out" in plot._label(record_of("masked_softmax"))


def test_plot_leaves_out_every_third_score_where_a_mask_must_be_passed():
    x = np.zeros((2, 6))
    np.testing.assert_array_equal(
        plot.apply(record_of("masked_softmax"), x), np.tile([1, 0, 1, 1, 0, 1], (2, 1)) / 4
    )


def test_every_required_keyword_has_a_value():
    for record in registry().values():
        assert not samples.unknown(record)
        assert set(samples.required(record)) == set(samples.keywords(record, (2, 3)))


def test_a_mask_for_samples_is_causal():
    assert samples.causal((3,)).tolist() == [True] * 3
    assert samples.causal((2, 3)).tolist() == [[True, True, False], [True, True, True]]


# ----------------------------------------------------------------------- bench


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_bench_prints_every_time_beside_normx_and_the_copy(name):
    pytest.importorskip("scipy", reason="scipy is not installed")
    text = run("bench", name, *TINY).stdout
    (header,) = [line for line in text.splitlines() if "median" in line]
    assert "÷ normx" in header
    assert "÷ copy" in header
    assert "ULP" in header
    for contestant in ("normx", "copy", "scipy"):
        assert any(line.split()[:1] == [contestant] for line in text.splitlines())


def test_bench_json_holds_all_that_was_measured(tmp_path):
    pytest.importorskip("scipy", reason="scipy is not installed")
    path = tmp_path / "b.json"
    run("bench", "softmax", *TINY, "--shape", "1x16", "--axis", 0, "--fresh", "--json", path)
    content = json.loads(path.read_text())
    assert content["function"] == "softmax"
    assert content["settings"] == {"dtype": "float32", "repeats": 2, "threads": 1}
    assert content["machine"]["numpy"] == np.__version__
    assert [case["shape"] for case in content["cases"]] == [[4, 32], [1, 16]]
    for case in content["cases"]:
        assert (case["axis"], case["ready"], case["place"]) == (0, False, "in cache")
        scores = {score["name"]: score for score in case["scores"]}
        assert set(scores) == {"normx", "copy", "scipy"}
        for score in scores.values():
            assert len(score["times"]) == 2
            assert score["output"] == "fresh"
            assert score["median"] == pytest.approx(np.median(score["times"]))
            base = scores["copy"]["median"]
            assert score["ratio_to_copy"] == pytest.approx(score["median"] / base)
        assert scores["normx"]["ratio_to_normx"] == 1
        assert scores["copy"]["ulp"] is None
        assert scores["normx"]["ulp"] <= 4
        assert "softmax" in scores["normx"]["ran"]


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize(
    ("name", "contestants"),
    [
        ("cross_entropy", ("normx, of NumPy's arrays",)),
        ("SphericalHead", ("SphericalHead", "its stabiliser", "dense log-softmax")),
    ],
)
def test_bench_of_a_step_of_training(name, contestants, tmp_path):
    path = tmp_path / "b.json"
    text = run("bench", name, "--quick", "--repeats", 1, "--json", path).stdout
    assert all(contestant in text for contestant in contestants)
    lines = json.loads(path.read_text())["training"]
    assert {line["name"] for line in lines} >= set(contestants)
    assert all(line["median"] > 0 and line["ratio"] > 0 for line in lines)


def test_bench_draws_a_picture(tmp_path):
    path = tmp_path / "b.png"
    run("bench", "softmax", "--shape", "4x8", "--repeats", 1, "--peer", "copy", "--plot", path)
    assert is_picture(path, 1000) > 20


def test_bench_without_shapes_takes_the_default_set():
    assert bench.cases((), None, None) == list(bench.DEFAULT)
    assert {case.ready for case in bench.cases((), None, True)} == {True}
    assert {case.axis for case in bench.cases((), 1, None)} == {1}


def test_bench_of_everything_times_every_function_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "LEAST", 0.0)
    path = tmp_path / "all.json"
    text = run("bench", "--quick", "--repeats", 1, "--json", path).stdout
    content = json.loads(path.read_text())
    forward = {case["function"] for case in content["cases"] if not case["backward"]}
    backward = {case["function"] for case in content["cases"] if case["backward"]}
    assert forward == set(registry())
    assert backward == {name for name, record in registry().items() if record.vjp is not None}
    for case in content["cases"]:
        scores = {score["name"]: score for score in case["scores"]}
        assert {"normx", "copy", "reference"} <= set(scores)
        assert scores["normx"]["lower"] <= scores["normx"]["median"]
        checked = not case["backward"] and case["function"] != "gumbel_softmax"
        budget = record_of(case["function"]).ulp["float32"]
        assert (scores["normx"]["ulp"] <= budget) if checked else scores["normx"]["ulp"] is None
        assert not any(why.startswith("failed") for why in case["left_out"].values())
    assert "the project's targets" in text
    assert {target["verdict"] for target in content["targets"]} <= {"met", "missed", "not measured"}
    assert all((t["reached"] is None) == bool(t["reason"]) for t in content["targets"])


def test_a_quick_run_leaves_out_the_large_arrays():
    sizes = [np.prod(case.shape) for _, case in targets.chosen(quick=True)]
    assert sizes
    assert max(sizes) <= targets.QUICK
    assert sum(map(len, targets.chosen(quick=False).values())) == len(targets.TARGETS)


def test_a_target_whose_contestant_is_missing_is_not_measured():
    nobody = peers.Peer("nobody", "no_such_package", lambda job: None)
    target = targets.Target(2.0, "softmax", bench.Case((2, 4)), nobody)
    (it,) = targets.measure(target.function, target.case, [target], 1, lambda text: None)
    assert (it.verdict, it.reason) == ("not measured", "nobody: not installed")
    assert targets.Reached(target, 2.0).verdict == "met"
    assert targets.Reached(target, 1.9).verdict == "missed"


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: f"{t}, {t.theirs.name}")
def test_contestants_of_targets_compute(target):
    case = bench.Case((2, 16), target.case.axis, target.case.ready)
    small = dataclasses.replace(target, case=case)
    (it,) = targets.measure(small.function, case, [small], 1, lambda text: None)
    forced = target.ours.package == "normx_native"  # this CPU may lack its instruction set
    assert it.ratio is not None or forced or "not installed" in it.reason


@pytest.mark.parametrize("peer", [peers.TORCH, peers.ENTMAX], ids=lambda peer: peer.name)
@pytest.mark.parametrize("name", registry())
def test_gradients_of_peers_are_those_of_normx(name, peer):
    if peer.version is None:
        pytest.skip(f"{peer.package} is not installed")
    case = bench.Case((2, 40), backward=True)
    job, _ = bench._job(record_of(name), case, bench.Settings(dtype="float64"))
    with job.undo:
        try:
            entry = peer.prepare(job)
        except peers.LeftOutError as reason:
            pytest.skip(str(reason))
        (got,) = entry.calls[0]()
        want = peers.NORMX.prepare(job).calls[0]()["x"]
    if not record_of(name).random:
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)


def test_bench_says_who_was_left_out_and_why():
    text = run("bench", "softmax", "--shape", "2x4", "--repeats", 1, "--peer", "entmax").stdout
    assert "left out entmax: " in text


def test_a_peer_that_breaks_is_left_out(monkeypatch):
    def broken(job):
        raise RuntimeError("no luck")

    monkeypatch.setattr(bench, "PEERS", (peers.NORMX, peers.COPY, peers.Peer("p", "json", broken)))
    text = run("bench", "softmax", "--shape", "2x4", "--repeats", 1).stdout
    assert "left out p: failed: RuntimeError: no luck" in " ".join(text.split())


def test_a_peer_that_answers_in_another_dtype_is_left_out(monkeypatch):
    def wide(job):
        return peers.Entry([lambda: None], lambda: job.inputs[0].astype(np.float64), "fresh")

    monkeypatch.setattr(bench, "PEERS", (peers.NORMX, peers.COPY, peers.Peer("p", "json", wide)))
    text = run("bench", "softmax", "--shape", "2x4", "--repeats", 1).stdout
    assert "left out p: answers float32 with float64" in " ".join(text.split())


def test_an_inaccurate_peer_is_found_out(monkeypatch):
    def careless(job):
        def call():
            return normx.softmax(job.inputs[0]) * np.float32(1 + 1e-5)

        return peers.Entry([call], call, "fresh")

    found = (peers.NORMX, peers.COPY, peers.Peer("careless", "json", careless))
    chosen = [bench.Case((4, 16))]
    (result,) = bench.run(
        record_of("softmax"), chosen, bench.Settings(repeats=1), found, lambda text: None
    )
    ulp = {score.name: score.ulp for score in result.scores}
    assert ulp["normx"] <= 4
    assert 80 < ulp["careless"] < 200


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["onnxruntime", "scipy", "jax", "torch", "mlx"])
@pytest.mark.parametrize("ready", [True, False])
def test_peers_compute_the_same(name, dtype, ready):
    (peer,) = [peer for peer in peers.PEERS if peer.name == name]
    if peer.version is None:
        pytest.skip(f"{peer.package} is not installed")
    if name == "onnxruntime":
        pytest.importorskip("onnx", reason="onnx is not installed")
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x = bench.scores((3, 40), bench.numpy_dtype(dtype), 0)
    left_out = []
    for record in (record_of("softmax"), record_of("log_softmax"), record_of("logsumexp")):
        out = np.zeros(x.shape[: 1 if record.kind == "reduction" else 2], x.dtype)
        job = peers.Job(record, -1, ready, [x], [out], 1)
        with job.undo, np.errstate(all="ignore"):
            try:
                entry = peer.prepare(job)
            except peers.LeftOutError as reason:
                left_out.append(str(reason))
                continue
            assert entry.output == "fresh" or ready
            got = np.asarray(entry.result())
        if (name, dtype) != ("scipy", "bfloat16"):  # float64 then, which the bench leaves out
            assert got.dtype == x.dtype
        want = exact(record, x, {}).astype(np.float64)
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=64 * _epsilon(dtype))
    assert not left_out or (all(left_out) and (name, dtype) in _WITHOUT)


def test_onnxruntime_without_onnx_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    x = np.ones((1, 2), np.float32)
    job = peers.Job(record_of("softmax"), -1, True, [x], [x.copy()], 1)
    with pytest.raises(peers.LeftOutError, match="pip install onnx"):
        peers._onnxruntime(job)


#: What peers do not have; JAX has float64 where somebody switched it on.
_WITHOUT = {("onnxruntime", "bfloat16"), ("jax", "float64"), ("mlx", "float64")}


def _epsilon(dtype):
    return {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}[dtype]


def test_threads_are_set_and_put_back(monkeypatch):
    asked, before = [], normx.get_num_threads()
    monkeypatch.setattr(normx, "set_num_threads", asked.append)
    run("bench", "softmax", "--shape", "2x4", "--repeats", 1, "--threads", 2, "--peer", "copy")
    assert asked == [2, before]


@pytest.mark.parametrize(
    "peer",
    dict.fromkeys(it.theirs for it in targets.TARGETS if it.theirs.package in {"torch", "entmax"}),
    ids=lambda peer: peer.name,
)
def test_whoever_uses_torch_has_the_threads_of_the_job(peer):
    if peer.version is None:
        pytest.skip(f"{peer.package} is not installed")
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    for threads in (before + 1, before + 2):
        name = "entmax15" if peer is peers.ENTMAX else "softmax"
        job, _ = bench._job(record_of(name), bench.Case((4, 40)), bench.Settings(threads=threads))
        with job.undo:
            peer.prepare(job)
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == before


def test_buffers_larger_than_the_cache_are_gone_through_in_turn(monkeypatch):
    monkeypatch.setattr(bench.machine, "cache_size", lambda level: 1 << 20)
    assert bench.buffer_sets(1 << 19) == (1, bench.IN_CACHE)
    count, place = bench.buffer_sets(1 << 20)
    assert (count, place) == (4, bench.IN_MEMORY)
    job, _ = bench._job(record_of("softmax"), bench.Case((512, 512)), bench.Settings())
    assert len({x.ctypes.data for x in (*job.inputs, *job.outputs)}) == 2 * len(job.inputs) == 4


def test_a_busy_machine_is_told():
    assert bench_report.disturbed([1.0, 1.9]) == ""
    assert "0.5 of a processor" in bench_report.disturbed([1.0, 0.5])


# -------------------------------------------------------------- timing, errors


def test_every_round_runs_everyone_once_in_rotated_order(monkeypatch):
    order = []

    class Recorded(timing.Contestant):
        def run(self):
            order.append(self.name)
            super().run()

    contestants = [Recorded(name, [lambda: None]) for name in "abc"]
    timing.interleave(contestants, 3, lambda text: None)
    assert "".join(order) == "abcbcacab"
    assert all(len(contestant.times) == 3 for contestant in contestants)


def test_a_timing_lasts_a_millisecond_and_uses_the_buffers_in_turn():
    seen = []
    calls = [functools.partial(seen.append, i) for i in range(3)]
    contestant = timing.Contestant("x", calls, warm=False)
    timing.interleave([contestant], 1, lambda text: None)
    assert len(seen) * contestant.times[0] > timing.LEAST / 2
    assert seen[:9] == [0, 1, 2] * 3


def test_who_takes_long_is_timed_once(monkeypatch):
    monkeypatch.setattr(timing, "PATIENCE", 0.0)
    seen = []
    slow = timing.Contestant("x", [lambda: seen.append(1)], warm=False)
    timing.interleave([slow], 5, lambda text: None)
    assert len(seen) == 2  # one to compile and touch the buffers
    assert len(slow.times) == 1
    assert slow.lower == slow.median


def test_the_garbage_collector_is_off_while_timing():
    import gc

    seen = set()
    call = timing.Contestant("x", [lambda: seen.add(gc.isenabled())])
    timing.interleave([call], 1, lambda text: None)
    assert seen == {False}
    assert gc.isenabled()


def test_oracle_keeps_the_digits_of_the_top_class():
    x = np.array([[50.0, 0.0, -3.0]], np.float32)
    got = exact(record_of("log_softmax"), x, {})
    want = -(np.exp(np.longdouble(-50)) + np.exp(np.longdouble(-53)))
    assert abs(got[0, 0] / want - 1) < 1e-15


def test_largest_error_counts_in_units_of_the_dtype():
    want = np.ones(3, np.longdouble)
    got = np.array([1, 1, 1 + 3 * 2.0**-23], np.float32)
    assert largest_error(got, want) == 3
    assert largest_error(np.array([np.nan, 1, 1], np.float32), want) == np.inf


def test_some_rows_are_whole_rows_of_the_axis():
    x = np.arange(60.0).reshape(3, 4, 5)
    rows, places = some_rows(x, 1, count=20)
    assert rows.shape == (5, 4)
    every = np.moveaxis(x, 1, -1).reshape(-1, 4)
    np.testing.assert_array_equal(rows, every[places])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5, "1.50 s "), (0.0123, "12.3 ms"), (4.56e-5, "45.6 µs"), (7.8e-8, "78.0 ns")],
)
def test_times_have_units(value, text):
    assert screen.seconds(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7 B"),
        (48 << 10, "48 KiB"),
        (1536 << 10, "1.5 MiB"),
        (480 << 20, "480 MiB"),
        (10 << 30, "10 GiB"),
    ],
)
def test_sizes_have_units(count, text):
    assert screen.size(count) == text


# ------------------------------------------------------------------ algorithms


@pytest.fixture
def selectable(monkeypatch):
    """Kernels to choose from, played by the reference backend."""
    asked = []
    module = SimpleNamespace(
        algorithms=lambda name: ("formula", "softmax"),
        use_algorithm=lambda name: nullcontext(asked.append(name)),
        use_target=lambda name: nullcontext(asked.append(name)),
    )
    monkeypatch.setattr(algorithms, "_BACKEND", "reference")
    monkeypatch.setattr(algorithms, "kernels", lambda: (module, ("numpy",)))
    return asked


@pytest.mark.usefixtures("drawing")
def test_algorithms_are_tabled_and_drawn(selectable, tmp_path):
    out, data = tmp_path / "a.png", tmp_path / "a.json"
    text = run(
        "bench", "softmax", "--algorithms", "--max-size", 256, "--repeats", 1,
        "--plot", out, "--json", data,
    ).stdout  # fmt: skip
    assert "2^8" in text
    assert is_picture(out, 1000) > 50
    points = json.loads(data.read_text())["algorithms"]
    assert [(point["algorithm"], point["n"]) for point in points] == [
        ("formula", 128), ("softmax", 128), ("formula", 256), ("softmax", 256),
    ]  # fmt: skip
    assert all(point["throughput"] > 0 and point["copy"] > 0 for point in points)
    assert {"numpy", "formula", "softmax"} == set(selectable)


def test_an_algorithm_that_does_not_take_rows_is_left_out(selectable):
    module, targets = algorithms.kernels()
    use = module.use_algorithm

    def choosy(name):
        if name == "formula":
            raise ValueError("for columns only")
        return use(name)

    module.use_algorithm = choosy
    text = run("bench", "softmax", "--algorithms", "--max-size", 128, "--repeats", 1).stdout
    assert "formula" not in text
    assert set(selectable) == {*targets, "softmax"}
    module.algorithms = lambda name: ("formula",)
    line = error("bench", "softmax", "--algorithms", "--max-size", 128, "--repeats", 1)
    assert "no algorithm of softmax takes contiguous rows" in line


def test_an_algorithm_that_did_not_run_is_an_error(selectable, monkeypatch):
    module, _ = algorithms.kernels()
    monkeypatch.setattr(algorithms, "kernels", lambda: (module, ("avx512",)))
    line = error("bench", "softmax", "--algorithms", "--max-size", 128, "--repeats", 1)
    assert "asked for formula on avx512, but softmax_formula on numpy ran" in line
    assert selectable


@pytest.mark.usefixtures("selectable")
def test_lengths_out_of_range_are_refused():
    assert "from 128 to" in error("bench", "softmax", "--algorithms", "--max-size", 64)


def test_algorithms_without_the_compiled_backend_is_one_line(monkeypatch):
    from normx.plugins import Refusal

    monkeypatch.setattr(algorithms, "backend", lambda name: Refusal("not built"))
    assert "--algorithms needs the compiled backend: not built" in error(
        "bench", "softmax", "--algorithms"
    )


def test_algorithms_of_the_compiled_backend(tmp_path):
    if not normx.backends()["native"].usable:
        pytest.skip(f"native: {normx.backends()['native'].reason}")
    try:
        module, targets = algorithms.kernels()
    except screen.CommandError as reason:
        pytest.skip(str(reason))
    data = tmp_path / "a.json"
    run("bench", "softmax", "--algorithms", "--max-size", 256, "--repeats", 1, "--json", data)
    points = json.loads(data.read_text())["algorithms"]
    assert {point["target"] for point in points} == set(targets)
    # Those for other layouts than one row are left out.
    assert len({point["algorithm"] for point in points} & set(module.algorithms("softmax"))) > 1


# ------------------------------------------------------------------------- gpu


def test_a_bench_on_a_gpu_needs_one(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert "torch is not installed" in gpu.refusal()
    assert "--device gpu: torch is not installed" in error("bench", "--device", "gpu")
    assert "'tpu'; known are cpu, gpu" in error("bench", "--device", "tpu")


def test_a_bench_on_a_gpu_covers_lengths_dtypes_and_rows_that_are_few():
    chosen = gpu.cases(None, "float32", quick=False)
    assert {case.dtype for case in chosen} == set(gpu.DTYPES)
    assert {32, 1 << 22} <= {case.n for case in chosen if case.rows * case.n == gpu.SCORES}
    assert (1, 1 << 26) in {(case.rows, case.n) for case in chosen}
    assert {case.n for case in chosen if case.k} == {n for _, n in gpu.TOPK}
    (dtype,) = {case.dtype for case in gpu.cases(record_of("logsumexp"), "float16", quick=True)}
    assert dtype == "float16"


def test_a_bench_on_a_gpu_reports_all_contestants(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(gpu, "SCORES", 1 << 10)
    monkeypatch.setitem(gpu.PEERS, "torch.compile", ("json", lambda case: 1 / 0))
    here = gpu.Device("cpu", None, lambda: None)
    chosen = [gpu.Case("softmax", "float32", 4, 16), gpu.Case("softmax", "float32", 2, 16, 3)]
    results = gpu.run(chosen, 2, here, lambda text: None)
    for result in results:
        assert {"copy", "normx", "torch"} <= result.medians.keys()
        assert result.share("copy") == 1.0 and result.over_torch > 0
        assert "failed: " in result.left_out["torch.compile"]
        assert result.left_out["liger"] == "not installed"
    assert [table.row_count for table in gpu.tables(results)] == [1, 1]
    assert "torch ÷ normx" in gpu.footnote(results, 2)
    assert len(gpu.as_json(results, 2)["cases"]) == 2
    gpu.draw(results, 2, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 1000
