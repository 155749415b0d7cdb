#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.2.9"]
# ///
"""Every task of the project: ``nox`` checks all that one machine can, ``nox -l`` lists them.

Versions are pinned in pyproject.toml, under [dependency-groups], and nowhere else.
What a session needs beyond Python and a C++ compiler comes from PyPI; a session that
needs more says what is missing and skips.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

#: The array libraries of the conformance suite: NumPy, and each extra that is a library.
PLUGINS = sorted(set(EXTRAS) & set(PROJECT["project"]["entry-points"]["normx.libraries"]))
LIBRARIES = ["numpy", "array-api-strict", *PLUGINS]

#: On every core: there are ten thousand small tests.
PARALLEL = "--numprocesses=auto"
SUITE = ("tests/unit", "tests/conformance", PARALLEL)
#: With the kernels that this machine runs; the others are the session `targets`.
FULL_SUITE = (
    *(*SUITE, "tests/native", "tests/gpu", "--target=best"),
    *("--library=numpy", "--library=array-api-strict"),
)

CONFORMANCE = "tests/conformance/test_conformance.py"
#: The GPU kernels, emulated; every length is seen to in tests/gpu, without the exact arithmetic.
EMULATED = (
    *(CONFORMANCE, PARALLEL, "--library=numpy"),
    *("--backend=gpu-emulator", "-k", "not test_lengths"),
)

#: Examples in docstrings, of what is installed, and in the pages that have any.
EXAMPLES = ("--doctest-modules", "--pyargs", "normx", "normx_native", "--doctest-glob=*.md")
PAGES = (
    "README.md",
    *(
        f"docs/{page}.md"
        for page in ("tutorial", "attention", "losses", "uncertainty", "regression")
    ),
)

#: What pip prints when no file of a package fits this platform.
NO_WHEEL = "No matching distribution found for"

#: Prints the CPU targets that this machine has, and the one that really runs.
HAS_TARGETS = """
from normx_native import _core
print(*(name for name, compiled, supported in _core.targets() if compiled and supported))
"""
RUNS_TARGET = """
import normx, numpy
with normx.trace() as ran:
    normx.softmax(numpy.zeros((2, 64), numpy.float32), backend="native")
print(ran[0].target)
"""

#: What native_neon needs, and the Debian packages that have it.
AARCH64 = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}


def group(name: str) -> tuple[str, ...]:
    """Give the requirements of a dependency group."""
    return nox.project.dependency_groups(PROJECT, name)


def project(*extras: str) -> str:
    """Name the project and some of its extras as pip wants them."""
    return f".[{','.join(extras)}]" if extras else "."


def library_requirements(library: str) -> list[str]:
    """Name what a library's own environment holds: its extra, at the pinned version if any."""
    pins = group(library) if library in PROJECT["dependency-groups"] else ()
    return [*EXTRAS.get(library, ()), *pins]


def install_libraries(session: nox.Session, *libraries: str) -> None:
    """Install array libraries from wheels; skip the session where a platform has none."""
    wanted = [requirement for name in libraries for requirement in library_requirements(name)]
    if not wanted:
        return
    command = ("python", "-m", "pip", "install", "--only-binary=:all:", *wanted)
    output = session.run_install(*command, silent=True, success_codes=[0, 1])
    missing = [line for line in str(output).splitlines() if NO_WHEEL in line]
    if missing:
        session.skip(f"{missing[0].partition(NO_WHEEL)[2].strip()}: no wheel for this platform")


