"""No process outlives the one that it works for."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

LAUNCHER_VARIABLE = "CARAVAN_LAUNCHER_PROCESS"
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 1.0


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
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _start_time(pid: int) -> str:
    """When the process began, in ticks since boot; with the id it names a process for good."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
