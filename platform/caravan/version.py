"""Which Caravan this is."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def caravan_version() -> str:
    """`0.1.0`; of a checkout with its commit, `0.1.0+1a2b3c4-dirty`, where it was changed."""
    try:
        installed = version("caravan")
    except PackageNotFoundError:  # on the path, not installed
        installed = "0"
    if not (CHECKOUT / ".git").exists():
        return installed
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # no git here, or not our checkout
        return installed
    return f"{installed}+{described.stdout.strip()}"
