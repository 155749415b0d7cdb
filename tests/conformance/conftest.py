"""Tests of one library each run when `--library` asks for it."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = {name.replace("-", "_") for name in config.getoption("--library") or ["numpy"]}

    def wanted(item: pytest.Item) -> bool:
        parameters = getattr(item, "callspec", None) and item.callspec.params
        library = (parameters or {}).get("library")
        return not isinstance(library, str) or library in asked

    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if wanted(item)]
