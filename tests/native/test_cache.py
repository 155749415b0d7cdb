"""Memory of large results: reused, bounded, given back, and never while somebody looks at it."""

import gc
import os
import pickle
import threading
from pathlib import Path

import normx_native
import numpy as np
import pytest

import normx

MIB = 1 << 20
ROWS = np.zeros((2560, 4096), np.float32)  # 40 MiB
STATM = Path("/proc/self/statm")
SHARE = np.float32(1 / 4096)


def softmax(x=ROWS):
    return normx.softmax(x, backend="native")


def address(y):
    return y.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def _a_cache_of_its_own():
    before = normx_native.get_cache_limit()
    gc.collect()  # or results of other tests are freed in the middle of these
    normx_native.clear_cache()
    normx_native.set_cache_limit(128 * MIB)
    yield
    normx_native.clear_cache()
    normx_native.set_cache_limit(before)


def test_the_next_result_gets_the_memory_of_a_freed_one():
    y = softmax()
    place = address(y)
    del y
    assert normx_native.get_cache_memory() == 40 * MIB
    y = softmax()
    assert address(y) == place and normx_native.get_cache_memory() == 0
    assert (y == SHARE).all()


@pytest.mark.parametrize(
    ("rows", "reuses"), [(2560, True), (2304, True), (2150, False), (2816, False)]
)
def test_a_result_of_similar_size_reuses_memory_and_others_do_not(rows, reuses):
    y = softmax()
    del y
    y = softmax(np.zeros((rows, 4096), np.float32))
    assert normx_native.get_cache_memory() == (0 if reuses else 40 * MIB)
    assert (y == SHARE).all()


def test_small_results_are_numpys_own_affair():
    y = softmax(np.zeros((2047, 4096), np.float32))
    del y
    assert normx_native.get_cache_memory() == 0


def test_out_is_left_to_who_gave_it():
    y = np.empty_like(ROWS)
    assert normx.softmax(ROWS, out=y) is y
    del y
    assert normx_native.get_cache_memory() == 0


def test_no_two_living_results_share_memory():
    results = [softmax() for _ in range(3)]
    views = [y[1:, ::2] for y in results[:2]]
    del results[:2]
    results += [softmax() for _ in range(3)]
    every = views + results
    for i, y in enumerate(every):
        assert not any(np.shares_memory(y, other, max_work=1) for other in every[:i])
    for view in views:
        view[...] = 7
    assert all((y == SHARE).all() for y in results)


def test_a_view_keeps_its_memory():
    y = softmax()
    view = y[3]
    del y
    assert normx_native.get_cache_memory() == 0
    other = softmax(np.full(ROWS.shape, -np.inf, np.float32))  # zeros
    assert (view == SHARE).all() and not other.any()
    del view
    assert normx_native.get_cache_memory() == 40 * MIB


def test_no_more_is_kept_than_the_limit_allows():
    results = [softmax() for _ in range(5)]
    del results
    assert normx_native.get_cache_memory() == 120 * MIB
    normx_native.set_cache_limit(100 * MIB)
    assert normx_native.get_cache_memory() == 80 * MIB
    normx_native.set_cache_limit(0)
    assert normx_native.get_cache_memory() == 0
    y = softmax()
    del y
    assert normx_native.get_cache_memory() == 0


def test_the_newest_is_kept():
    results = [softmax() for _ in range(4)]
    places = [address(y) for y in results]
    while results:
        del results[0]
    assert address(softmax()) == places[-1]


@pytest.mark.parametrize("size", [-1, 1.5, True, "all"])
def test_a_wrong_limit_is_refused(size):
    with pytest.raises((TypeError, ValueError), match=r"set_cache_limit: `size` must be .* not "):
        normx_native.set_cache_limit(size)


def test_a_limit_beyond_all_memory_is_no_limit():
    normx_native.set_cache_limit(2**80)
    assert normx_native.get_cache_limit() > 2**60


@pytest.mark.skipif(not STATM.exists(), reason="only Linux says what is resident")
def test_the_system_has_its_memory_back_when_the_cache_is_cleared():
    def resident():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    y = softmax()
    assert resident() - before > 36 * MIB
    del y
    normx_native.clear_cache()
    assert resident() - before < 4 * MIB


def test_results_are_ordinary_arrays():
    y = softmax()
    assert type(y) is np.ndarray and y.base is None and y.flags.owndata and y.flags.writeable
    assert y.flags.c_contiguous and address(y) % 64 == 0
    assert np.array_equal(pickle.loads(pickle.dumps(y)), y)
    assert memoryview(y).nbytes == 40 * MIB
    assert normx.softmax(y, out=y) is y


@pytest.mark.parametrize("rows", [5000, 2560, 2, 0])
def test_results_can_be_resized(rows):
    y = softmax()
    y.resize((rows, 4096), refcheck=False)
    assert (y[:2560] == SHARE).all() and not y[2560:].any()
    del y
    softmax()


def test_numpys_own_allocation_is_left_as_found():
    softmax()
    y = np.empty_like(ROWS)
    del y
    assert normx_native.get_cache_memory() == 40 * MIB


def test_threads_share_the_cache():
    wrong = []

    def work(value):
        x = np.full(ROWS.shape, value, np.float32)
        x[:, 0] += np.log(np.float32(value + 1))
        want = normx.softmax(x[:1], backend="native")
        wrong.extend(i for i in range(15) if not (softmax(x) == want).all())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < normx_native.get_cache_memory() <= 128 * MIB
