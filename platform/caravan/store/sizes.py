"""How large things are, as people read it."""

from __future__ import annotations

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def size(count: float) -> str:
    """`512 bytes`, `1.5 MiB`, `16.1 GiB`."""
    if count < 1024:
        return f"{count:.0f} bytes"
    unit = next(unit for unit, least in UNITS.items() if count >= least)
    return f"{count / UNITS[unit]:,.1f} {unit}"
