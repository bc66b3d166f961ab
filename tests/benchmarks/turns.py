"""Sides of a comparison that take turns, every turn a process of its own.

A side is a module of this package whose `main` calls `measured`. Those of other packages run in
`.venv-peers` (`make peers`) and import nothing but that package and this module.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.benchmarks.process_tree import mib

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("CARAVAN_PEERS", ROOT / ".venv-peers")) / "bin" / "python"
REPETITIONS = 5
_MARK = "MEASURED "

T = TypeVar("T")


class Turn(NamedTuple):
    seconds: float
    """Of CPU, of all threads and processes of the side, without its imports."""
    peak_mib: float
    found: Any
    """What came out of the work."""


def measured(work: Callable[[], T], outcome: Callable[[T], Any]) -> None:
    """Do the work of a side, and print what it took and what came out of it."""
    started = _cpu()
    done = work()
    seconds = _cpu() - started
    # Of this process getrusage would tell no less than what the one had that started it.
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    peak = max(mib(os.getpid(), "VmHWM"), children)
    print(f"\n{_MARK}{json.dumps([seconds, peak, outcome(done)])}", flush=True)


def _cpu() -> float:
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def turn(module: str, *arguments: object, peer: bool = False) -> Turn:
    """One turn of a side.

    Raises:
        RuntimeError: the side failed; what it printed has been shown.
    """
    path = str(ROOT) if peer else f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [PEERS if peer else sys.executable, "-m", f"tests.benchmarks.{module}",
         *map(str, arguments)],
        capture_output=True, text=True,
        # Waiting threads sleep, or they would be counted as if they worked.
        env=os.environ | {"PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"},
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return Turn(*json.loads(line.removeprefix(_MARK)))
    print(done.stdout, done.stderr, file=sys.stderr)
    raise RuntimeError(f"{module} {arguments} ended without a result")


def take_turns(
    sides: Mapping[str, Callable[[], Turn]], repetitions: int = REPETITIONS
) -> dict[str, list[Turn]]:
    """The turns of every side but for its first, which warms up."""
    found: dict[str, list[Turn]] = {name: [] for name in sides}
    for _ in range(repetitions + 1):
        for name, side in sides.items():
            found[name].append(side())
    return {name: turns[1:] for name, turns in found.items()}


def ratios(ours: Sequence[Turn], theirs: Sequence[Turn]) -> list[float]:
    """How many times as long as ours each of their turns took."""
    return [b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and in brackets the least and the most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def versions(*packages: str) -> str:
    """Of packages among the peers."""
    code = (
        "import importlib.metadata as m, sys; "
        "print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    )
    asked = [PEERS, "-c", code, *packages]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def conditions(*peers: str) -> str:
    """When, with what and on how busy a machine it was measured."""
    found = versions(*peers) if peers else ""
    return f"\n{date.today()}, {found}, load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
