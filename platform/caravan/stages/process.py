"""What a step's process needs from the system: one at a time, in a directory of its own."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


def discard(directory: Path) -> None:
    """Remove a work directory, so that one half removed is never taken for a whole."""
    aside = directory.with_name(f".{directory.name}.discarded")
    if aside.exists():  # left by somebody who was killed
        shutil.rmtree(aside, ignore_errors=True)
    if directory.exists():
        with suppress(FileNotFoundError):  # removed by another process meanwhile
            directory.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file we have locked is still the one at `path`: its holder removes it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