def between_marks(session: nox.Session, page: str, name: str, new: str) -> None:
    """Put text between the two marks of a page; with `--check`, fail if it is not there."""
    mark = f"<!-- {name} -->"
    path = ROOT / page
    before, _, rest = path.read_text("utf-8").partition(mark)
    old, _, after = rest.partition(mark)
    if "--check" not in session.posargs:
        path.write_text(f"{before}{mark}\n\n{new.strip()}\n\n{mark}{after}", "utf-8")
    elif old.strip() != new.strip():
        session.error(f"{page} is out of date; run nox -s {session.name}.  It is now\n{new}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, spelling and the project file; `-- --fix` mends what it can."""
    fix = "--fix" in session.posargs
    session.install(*group("lint"))
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")
    session.run("codespell", *(["--write-changes"] if fix else []))
    session.run("validate-pyproject", "pyproject.toml")
    if (ROOT / ".clang-format").exists() or (ROOT / "native" / ".clang-format").exists():
        sources = sorted(str(path) for path in (ROOT / "native").rglob("*.[ch]pp"))
        session.run("clang-format", *(["-i"] if fix else ["--dry-run", "--Werror"]), *sources)


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types of the front end and the backends with mypy, strictly."""
    needed = (*PROJECT["project"]["dependencies"], *EXTRAS["cli"], *EXTRAS["plot"])
    session.install(*group("typecheck"), *needed)
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the unit tests, conformance (NumPy, array-api-strict, emulated GPU) and the examples."""
    extras = ("cli", "plot", "bfloat16", "array-api-strict")
    session.install(project(*extras), *group("test"), *group("nvrtc"))
    session.run("pytest", *FULL_SUITE, *session.posargs)
    session.run("pytest", *EMULATED, *session.posargs)
    session.run("pytest", *EXAMPLES, *PAGES)


@nox.session(default=False)
@nox.parametrize("library", LIBRARIES, ids=LIBRARIES)
def conformance(session: nox.Session, library: str) -> None:
    """Run the conformance suite on one array library; the last table has all of them.

    CuPy and MLX run their GPU kernels too: emulated, where there is no such GPU.
    """
    outcomes = f"--outcomes={session.cache_dir / 'conformance.json'}"
    chosen = (PARALLEL, f"--library={library}", outcomes)
    emulated = ("--emulated", f"--backend={library}", "-k", "not test_lengths")
    session.install(project())
    if library == "cupy" and lacks_cuda(session):
        session.install(*group("test"))
        session.run("pytest", CONFORMANCE, *chosen, *emulated, *session.posargs)
        return
    install_libraries(session, library)
    session.install(project(), *group("test"), *library_requirements(library))
    env = jax_environment(session) if library == "jax" else {}
    session.run("pytest", "tests/conformance", *chosen, "--target=best", *session.posargs, env=env)
    if library == "mlx" and sys.platform != "darwin":
        session.run("pytest", CONFORMANCE, *chosen, *emulated, *session.posargs)


def jax_environment(session: nox.Session) -> dict[str, str]:
    """Give JAX devices to split rows over, and one place for all that its processes compile."""
    return {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_COMPILATION_CACHE_DIR": str(session.cache_dir / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def lacks_cuda(session: nox.Session) -> str:
    """Say what this machine lacks to run CUDA; nothing if it can."""
    asked = "from normx_cupy import _driver; print(_driver.no_device() or '')"
    return str(session.run("python", "-P", "-c", asked, silent=True)).strip()


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Run conformance on a CUDA device for CuPy, torch and JAX, sanitized, and the benchmark.

    On demand, where there is one.  Arguments go to `normx bench --device gpu`.
    """
    session.install(project("cli", "plot"), *group("test"))
    missing = lacks_cuda(session)
    if missing:
        session.skip(missing)
    session.install(project("cli", "plot", "cupy"), *group("test"), *group("gpu"))
    outcomes = f"--outcomes={session.cache_dir / 'gpu.json'}"
    for library in ("cupy", "torch", "jax"):
        cuda = ("--cuda",) if library == "torch" else ()
        chosen = (f"--library={library}", "--backend=cupy", *cuda)
        session.run("pytest", CONFORMANCE, *chosen, outcomes)
    checker = next(Path(session.virtualenv.location).rglob("bin/compute-sanitizer"), None)
    if checker is None:
        session.error("nvidia-cuda-sanitizer-api has no compute-sanitizer")
    suite = (CONFORMANCE, "--library=cupy", "--backend=cupy", "-k", "not test_lengths")
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        checked = (str(checker), f"--tool={tool}", "--error-exitcode=1", "--target-processes=all")
        session.run(*checked, "python", "-P", "-m", "pytest", *suite, external=True)
    session.run("normx", "bench", "--device", "gpu", *session.posargs)


@nox.session(default=False)
def gpu_compile(session: nox.Session) -> None:
    """Compile CUDA kernels for every architecture, without a GPU; docs/gpu.md has what they take.

    On demand, when kernels change: five minutes on two cores.  `-- --all` leaves no dtype out, and
    `-- --program softmax` compiles one function's alone; neither writes; `-- --check` compares.
    """
    session.install(project(), *group("nvrtc"))
    command = ("python", "-P", "-m", "normx_gpu.nvrtc")
    if set(session.posargs) - {"--check"}:
        session.run(*command, *session.posargs)
    else:
        table = session.run(*command, silent=True, stderr=None)
        between_marks(session, "docs/gpu.md", "gpu_compile", str(table))


@nox.session(default=False)
def distributed(session: nox.Session) -> None:
    """Run the tests on a cluster of processes, with little memory, one of which is killed.

    On demand, when the plugin of Dask changes: two minutes.
    """
    session.install(project("dask"), *group("test"), *group("distributed"))
    session.run("pytest", "tests/distributed", *session.posargs)


@nox.session(default=False)
def dask_large(session: nox.Session) -> None:
    """Compute a softmax of 2^30 scores on workers of 2 GiB, against the exact answer.

    On demand: ten minutes on two cores, 3 GiB of memory and 8 GiB of disk.
    """
    session.install(project("dask"), *group("test"), *group("distributed"))
    session.run("python", "-P", "docs/dask_large.py", *session.posargs)


@nox.session
def targets(session: nox.Session) -> None:
    """Run the kernels' tests and conformance once per CPU target that this machine has."""
    session.install(project(), *group("test"))
    python = ("python", "-P", "-c")  # -P: what is installed, not what lies in this directory
    here = str(session.run(*python, HAS_TARGETS, silent=True)).split()
    for target in here:
        env = {"NORMX_CPU_TARGET": target}
        ran = str(session.run(*python, RUNS_TARGET, env=env, silent=True)).strip()
        if ran != target:
            session.error(f"with NORMX_CPU_TARGET={target}, {ran!r} ran")
        where = ("tests/native", "tests/conformance", PARALLEL)
        suite = (*where, "--library=numpy", "--backend=native", f"--target={target}")
        others = " or ".join(name for name in here if name != target)  # tests force these
        only = ("-k", f"not ({others})") if others else ()
        session.run("pytest", *suite, *only, *session.posargs, env=env)
    env = {"NORMX_CPU_TARGET": "bogus"}
    said = str(session.run(*python, RUNS_TARGET, env=env, silent=True, success_codes=[1]))
    if "NORMX_CPU_TARGET" not in said or "bogus" not in said:
        session.error(f"NORMX_CPU_TARGET=bogus failed, but not by saying so: {said}")


def cmake(session: nox.Session, *options: str, label: str = "") -> None:
    """Configure and build native/ without Python, and run its self-test, or a part of it."""
    session.install(*group("native"))
    build = session.cache_dir / session.name
    configure = ("cmake", "-S", "native", "-B", str(build), "-G", "Ninja", "-DNORMX_BUILD_TESTS=ON")
    session.run(*configure, *options)
    session.run("cmake", "--build", str(build))
    only = ("--label-regex", label) if label else ()
    test = ("ctest", "--test-dir", str(build), "--output-on-failure")
    session.run(*test, *only, *session.posargs)


@nox.session(default=False)
def native(session: nox.Session) -> None:
    """Run the kernels' self-test under the address and undefined-behaviour sanitizers.

    On demand, and before a release: eleven minutes of compiling on two cores, and the tests.
    """
    cmake(session, "-DNORMX_SANITIZE=address")


@nox.session(default=False)
def native_threads(session: nox.Session) -> None:
    """Run what the self-test does with threads under the thread sanitizer.

    On demand, when parallel/ or dispatch/ change: three minutes, nearly all of them compiling.
    """
    cmake(session, "-DNORMX_SANITIZE=thread", label="threads")


@nox.session(default=False)
def native_sanitized(session: nox.Session) -> None:
    """Run the kernels' Python tests and conformance on a module under the address sanitizer.

    On demand, when kernels or bind/ change: 40 minutes on two cores, half of them compiling.
    """
    runtime = [shared_library(session, name) for name in ("libasan.so", "libstdc++.so")]
    build = session.cache_dir / session.name  # apart from the build directory of pip install
    options = (f"-Cbuild-dir={build}", "-Ccmake.define.NORMX_SANITIZE=address")
    session.install(project("bfloat16"), *group("test"), *options)
    # The interpreter itself is not compiled for it: it has to be loaded first, and CPython keeps
    # much of its memory to the end.  Memory of the dead is kept back, so nothing is a leak.
    # Where memory is short the kernels want a null pointer, and no report.
    checks = "detect_leaks=0:allocator_may_return_null=1"
    env = {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": checks}
    suite = ("tests/native", "tests/conformance", PARALLEL, "--backend=native", "--target=best")
    without = "--ignore=tests/native/test_leaks.py"
    session.run("pytest", *suite, without, *session.posargs, env=env)


def shared_library(session: nox.Session, name: str) -> str:
    """Find a library of the C++ compiler; skip the session where it has none."""
    compiler = os.environ.get("CXX", "c++")
    asked = (compiler, f"-print-file-name={name}")
    path = str(session.run(*asked, silent=True, external=True)).strip()
    if not Path(path).is_absolute():
        session.skip(f"{compiler} has no {name}")
    return path


@nox.session(default=False)
def native_long(session: nox.Session) -> None:
    """Draw thousands of calls of every kernel, and make each kind of call a million times.

    On demand: half an hour.  The ordinary run has the same tests with fewer calls.
    """
    session.install(project("bfloat16"), *group("test"))
    files = ("tests/native/test_fuzz.py", "tests/native/test_leaks.py")
    session.run("pytest", *files, "--long", *session.posargs)


@nox.session(default=False)
def native_neon(session: nox.Session) -> None:
    """Cross-compile the kernels for ARM and run their self-test in an emulator."""
    missing = [package for program, package in AARCH64.items() if shutil.which(program) is None]
    if missing:
        session.skip(f"needs the Debian packages {', '.join(missing)}")
    cmake(session, f"--toolchain={ROOT / 'native' / 'tests' / 'aarch64.cmake'}")


@nox.session(default=False, reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Build the sdist, a wheel from it, and run the suite on the wheel outside the tree."""
    session.install(*group("wheel"))
    scratch = Path(session.create_tmp())
    shutil.rmtree(scratch / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(scratch / "dist"))
    (built,) = (scratch / "dist").glob("*.whl")
    session.install(f"normx[cli,plot,bfloat16,array-api-strict] @ {built.as_uri()}", *group("test"))
    shutil.copytree(ROOT / "tests", scratch / "tests", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", scratch)
    session.chdir(scratch)
    session.run("pytest", *FULL_SUITE, *session.posargs)
    session.run("pytest", *EXAMPLES)


@nox.session(default=False)
def pure(session: nox.Session) -> None:
    """Install without a compiler and run the suite on the reference backend."""
    env = {"NORMX_NO_NATIVE": "1"}
    session.install(project("cli", "plot", "bfloat16"), *group("test"), env=env)
    session.run("pytest", *SUITE, "--library=numpy", *session.posargs)


@nox.session(default=False, python=PROJECT["project"]["requires-python"].removeprefix(">="))
def min_deps(session: nox.Session) -> None:
    """Run the suite on the lowest Python, NumPy and array-api-compat that are declared."""
    lowest = [line.replace(">=", "==") for line in PROJECT["project"]["dependencies"]]
    session.install(project("cli"), *lowest, *group("test"))
    session.run("pytest", *SUITE, "--library=numpy", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install(project("cli", "plot", "learn"), *group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session(default=False)
def readme(session: nox.Session) -> None:
    """Compute the README's table of what runs where; `-- --check` compares it instead."""
    install_libraries(session, *PLUGINS)
    pins = [pin for library in PLUGINS for pin in library_requirements(library)]
    session.install(project("cli", "bfloat16"), *pins)
    table = session.run("normx", "capabilities", "--markdown", silent=True)
    between_marks(session, "README.md", "capabilities", str(table))


@nox.session(default=False)  # minutes: exact results for every function and dtype
def accuracy(session: nox.Session) -> None:
    """Compute the largest errors in docs/accuracy.md; `-- --check` compares them instead."""
    session.install(project("bfloat16"), *group("test"))
    tables = session.run("python", "-P", "docs/ulp.py", silent=True)
    between_marks(session, "docs/accuracy.md", "worst", str(tables))


@nox.session(default=False)
def experiments(session: nox.Session) -> None:
    """Run experiments, all or those that are named, and write what came out to their page.

    On demand, when one of them or what it rests on changes: half an hour on one core.
    """
    session.install(project("cli", "plot", "learn"), *group("test"), *group("torch"))
    names = [path.stem.replace("_", "-") for path in (ROOT / "normx/experiments").glob("[a-z]*.py")]
    for name in session.posargs or sorted(names):
        section = session.run("normx", "experiment", name, "--markdown", silent=True)
        between_marks(session, "docs/experiments.md", name, str(section))


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure all functions beside NumPy, torch and entmax; arguments go to `normx bench`."""
    session.install(project("bench", "torch"), *group("bench"))
    session.run("normx", "bench", *session.posargs)


if __name__ == "__main__":
    nox.main()
