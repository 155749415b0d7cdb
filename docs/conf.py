"""Sphinx configuration; `nox -s docs` builds."""

import sys
from pathlib import Path

import normx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "normx"
author = "The normx developers"
copyright = author
version = release = normx.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
    "records",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

html_theme = "furo"
html_title = f"normx {release}"

autodoc_typehints = "none"  # the docstrings have them, in words
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# Every public docstring is checked for form; these are what normx asks for.
numpydoc_validation_checks = {"GL03", "GL06", "GL07", "GL08", "PR01", "PR02", "PR03", "RT01"}
numpydoc_validation_exclude = {
    r"normx\.(plugins|states|laws|testing)\b",
    # Classes: a field may be private, or be told of in one line with the others.
    r"normx\.(\w+\.)?[A-Z]",
    r"\._",
}
