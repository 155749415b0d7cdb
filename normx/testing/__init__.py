"""The conformance suite as importable code.

A backend or library proves itself with one import in a test file, in this tree or
outside it::

    from normx.testing.conformance import *

and the plugin ``pytest_plugins = ["normx.testing.plugin"]`` in its ``conftest.py``.
"""
