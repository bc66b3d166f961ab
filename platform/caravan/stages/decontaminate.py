"""Drop training rows, and sources, that overlap the evaluation prompts.

Rule of Tülu 3 (arXiv:2411.15124, section 3.2), on user turns only; answers are never read:

- a token of an evaluation prompt is covered by a training row when it lies inside an n-gram that
  also occurs in that row; the row contaminates the instance, and is dropped, when it covers more
  than `max_coverage` of its tokens;
- a source that contaminates more than `max_source_overlap` of a task's instances is dropped whole.
  For tasks of the development suite `keep_sources` may lose only the rows; for the unseen suite
  there is no exception.

Outputs:
    dataset: the rows that stay, in their order; card.json counts kept and dropped rows by source.
    evidence: evidence.jsonl (each dropped row with every instance it contaminates, and the text
        they share), overlap.json (source x task: instances contaminated, share of the task).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from caravan.data.io import ROWS, read_rows, write_json, write_rows
from caravan.data.ngrams import NgramIndex
from caravan.data.records import Conversation, Pair, Record
from caravan.errors import DataError
from caravan.recipe import DecontaminateConfig, EvalTask
from caravan.stages.configs import DecontaminateStageConfig
from caravan.stages.context import StageContext, StageResult

NAME = "decontaminate"
VERSION = 1

logger = logging.getLogger(__name__)


class Evidence(Record):
    """One line of evidence.jsonl: a training row, an instance, and what they share."""

    row_id: str
    source: str
    task: str
    instance_id: str
    coverage: float
    """Share of the instance's tokens that the row covers."""
    matched_text: str


@dataclass(frozen=True)
class Instance:
    """An evaluation prompt."""

    task: str
    id: str
    text: str


@dataclass
class Overlap:
    """What a pass over the training rows found."""

    evidence: list[Evidence] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    """Rows looked at, by source."""

    @property
    def contaminated_rows(self) -> set[str]:
        return {evidence.row_id for evidence in self.evidence}

    def instances(self) -> dict[tuple[str, str], set[str]]:
        """Instances contaminated, by source and task."""
        hit: dict[tuple[str, str], set[str]] = defaultdict(set)
        for evidence in self.evidence:
            hit[evidence.source, evidence.task].add(evidence.instance_id)
        return dict(hit)


@dataclass(frozen=True)
class Contamination:
    """What of the training rows may not stay."""

    rule: DecontaminateConfig
    instances: Sequence[Instance]
    index: NgramIndex
    overlap: Overlap
    shares: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Of each source, by task: instances contaminated, and their share."""
    dropped_sources: Mapping[str, Sequence[str]]
    """Sources to drop whole, each with the tasks that it contaminates."""

    @cached_property
    def _rows(self) -> set[str]:
        return self.overlap.contaminated_rows

    def keeps(self, row: Conversation | Pair) -> bool:
        return row.id not in self._rows and row.source not in self.dropped_sources

    def write(self, directory: Path, kept: Mapping[str, int]) -> None:
        """evidence.jsonl and overlap.json.

        Args:
            kept: rows that stay, by source.
        """
        write_rows(directory / "evidence.jsonl", self.overlap.evidence)
        write_json(
            directory / "overlap.json",
            {
                "ngram_size": self.rule.ngram_size,
                "max_coverage": self.rule.max_coverage,
                "max_source_overlap": self.rule.max_source_overlap,
                "instances": dict(Counter(instance.task for instance in self.instances)),
                "instances_shorter_than_ngram": self.index.short,
                "instances_without_tokens": self.index.empty,
                "overlap": self.shares,
                "dropped_sources": self.dropped_sources,
                "rows": dict(self.overlap.rows),
                "dropped_rows": {s: n - kept.get(s, 0) for s, n in self.overlap.rows.items()},
            },
        )


def contamination(
    rows: Iterable[Conversation],
    rule: DecontaminateConfig,
    tasks: Sequence[EvalTask],
    context: StageContext,
) -> Contamination:
    """What of `rows` overlaps the questions of `tasks` more than the rule allows."""
    instances = list(evaluation_prompts(tasks, context))
    index = NgramIndex((instance.text for instance in instances), rule.ngram_size)
    overlap = find_overlap(rows, instances, index, rule.max_coverage)
    shares = source_shares(overlap, instances)
    dropped = contaminated_sources(shares, tasks, rule)
    return Contamination(rule, instances, index, overlap, shares, dropped)


def external_files(config: DecontaminateStageConfig, recipe_dir: Path) -> Iterable[Path]:
    """The files of the evaluation tasks."""
    from caravan.evals.tasks import task_files

    return task_files(config.tasks, recipe_dir)


def run(
    config: DecontaminateStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    rule = config.decontaminate
    tables = [inputs[name] for name in ("curated", "synthesized") if name in inputs]

    context.progress(0, 3)
    found = contamination(_rows(tables), rule, config.tasks, context)
    _warn_of_dropped_sources(found)
    context.progress(1, 3)
    dataset = context.output("dataset", "dataset")
    if not write_rows(dataset / ROWS, (row for row in _rows(tables) if found.keeps(row))):
        raise DataError(
            "decontamination left no row; look at evidence.jsonl, and at "
            "decontaminate.max_source_overlap and keep_sources"
        )
    context.progress(2, 3)
    # Read back what was written: the claim is about the artifact, not about our bookkeeping.
    kept = read_rows(dataset, Conversation)
    written = find_overlap(kept, found.instances, found.index, rule.max_coverage)
    if written.evidence:
        raise DataError(f"decontamination kept a contaminated row: {written.evidence[0]}")

    write_json(dataset / "card.json", {"sources": _source_counts(found.overlap, written)})
    found.write(context.output("evidence", "report"), written.rows)
    context.progress(3, 3)
    return StageResult(
        metrics={
            "rows": written.rows.total(),
            "dropped": found.overlap.rows.total() - written.rows.total(),
            "contaminated_rows": len(found.overlap.contaminated_rows),
            "dropped_sources": len(found.dropped_sources),
            "instances": len(found.instances),
            "instances_shorter_than_ngram": found.index.short,
            "remaining_contaminated_rows": len(written.contaminated_rows),
        }
    )


def evaluation_prompts(tasks: Sequence[EvalTask], context: StageContext) -> Iterator[Instance]:
    """The questions of every task, without few-shot turns, the task's wording, and answers."""
    from caravan.evals.tasks import load_instances

    for task in tasks:
        for instance in load_instances(task, context.seed, context.recipe_dir):
            last = next(m for m in reversed(instance.messages) if m.role == "user")
            yield Instance(task.name, instance.id, instance.question or last.content)


