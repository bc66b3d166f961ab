"""What a step's process needs from the system: one at a time."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.2
TELL_SECONDS = 5.0


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it. It is removed afterwards.

    `on_wait` is called when the waiting begins, and every few seconds of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = -math.inf
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                break
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            if on_wait is not None and time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                on_wait()
            time.sleep(POLL_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file we have locked is still the one at `path`: its holder removes it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
