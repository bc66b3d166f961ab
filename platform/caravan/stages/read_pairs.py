"""Read preference pairs that exist already.

Outputs:
    pairs: sources in the order of the recipe, rows in the order of a source, without pairs that
        have an empty turn or two equal replies, and without prompts of the evaluation suite.
    evidence: which pairs contaminate which instance, as of the stage `decontaminate`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from caravan.data.card import not_read
from caravan.data.formats import Labels
from caravan.data.io import ROWS, write_rows
from caravan.data.missing import any_missing, may_be_missing
from caravan.data.preferences import to_pair
from caravan.data.readers import RawRow
from caravan.data.records import Conversation, Pair
from caravan.errors import DataError, some
from caravan.recipe import FileSource, PairSource
from caravan.stages.configs import ReadPairsStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.curate import read_source, source_files
from caravan.stages.decontaminate import contamination
from caravan.stages.pair import at_most, summary

logger = logging.getLogger(__name__)

NAME = "read-pairs"
VERSION = 3


def external_files(config: ReadPairsStageConfig, recipe_dir: Path) -> Iterable[Path]:
    """The files of the pairs and of the evaluation tasks."""
    from caravan.evals.tasks import task_files

    for source in config.pair.sources:
        if isinstance(source.origin, FileSource):
            yield from source_files(source.origin, recipe_dir)
    yield from task_files(config.tasks, recipe_dir)


def run(
    config: ReadPairsStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    counts: Counter[str] = Counter()
    pairs: list[Pair] = []
    for source in config.pair.sources:
        unread: set[str] = set()
        found = list(load_pairs(source, context.recipe_dir, unread=unread))
        if told := remarks(found, unread):
            logger.warning("source %s: %s", source.name, "; ".join(told))
        if not found:
            raise DataError(f"source {source.name} holds no row; check its origin")
        counts["available"] += len(found)
        counts.update("not_rated_higher" for pair in found if not_rated_higher(pair))
        for pair in found:
            if reason := unfit(pair):
                counts[f"dropped/{reason}"] += 1
            else:
                pairs.append(pair)
    leaks = contamination(map(_as_prompt, pairs), config.decontaminate, config.tasks, context)
    clean = [pair for pair in pairs if leaks.keeps(pair)]
    counts["dropped/contaminated"] += len(pairs) - len(clean)
    taken = at_most(clean, config.pair.max_pairs, context.seed)
    if not taken:
        said = ", ".join(f"{n} {name}" for name, n in counts.items())
        raise DataError(
            f"no preference pair is left of those in pair.sources: {said}; where they are "
            "contaminated, look at decontaminate.max_source_overlap and keep_sources"
        )
    write_rows(context.output("pairs", "pairs") / ROWS, taken)
    leaks.write(context.output("evidence", "report"), Counter(pair.source for pair in clean))
    by_source = Counter(f"pairs/{pair.source}" for pair in taken)
    return StageResult(metrics={**counts, **by_source, **summary(taken)})


def load_pairs(
    source: PairSource, recipe_dir: Path, *, unread: set[str] | None = None
) -> Iterator[Pair]:
    """The rows of one source as pairs with the ids `source/0`, `source/1`, ...

    Args:
        unread: gets the names of the columns that nothing reads.

    Raises:
        DataError: a file or a row is not what it should be; names the file, the row and the field.
    """
    labels = Labels(source.name, source.skill, source.license)

    def read(row: RawRow, id: str) -> Pair:
        return to_pair(row, id, labels)

    return read_source(source.name, source.origin, recipe_dir, read, unread)


def remarks(pairs: Iterable[Pair], unread: Iterable[str]) -> list[str]:
    """What whoever chose the source may not expect of its pairs."""
    said = []
    if missing := [pair.id for pair in pairs if any_missing(_texts(pair))]:
        said.append(may_be_missing(missing))
    if doubtful := [pair.id for pair in pairs if not_rated_higher(pair)]:
        said.append(
            f"{len(doubtful):,} whose chosen reply is not rated higher than the rejected one "
            f"({some(doubtful)}): they are trained on as chosen says; where the ratings are right, "
            "swap the replies or take the pair out"
        )
    if unread:
        said.append(not_read(unread))
    return said


def not_rated_higher(pair: Pair) -> bool:
    """Whether the ratings of a pair do not agree with what was chosen."""
    return pair.chosen_rating is not None and pair.margin <= 0


def unfit(pair: Pair) -> str:
    """Why nothing can be learnt from a pair; empty where something can."""
    if not all(text.strip() for text in _texts(pair)):
        return "empty message"
    return "equal replies" if pair.chosen.strip() == pair.rejected.strip() else ""


def _texts(pair: Pair) -> list[str]:
    return [*(message.content for message in pair.prompt), pair.chosen, pair.rejected]


def _as_prompt(pair: Pair) -> Conversation:
    return Conversation(
        id=pair.id, messages=pair.prompt, source=pair.source, skill=pair.skill, license=""
    )
