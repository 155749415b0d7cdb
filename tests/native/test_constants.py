"""The constants in the kernels are what their script computes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_header_is_what_the_script_prints():
    script = ROOT / "native" / "tools" / "expcoeffs.py"
    if not script.exists():
        pytest.skip("the installed package is tested, without the kernels' sources")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, encoding="utf-8", check=True
    )
    header = (ROOT / "native" / "simd" / "expcoeffs.hpp").read_text("utf-8")
    assert done.stdout == header
