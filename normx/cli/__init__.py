"""The command line: ``normx demo | info | bench | plot | capabilities``.

One module per command, and what they share: `screen` (tables, progress, errors),
`homes` (array libraries), `samples` (real scores), `exact` (the oracle and errors in
units in the last place), `timing` (interleaved clocks), `picture` (the style of plots).
No command keeps a list of functions, libraries or backends: all come from normx.
"""
