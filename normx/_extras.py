"""What is imported only when it is needed, and what to install where it is missing."""

from __future__ import annotations

import importlib
from typing import Any


def needed(function: str, module: str, extra: str) -> Any:
    """Import a module that is not a dependency of normx.

    Raises
    ------
    ImportError
        That names the function, the package and the extra of normx that has it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = {"sklearn": "scikit-learn"}.get(root := module.partition(".")[0], root)
        if (error.name or "").partition(".")[0] != root:
            raise
        cure = f'pip install "normx[{extra}]"'
        raise ImportError(f"normx.{function} needs {package}; {cure}", name=error.name) from None
