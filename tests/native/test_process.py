"""Threads, forks, the environment and the floating-point state."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import normx

X = np.random.default_rng(0).normal(size=(512, 4096)).astype(np.float32)

FUNCTIONS = (normx.softmax, normx.log_softmax, normx.logsumexp)

FORK = """
import os, sys
import numpy as np, normx
x = np.random.default_rng(0).normal(size=(512, 4096)).astype(np.float32)
normx.set_num_threads(2)
want = normx.softmax(x, backend="native")
child = os.fork()
if child == 0:
    same = np.array_equal(normx.softmax(x, backend="native"), want)
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert np.array_equal(normx.softmax(x, backend="native"), want)
print("alive")
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_call_again():
    done = run(FORK)
    assert done.stdout.strip() == "alive", done.stderr


def test_several_python_threads_call_at_once():
    want = normx.softmax(X)
    wrong = []

    def work():
        wrong.extend(i for i in range(10) if not np.array_equal(normx.softmax(X), want))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_environment_sets_threads_and_target():
    code = "import normx; print(normx.get_num_threads(), normx.explain(normx.softmax, [1.0]))"
    done = run(code, NORMX_NUM_THREADS="3", NORMX_CPU_TARGET="scalar")
    assert done.stdout.startswith("3 ") and "for scalar, 3 threads" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("NORMX_CPU_TARGET", "mmx"), ("NORMX_NUM_THREADS", "many"), ("NORMX_NUM_THREADS", "0")],
)
def test_wrong_values_in_the_environment_are_refused(name, value):
    done = run("import normx; normx.softmax([1.0], backend='native')", **{name: value})
    assert done.returncode and name in done.stderr and value in done.stderr


def test_the_floating_point_state_is_left_as_found():
    """Subnormals still exist after a call: neither FTZ nor DAZ stays set."""
    tiny = np.float32(1e-44)
    for axis in (0, 1):
        normx.softmax(X, axis=axis)
        assert np.array([tiny]) * np.float32(1.0) == tiny
        assert np.array([np.float32(1e-38)]) * np.float32(1e-3) != 0.0


def test_one_thread_and_two_give_the_same_bits_on_few_long_rows():
    x = np.random.default_rng(1).normal(size=(1, 3_000_000)).astype(np.float32)
    before = normx.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            normx.set_num_threads(count)
            results.append(
                [f(x, axis=-1) for f in (normx.softmax, normx.log_softmax, normx.logsumexp)]
            )
    finally:
        normx.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)
