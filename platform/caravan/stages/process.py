"""What a step's process needs from the system: one at a time, clean stops, no orphans."""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

LAUNCHER_VARIABLE = "CARAVAN_LAUNCHER_PROCESS"
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
TELL_SECONDS = 5.0


class StageStopped(BaseException):
    """The process was asked to stop (SIGTERM, SIGINT) while a stage ran."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopSignals:
    """While open, SIGTERM and SIGINT raise `StageStopped` in the main thread.

    Only the main thread can receive signals; opened elsewhere, this does nothing.
    """

    def __init__(self) -> None:
        self._ignored = False
        self._previous: dict[int, Any] = {}

    def ignore(self) -> None:
        """Let later signals pass without effect: we are stopping already."""
        self._ignored = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if not self._ignored:
            raise StageStopped(number)


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


# --- orphans ------------------------------------------------------------------------------------


def launcher_environment() -> dict[str, str]:
    """A variable for the environment of steps, so that they stop when this process is gone."""
    return {LAUNCHER_VARIABLE: f"{os.getpid()}:{_start_time(os.getpid())}"}


def die_with_parent() -> None:
    """Stop this process (SIGTERM) when its parent, or the launcher of the run, is gone.

    The kernel watches the parent; a thread watches the launcher, which may be further up. On
    systems other than Linux nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    launcher = os.environ.get(LAUNCHER_VARIABLE, "")
    pid, _, started = launcher.partition(":")
    if pid.isdecimal() and int(pid) != os.getpid():
        threading.Thread(
            target=_watch, args=(int(pid), started), name="caravan-watch", daemon=True
        ).start()


def _watch(pid: int, started: str) -> None:
    while _start_time(pid) == started:
        time.sleep(POLL_SECONDS * 5)
    os.kill(os.getpid(), signal.SIGTERM)


def _start_time(pid: int) -> str:
    """When the process began, in ticks since boot; with the id it names a process for good."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
