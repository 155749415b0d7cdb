"""The machine, as far as the numbers of a benchmark depend on it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

#: Taken where the system does not say how large its caches are.
_USUAL = {1: 32 << 10, 2: 1 << 20, 3: 32 << 20}


def cache_size(level: int) -> int:
    """Bytes of the data cache of that level, or a usual size if the system does not say."""
    for place in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        said = ("level", "type", "size")
        try:
            found, kind, text = ((place / n).read_text(encoding="ascii").strip() for n in said)
        except OSError:
            continue
        if int(found) == level and kind != "Instruction" and text.endswith("K"):
            return int(text[:-1]) << 10
    return _USUAL[level]


def memory() -> int:
    """Bytes of main memory, or 4 GiB if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 4 << 30


def processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def cpu() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
