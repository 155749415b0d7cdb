"""The suite's own plugin, the long versions of some tests, and what must hold around every test."""

import pytest
from hypothesis import settings

pytest_plugins = ["normx.testing.plugin"]

#: Hypothesis draws the same examples in every ordinary run, and new ones in every long one.
settings.register_profile("ordinary", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("long", deadline=None, max_examples=2000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="thousands of examples, a million calls")
    parser.addoption("--emulated", action="store_true", help="CuPy and MLX on an emulated GPU")
    parser.addoption("--cuda", action="store_true", help="tensors of torch on a CUDA device")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("cuda"):
        import torch

        torch.set_default_device("cuda")
    if config.getoption("emulated"):
        from normx_gpu import emulated

        emulated.install()
        if "mlx" in (config.getoption("library") or ()):
            emulated.install_mlx()
    if "gpu-emulator" in (config.getoption("backend") or ()):
        from normx_gpu import emulator

        registered = emulator.registered()
        registered.__enter__()
        config.add_cleanup(lambda: registered.__exit__(None, None, None))
    settings.load_profile("long" if config.getoption("long") else "ordinary")
