"""python -m tests.benchmarks.decontaminate_side SIDE WORK OUT: one side of the decontamination.

`caravan` and `plain` read rows, drop the leaks and write the rest; with `-match` behind the name
all is in memory, and what is measured is the index and the matching.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.benchmarks.plain_ngrams import PlainNgrams
from tests.benchmarks.turns import measured
from tests.tiny import Context

from caravan.data.io import ROWS, read_rows
from caravan.data.ngrams import NgramIndex
from caravan.data.records import Conversation
from caravan.garbage import collect_rarely
from caravan.recipe import DecontaminateConfig, EvalTask
from caravan.stages import decontaminate
from caravan.stages.configs import DecontaminateStageConfig

QUESTIONS = "questions.jsonl"
SOURCE = "texts"
RULE = DecontaminateConfig(keep_sources=(SOURCE,))
"""Of the source, which has more leaks than are tolerated, only they are dropped."""


def caravan(work: Path, out: Path) -> None:
    task = EvalTask(
        name="questions", task="verify", verifier="exact_match", path=str(work / QUESTIONS)
    )
    config = DecontaminateStageConfig(decontaminate=RULE, tasks=(task,))
    context = Context(out)
    measured(
        lambda: decontaminate.run(config, {"curated": work / "curated"}, context),
        lambda _: _lacking(work, out / "out" / "dataset"),
    )


def plain(work: Path, out: Path) -> None:
    def filter_rows() -> None:
        index = PlainNgrams(_questions(work), RULE.ngram_size)
        with (work / "curated" / ROWS).open() as rows, (out / ROWS).open("w") as kept:
            for line in rows:
                turns = [m["content"] for m in json.loads(line)["messages"] if m["role"] == "user"]
                if not index.contaminated(turns, RULE.max_coverage):
                    kept.write(line)

    measured(filter_rows, lambda _: _lacking(work, out))


def caravan_match(work: Path, out: Path) -> None:
    rows, asked = list(read_rows(work / "curated", Conversation)), _questions(work)
    instances = [decontaminate.Instance("q", str(i), text) for i, text in enumerate(asked)]

    def match() -> set[str]:
        index = NgramIndex(asked, RULE.ngram_size)
        found = decontaminate.find_overlap(rows, instances, index, RULE.max_coverage)
        return found.contaminated_rows

    measured(match, sorted)


def plain_match(work: Path, out: Path) -> None:
    rows = [(r.id, [r.messages[0].content]) for r in read_rows(work / "curated", Conversation)]
    asked = _questions(work)

    def match() -> list[str]:
        index = PlainNgrams(asked, RULE.ngram_size)
        return [id for id, texts in rows if index.contaminated(texts, RULE.max_coverage)]

    measured(match, sorted)


def _questions(work: Path) -> list[str]:
    lines = (work / QUESTIONS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def _lacking(work: Path, kept: Path) -> list[str]:
    """The ids of what has been dropped."""
    return sorted(set(_ids(work / "curated")) - set(_ids(kept)))


def _ids(table: Path) -> Iterable[str]:
    with (table / ROWS).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["id"]


SIDES = {
    "caravan": caravan,
    "plain": plain,
    "caravan-match": caravan_match,
    "plain-match": plain_match,
}


def main(arguments: Sequence[str]) -> None:
    collect_rarely()  # as the process of a stage does
    side, work, out = arguments
    SIDES[side](Path(work), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
