"""Experiments that reproduce claims of the papers: ``normx experiment NAME``.

Each is a module with a record, `EXPERIMENT`: the claim, the setting, how to run it and how to draw
what came out.  A new one is a module more.
"""

from normx.experiments._experiment import Experiment as Experiment
from normx.experiments._experiment import Finding as Finding
from normx.experiments._experiment import Outcome as Outcome
from normx.experiments._experiment import experiments as experiments
