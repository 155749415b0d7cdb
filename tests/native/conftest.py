"""These tests need the compiled part."""

import pytest

import normx

found = normx.backends()["native"]
if not found.usable:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header(config: pytest.Config) -> str | None:
    return None if found.usable else f"tests/native not collected: {found.reason}"
