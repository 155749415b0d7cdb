"""The suite's own plugin, the long versions of some tests, and what must hold around every test."""

import pytest
from hypothesis import settings

pytest_plugins = ["normx.testing.plugin"]

#: Hypothesis draws the same examples in every ordinary run, and new ones in every long one.
settings.register_profile("ordinary", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("long", deadline=None, max_examples=2000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="thousands of examples, a million calls")


def pytest_configure(config: pytest.Config) -> None:
    if "gpu-emulator" in (config.getoption("backend") or ()):
        from normx_gpu import emulator

        registered = emulator.registered()
        registered.__enter__()
        config.add_cleanup(lambda: registered.__exit__(None, None, None))
    settings.load_profile("long" if config.getoption("long") else "ordinary")
