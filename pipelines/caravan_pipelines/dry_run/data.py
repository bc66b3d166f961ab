"""Whether the rows, pairs and questions of a recipe can be read, and what becomes of them."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from caravan.data.records import Conversation
from caravan.errors import DataError
from caravan.recipe import EvalTask, HubSource, PairSource, Source
from caravan_pipelines.dry_run.seen import Seen

if TYPE_CHECKING:
    from caravan.stages.curate import Filters

SAMPLE_ROWS = 200
"""Rows of each source that are rendered and masked; of files, every row is read all the same."""
FILTERED_ROWS = 1_000
"""Rows of each source that go through the filters of `curate`: near duplicates take time."""


def source_rows(source: Source, filters: Filters, seen: Seen) -> str:
    """What there is to say of a source. Of one that breaks off nothing is kept: what comes after
    would speak of some of its rows as if they were all."""
    from caravan.data.card import SourceCard, counted
    from caravan.stages.curate import load

    card, recipe = SourceCard(source), seen.recipe
    on_hub = isinstance(source.origin, HubSource)
    takes_all = recipe.rlvr is not None and recipe.rlvr.prompts == "all"
    first: list[Conversation] = []
    trainable: Counter[str] = Counter()
    rows = load(source, recipe.seed, seen.recipe_dir, recipe.verifiers, unread=card.unread)
    for row in islice(rows, SAMPLE_ROWS) if on_hub else rows:
        card.count(row)
        if card.available <= FILTERED_ROWS and (reason := filters.reason_to_drop(row)):
            card.dropped[reason] += 1
            continue
        if card.available <= SAMPLE_ROWS:
            first.append(row)
        if takes_all or (row.verifier is not None and row.ground_truth is not None):
            trainable[row.skill] += 1
    if not card.available:
        raise DataError(f"source {source.name} holds no row; check its origin")
    seen.rows += first
    seen.trainable += trainable
    said = [
        f"the first {card.available} rows can be read" if on_hub else f"{card.available:,} rows"
    ]
    if card.dropped:
        some = f" of the first {FILTERED_ROWS:,}" if card.available > FILTERED_ROWS else ""
        said.append(f"to be dropped{some}: {counted(card.dropped)}")
    return "; ".join([*said, *card.remarks()])


def source_pairs(source: PairSource, seen: Seen) -> str:
    from caravan.data.card import counted
    from caravan.stages.read_pairs import load_pairs, remarks, unfit

    unread: set[str] = set()
    rows = load_pairs(source, seen.recipe_dir, unread=unread)
    on_hub = isinstance(source.origin, HubSource)
    pairs = list(islice(rows, SAMPLE_ROWS) if on_hub else rows)
    reasons = Counter(reason for pair in pairs if (reason := unfit(pair)))
    fit = [pair for pair in pairs if not unfit(pair)]
    if not fit:
        raise DataError(f"source {source.name} holds no pair to learn from; check its origin")
    seen.pairs += fit[:SAMPLE_ROWS]
    said = ["the first pairs can be read" if on_hub else f"{len(fit):,} pairs"]
    if reasons:
        said.append(f"to be dropped: {counted(reasons)}")
    return "; ".join([*said, *remarks(pairs, unread)])


def task_questions(task: EvalTask, seen: Seen) -> str:
    from caravan.evals.tasks import load_instances

    seen.instances[task.name] = load_instances(task, seen.recipe.seed, seen.recipe_dir)
    return f"{len(seen.instances[task.name]):,} instances"
