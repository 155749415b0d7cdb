"""Threads, forks, the environment and the floating-point state."""

import ctypes
import os
import platform
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import normx
from normx._libraries import numpy_library
from normx._record import record_of
from normx.testing.plugin import records_of

X = np.random.default_rng(0).normal(size=(512, 4096)).astype(np.float32)

TASKS = Path("/proc/self/task")

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

FORK_WITH_A_CACHE = """
import os
import numpy as np, normx, normx_native
x = np.zeros((2560, 4096), np.float32)
kept, y = normx.softmax(x, backend="native"), normx.softmax(x, backend="native")
del kept
place = y.__array_interface__["data"][0]
child = os.fork()
if child == 0:
    assert normx_native.get_cache_memory() == 0
    z = normx.softmax(x, backend="native")
    assert z.__array_interface__["data"][0] != place
    y[...] = 7  # the child's own copy
    del y, z
    assert normx_native.get_cache_memory() == 80 << 20
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert normx_native.get_cache_memory() == 40 << 20 and (y == y[0, 0]).all() and y[0, 0] < 1
print("alive")
"""


FORK_DURING_A_CALL = """
import os, threading
import numpy as np, normx
x = np.random.default_rng(0).normal(size=(2048, 4096)).astype(np.float32)
normx.set_num_threads(2)
want = normx.softmax(x, backend="native")
over = threading.Event()

def work():
    while not over.is_set():
        normx.softmax(x, backend="native")

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(normx.softmax(x, backend="native"), want) else 1)
    assert os.waitpid(child, 0)[1] == 0
over.set()
for thread in threads:
    thread.join()
print("alive")
"""

INTERRUPT = """
import signal, threading, time
import numpy as np, normx
x = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)
want = normx.softmax(x, backend="native")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
interrupted = 0
for i in range(10):
    timer = threading.Timer(0.002 * (i + 1), signal.raise_signal, [signal.SIGINT])
    end = time.monotonic() + 5  # Python may lose an interrupt where it ignores exceptions
    try:
        timer.start()
        while time.monotonic() < end:
            normx.softmax(x, backend="native")
    except KeyboardInterrupt:
        interrupted += 1
    timer.join()
    assert np.array_equal(normx.softmax(x, backend="native"), want)
print(interrupted > 0)
"""

EXIT_DURING_A_CALL = """
import threading, time
import numpy as np, normx
x = np.zeros((4096, 4096), np.float32)

def work():
    while True:
        normx.softmax(x, backend="native")

threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)
print("over")
"""

#: A row program needs some 40 bytes for each entry of a row that exceeds a thread's scratch.
SHORT_OF_MEMORY = """
import resource
import numpy as np, normx
x = np.zeros((2, 1 << 24), np.float32)
out = np.empty_like(x)
normx.zscore(x[:, :64], backend="native")
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)
try:
    normx.zscore(x, backend="native", out=out)
except MemoryError:
    print("refused")
normx.zscore(x[:, :64], backend="native")
"""

