"""Being asked to stop: SIGTERM of a pod that is evicted or a run that is cancelled, SIGINT.

Outside of training a stage stops at once. Training stops between two optimiser steps, with a
checkpoint, and the process ends with `CONTINUE_EXIT_CODE`. Imports nothing heavy: launchers read
the code.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

CONTINUE_EXIT_CODE = os.EX_TEMPFAIL
"""75: stopped by SIGTERM with everything kept; started again, the stage continues."""


class StageStopped(BaseException):
    """The process was asked to stop (SIGTERM, SIGINT) while a stage ran."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class HeldStop:
    """Whether this process was asked to stop, where it chooses the moment itself."""

    signal_number: int | None = None

    @property
    def asked(self) -> bool:
        return self.signal_number is not None or (_marker is not None and _marker.exists())


_held: HeldStop | None = None
_marker: Path | None = None


def stop_when_exists(marker: Path) -> None:
    """Let a file ask this process to stop, too, where it holds stops."""
    global _marker
    _marker = marker


@contextmanager
def hold_stops() -> Iterator[HeldStop]:
    """Inside, a signal to stop is only noted; it takes effect at the end, or when asked twice by
    SIGINT."""
    global _held
    _held = HeldStop()
    try:
        yield _held
        if _held.signal_number is not None:
            raise StageStopped(_held.signal_number)
    finally:
        _held = None


class StopSignals:
    """While open, SIGTERM and SIGINT raise `StageStopped` in the main thread, unless held.

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
        if self._ignored:
            return
        again = _held is not None and _held.signal_number is not None and number == signal.SIGINT
        if _held is not None and not again:
            _held.signal_number = number
            return
        raise StageStopped(number)
