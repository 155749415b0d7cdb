"""The suite's own plugin, and what must hold around every test."""

pytest_plugins = ["normx.testing.plugin"]
