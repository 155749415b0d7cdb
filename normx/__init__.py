"""The softmax family on every array library, at memory speed, right to the last few bits."""

from normx._dispatch import explain as explain
from normx._dispatch import trace as trace
from normx._dispatch import use_backend as use_backend
from normx._insight import backends as backends
from normx._insight import capabilities as capabilities
from normx._insight import get_num_threads as get_num_threads
from normx._insight import libraries as libraries
from normx._insight import set_num_threads as set_num_threads
from normx._version import __version__ as __version__
from normx._vjp import vjp as vjp
from normx.normalizers.softmax import log_softmax as log_softmax
from normx.normalizers.softmax import logsumexp as logsumexp
from normx.normalizers.softmax import softmax as softmax