LIMITED = """
import os, threadpoolctl
import numpy as np, normx
x = np.random.default_rng(0).normal(size=(512, 4096)).astype(np.float32)
normx.softmax(x[:1], backend="native")
before = len(os.listdir("/proc/self/task"))
with threadpoolctl.threadpool_limits({limit}, user_api="normx"):
    normx.softmax(x, backend="native")
print(len(os.listdir("/proc/self/task")) - before)
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_keeps_nothing_of_its_parents_cache():
    done = run(FORK_WITH_A_CACHE)
    assert done.stdout.strip() == "alive", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_other_threads_compute_does_no_harm():
    done = run(FORK_DURING_A_CALL)
    assert done.stdout.strip() == "alive", done.stderr


def test_the_process_is_sane_after_keyboard_interrupts():
    done = run(INTERRUPT)
    assert done.stdout.strip() == "True", done.stderr


def test_the_process_may_end_during_a_call():
    done = run(EXIT_DURING_A_CALL)
    assert done.stdout.strip() == "over" and done.returncode == 0, done.stderr


@pytest.fixture
def _threads_as_before():
    before = normx.get_num_threads()
    yield
    normx.set_num_threads(before)


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("counts", [(2,), (1, 3, 2, 4)])
def test_several_python_threads_call_at_once(counts):
    want = normx.softmax(X)
    wrong = []

    def work():
        for i in range(10):
            normx.set_num_threads(counts[i % len(counts)])
            wrong.extend([i] * (not np.array_equal(normx.softmax(X), want)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.usefixtures("_threads_as_before")
def test_threadpoolctl_sees_and_limits_the_threads():
    def seen():
        (found,) = [pool for pool in threadpool_info() if pool["user_api"] == "normx"]
        return found["num_threads"], found["version"]

    normx.softmax(X, backend="native")
    normx.set_num_threads(3)
    assert seen() == (3, normx.__version__)
    with threadpool_limits(1):
        assert normx.get_num_threads() == 1 and seen()[0] == 1
    with threadpool_limits({"normx": 2}):
        assert normx.get_num_threads() == 2
    with threadpool_limits(1, user_api="blas"):
        assert normx.get_num_threads() == 3
    assert normx.get_num_threads() == 3


@pytest.mark.skipif(not TASKS.exists(), reason="only Linux tells a process's memory")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_row_that_memory_is_short_for_is_refused(threads):
    done = run(SHORT_OF_MEMORY, NORMX_NUM_THREADS=threads)
    assert done.stdout.strip() == "refused" and done.returncode == 0, done.stderr


@pytest.mark.skipif(not TASKS.exists(), reason="only Linux lists a process's threads")
@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_threads_are_started_than_threadpoolctl_allows(limit):
    done = run(LIMITED.format(limit=limit), NORMX_NUM_THREADS="4")
    assert int(done.stdout) == limit - 1, done.stderr  # the caller works too


def test_threadpoolctl_may_be_missing():
    code = (
        "import sys; sys.modules['threadpoolctl'] = None; import normx; print(normx.softmax([1]))"
    )
    assert run(code, NORMX_BACKEND="native").stdout.strip() == "[1.]"


def test_the_environment_sets_threads_target_and_cache():
    code = "import normx; print(normx.get_num_threads(), normx.explain(normx.softmax, [1.0]))"
    done = run(code, NORMX_NUM_THREADS="3", NORMX_CPU_TARGET="scalar", NORMX_CACHE_MIB="7")
    assert done.stdout.startswith("3 "), done.stderr
    assert "for scalar, 3 threads, up to 7 MiB kept" in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NORMX_CPU_TARGET", "mmx"),
        ("NORMX_NUM_THREADS", "many"),
        ("NORMX_NUM_THREADS", "0"),
        ("NORMX_CACHE_MIB", "-1"),
    ],
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


CALLS = {
    record.name: partial(record.function, backend="native", **record.example)
    for record in map(record_of, records_of("native", numpy_library))
} | {
    "softmax_topk": lambda x: normx.softmax_topk(x, 4, backend="native"),
    "gradient": lambda x: normx.vjp(normx.softmax, x, backend="native")[1](x)["x"],
}

#: FE_UPWARD of fenv.h.
UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}


@pytest.mark.skipif(os.name != "posix" or platform.machine() not in UPWARD, reason="no fenv.h")
@pytest.mark.parametrize("name", CALLS)
def test_the_rounding_that_the_caller_has_set_is_kept_and_without_effect(name):
    """More modes, and the kernels one by one, are in native/tests/selftest.cpp."""
    c, upward, call = ctypes.CDLL(None), UPWARD[platform.machine()], CALLS[name]
    for x in (X[:1], X[:40]):
        want = call(x)
        before = c.fegetround()
        c.fesetround(upward)
        try:
            got = call(x)
            after = c.fegetround()
        finally:
            c.fesetround(before)
        assert after == upward
        assert np.array_equal(got, want)


@pytest.mark.usefixtures("_threads_as_before")
def test_one_thread_and_two_give_the_same_bits_on_few_long_rows():
    x = np.random.default_rng(1).normal(size=(1, 3_000_000)).astype(np.float32)
    results = []
    for count in (1, 2):
        normx.set_num_threads(count)
        results.append([f(x, axis=-1) for f in (normx.softmax, normx.log_softmax, normx.logsumexp)])
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)
