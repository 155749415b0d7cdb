"""The README's table of what runs where, for the libraries that are installed here."""

from pathlib import Path

import pytest

import normx

README = Path(__file__).parents[2] / "README.md"


def rows(table):
    """Cells by function and column of a Markdown table."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0].strip("`"): dict(zip(head[1:], row[1:], strict=True)) for row in body}


def test_the_table_is_what_the_code_computes():
    pytest.importorskip("typer")
    if not README.exists():
        pytest.skip("the installed package is tested, without its README")
    if not normx.backends()["native"].usable:
        pytest.skip("the native backend is not built")
    from typer.testing import CliRunner

    from normx.cli.app import app

    computed = rows(CliRunner().invoke(app, ["capabilities", "--markdown"]).stdout)
    written = rows(README.read_text("utf-8").split("<!-- capabilities -->")[1])
    assert set(written) == set(computed)
    for function, cells in computed.items():
        for column, cell in cells.items():
            assert written[function][column] == cell, f"{function} on {column}: run nox -s readme"
