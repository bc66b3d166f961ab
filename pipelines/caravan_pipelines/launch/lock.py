"""A lock that a process holds for as long as it lives, and that tells which process it is.

The one who starts that process takes the lock and hands the descriptor down, so that the process
can be found from its first moment, before it has imported anything.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from caravan.errors import CaravanError

TRY_SECONDS = 1.0
PAUSE_SECONDS = 0.05


def acquire(path: Path) -> int:
    """Take the lock; it is given back when no process has the descriptor open any more.

    One that is held only for a moment, as by somebody who asks for its holder, is waited for.

    Returns:
        The open descriptor; `name_holder` says whose it is.

    Raises:
        CaravanError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + TRY_SECONDS
    while not _taken(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise CaravanError(f"{path} is held by process {holder(path)}")
        time.sleep(PAUSE_SECONDS)
    os.ftruncate(descriptor, 0)
    return descriptor


def name_holder(descriptor: int, pid: int) -> None:
    os.pwrite(descriptor, str(pid).encode(), 0)


def holder(path: Path) -> int | None:
    """The process that holds the lock, if one does.

    Raises:
        CaravanError: one does that is not of this machine.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    deadline = time.monotonic() + TRY_SECONDS
    try:
        while not _taken(descriptor, fcntl.LOCK_SH):
            # Whoever has just taken it names its holder next: until then, nobody or an old one.
            pid = int(os.pread(descriptor, 20, 0) or b"0")
            if pid and _lives(pid):
                return pid
            if time.monotonic() > deadline:
                raise CaravanError(
                    f"{path} is held by a process that is not seen from here: "
                    "ask on the machine, or in the container, where it was started"
                )
            time.sleep(PAUSE_SECONDS)
        return None
    finally:
        os.close(descriptor)


def _taken(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
