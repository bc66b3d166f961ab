"""What stays when the machine stops."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
