"""The command ``normx``, and ``python -m normx``.

Nothing but the standard library is imported here, so that a missing extra ends in
one line that says what to install, and not in a traceback.
"""

from __future__ import annotations

import sys

_NEEDED = ("typer", "rich")


def main() -> None:
    """Run the command line; exits with 2 and one line on stderr on any error."""
    try:
        from normx.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(
            f'normx: the command line needs {error.name}; pip install "normx[cli,plot]"',
            file=sys.stderr,
        )
        sys.exit(2)
    app(prog_name="normx")


if __name__ == "__main__":
    main()
