"""The whole conformance suite, on the library chosen with ``--library``."""

from normx.testing.conformance import *  # noqa: F403
