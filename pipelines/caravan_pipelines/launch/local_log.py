"""The log of a run on this machine, without what KFP writes around the lines of its stages.

Lines are judged each for itself: stages that run at once write between each other's lines. Errors
and tracebacks stay, KFP's too, which say why a stage has not started.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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
