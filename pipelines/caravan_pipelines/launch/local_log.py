"""The log of a run on this machine, without what KFP writes around the lines of its stages.

Lines are judged each for itself: stages that run at once write between each other's lines. Errors
and tracebacks stay, KFP's too, which say why a stage has not started.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

NOISE = re.compile(
    r"""\s*(
      $ | -{20,}$
    | \S+\ -\ INFO\ -\ (Streamed\ logs:|Task\ .*\ outputs:$)
    | \S*/kfp/local/\S+\ RuntimeWarning: | warnings\.warn\($
    | \[KFP\ Executor\ \S+\ \S+\ INFO\]: | .*\bWrote\ executor\ output\ file\ to
    | [][{}]+,?$ | "[^"]*"(:\ .*|,?)$                                      # a task's input
    | [\w-]+:\ ('[0-9a-f]*'$|(Markdown|Metrics)\() | uri='/ | metadata=\{  # a task's outputs
    )""",
    re.VERBOSE,
)


def stage_lines(log: Iterable[str]) -> Iterator[str]:
    return (line for line in log if not NOISE.match(line))


NAMED = re.compile(
    r"\s*(\d{4}-\d\d-\d\d \S+ [A-Z]+ (?P<stage>\S+?)(\[\d+\])? \S+: |(?P<entry>\{\"time\": .*))"
)
LAUNCHER = re.compile(r"\d\d:\d\d:\d\d\.\d+ - ")
POLL_SECONDS = 0.5


def lines_of(stage: str, log: Iterable[str]) -> Iterator[str]:
    """The lines of one stage. Those that name none, as of a traceback, go with the line before."""
    ours = False
    for line in log:
        if named := NAMED.match(line):
            ours = stage == (named["stage"] or _stage_of(named["entry"]))
        elif LAUNCHER.match(line):
            ours = False
        if ours:
            yield line


def _stage_of(entry: str) -> str | None:
    try:
        return str(json.loads(entry).get("stage"))
    except ValueError:  # cut short
        return None


def growing(log: TextIO, goes_on: Callable[[], bool]) -> Iterator[str]:
    """The lines of a log that is still being written, until it is not."""
    begun = ""
    while True:
        last = not goes_on()
        while piece := log.readline():
            begun += piece
            if begun.endswith("\n"):
                yield begun
                begun = ""
        if last:
            return
        time.sleep(POLL_SECONDS)
