"""Seconds of the local runner per stage: a finished recipe run again, where no stage works."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.caravan import MINI, run

REPETITIONS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        first = run(Path(home), MINI)
        again = [run(Path(home), MINI).seconds for _ in range(REPETITIONS)]
    stages = len(first.shown["stages"])
    per_stage = [seconds / stages for seconds in again]
    print(
        f"{stages} stages reused in {statistics.median(again):.1f} s "
        f"({min(again):.1f} to {max(again):.1f} over {REPETITIONS}): "
        f"{statistics.median(per_stage):.2f} s a stage, the command's start included"
    )
