"""A lock that a process holds for as long as it lives, and that tells which process it is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from caravan.errors import CaravanError


def acquire(path: Path) -> int:
    """Take the lock; it is given back when this process ends.

    Returns:
        The open descriptor; close it to give the lock back earlier.

    Raises:
        CaravanError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CaravanError(f"{path} is held by process {holder(path)}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def holder(path: Path) -> int | None:
    """The process that holds the lock, if one does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(descriptor, 20, 0) or b"0")
    else:
        return None
    finally:
        os.close(descriptor)