def find_overlap(
    rows: Iterable[Conversation],
    instances: Sequence[Instance],
    index: NgramIndex,
    max_coverage: float,
) -> Overlap:
    """Every pair of a row and an instance that it covers more than `max_coverage` of."""
    overlap = Overlap()
    for row in rows:
        overlap.rows[row.source] += 1
        turns = [message.content for message in row.messages if message.role == "user"]
        for number, positions in sorted(index.covered(turns).items()):
            coverage = len(positions) / len(index.prompts[number])
            if coverage > max_coverage:
                overlap.evidence.append(
                    Evidence(
                        row_id=row.id,
                        source=row.source,
                        task=instances[number].task,
                        instance_id=instances[number].id,
                        coverage=round(coverage, 4),
                        matched_text=index.matched_text(number, positions),
                    )
                )
    return overlap


def source_shares(
    overlap: Overlap, instances: Sequence[Instance]
) -> dict[str, dict[str, dict[str, float]]]:
    """Source to task to {instances contaminated, share of the task's instances}."""
    sizes = Counter(instance.task for instance in instances)
    shares: dict[str, dict[str, dict[str, float]]] = {source: {} for source in overlap.rows}
    for (source, task), hit in sorted(overlap.instances().items()):
        shares[source][task] = {"instances": len(hit), "share": len(hit) / sizes[task]}
    return shares


def contaminated_sources(
    shares: Mapping[str, Mapping[str, Mapping[str, float]]],
    tasks: Sequence[EvalTask],
    rule: DecontaminateConfig,
) -> dict[str, list[str]]:
    """Sources to drop whole, each with the tasks that it contaminates."""
    unseen = {task.name for task in tasks if task.suite == "unseen"}
    dropped = {}
    for source, by_task in shares.items():
        above = [t for t, found in by_task.items() if found["share"] > rule.max_source_overlap]
        if source in rule.keep_sources:
            above = [task for task in above if task in unseen]
        if above:
            dropped[source] = above
    return dropped


def _warn_of_dropped_sources(found: Contamination) -> None:
    for source, tasks in found.dropped_sources.items():
        held = (f"{100 * found.shares[source][t]['share']:.1f} % of {t}'s" for t in tasks)
        logger.warning(
            "source %s: all %s rows dropped, as they have %s questions; "
            "decontaminate.max_source_overlap is %g %%",
            source,
            f"{found.overlap.rows[source]:,}",
            ", ".join(held),
            100 * found.rule.max_source_overlap,
        )


def _rows(tables: Iterable[Path]) -> Iterator[Conversation]:
    for table in tables:
        yield from read_rows(table, Conversation)


def _source_counts(before: Overlap, after: Overlap) -> list[dict[str, Any]]:
    return [
        {"name": source, "kept": after.rows[source], "dropped": rows - after.rows[source]}
        for source, rows in before.rows.items()
    ]
