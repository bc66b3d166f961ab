"""python -m tests.benchmarks.near_duplicates_side SIDE ROWS OUT: one side of near duplicates.

`caravan` looks for them in rows in memory, as its peers do; `curate` is the whole stage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.turns import measured
from tests.tiny import Context

from caravan.data.dedup import NearDuplicates
from caravan.data.io import read_rows
from caravan.garbage import collect_rarely
from caravan.recipe import FileSource, Source
from caravan.stages import curate
from caravan.stages.configs import CurateStageConfig

THRESHOLD = 0.9
SOURCE = "texts"


def caravan(rows: Path, out: Path) -> None:
    given = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]

    def work() -> list[str]:
        near = NearDuplicates(THRESHOLD)
        return [row["id"] for row in given if near.find_or_add(row["id"], row["prompt"])]

    measured(work, sorted)


def stage(rows: Path, out: Path) -> None:
    source = Source(
        name=SOURCE, skill="chat", license="Apache-2.0", origin=FileSource(paths=(str(rows),))
    )
    config = CurateStageConfig(sources=(source,), near_duplicate_threshold=THRESHOLD)
    context = Context(out)
    ids = [json.loads(line)["id"] for line in rows.read_text(encoding="utf-8").splitlines()]

    def dropped(_: object) -> list[str]:
        found = read_rows(out / "out" / "card" / "duplicates.jsonl", curate.DuplicateRow)
        return sorted(ids[int(row.id.removeprefix(f"{SOURCE}/"))] for row in found)

    measured(lambda: curate.run(config, {}, context), dropped)


SIDES = {"caravan": caravan, "curate": stage}


def main(arguments: Sequence[str]) -> None:
    side, rows, out = arguments
    collect_rarely()  # as the process of a stage does
    SIDES[side](Path(rows), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
