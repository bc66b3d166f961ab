"""Take, of the policies that a training stage went through, the one that scores best, as Lambert et
al. 2024 do of RLVR's (section 6.4).

Inputs: the candidates, each a model under the name of its step (`step-100`). Outputs: `model`, the
one whose mean over the tasks is the highest, of equal ones the earliest; `report`, with
`selection.json` and the same as text, `selection.md`.

A score over the few replies that a judge or a verifier could decide about is no match for one over
all: a candidate with such a score is taken only where every other has one, too. A candidate that
has its scores is not asked again when the stage goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from caravan.data.card import table
from caravan.data.io import write_json, write_text
from caravan.errors import StageError, some
from caravan.evals.caveats import MANY, lacking
from caravan.stages.candidates import STEP
from caravan.stages.configs import EvaluateStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.evaluate import Progress, evaluate_model, external_files, shares
from caravan.store.copies import copy_out

logger = logging.getLogger(__name__)

__all__ = ["NAME", "VERSION", "external_files", "run"]

NAME = "select"
VERSION = 1

OPTIMISM = (
    "The highest of several noisy scores is on average above what its model would score on other "
    "questions: compare models by tasks that were not selected by."
)


@dataclass(frozen=True)
class TaskScore:
    """As in an evaluation, without its instances."""

    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    truncated: float
    too_long: float
    undecided: float
    """Shares of the replies, as beside the score of an evaluation."""


@dataclass(frozen=True)
class Candidate:
    step: int
    scores: tuple[TaskScore, ...]

    @property
    def decided(self) -> bool:
        """Whether its scores are about most of its replies."""
        return all(score.undecided <= MANY for score in self.scores)

    @property
    def mean(self) -> float:
        return fmean(score.value for score in self.scores)


def run(
    config: EvaluateStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    steps = sorted(int(name.removeprefix(STEP)) for name in inputs)
    candidates = []
    for i, step in enumerate(steps):

        def progress(done: int, total: int, i: int = i) -> None:
            context.progress(i * total + done, len(steps) * total)

        known = context.workdir / f"step-{step}.json"
        if not known.exists():
            scored = _evaluated(step, inputs[f"{STEP}{step}"], config, context, progress)
            context.log(step, {**_values(scored), "mean": scored.mean})
            write_json(known, asdict(scored))
        candidates.append(_read(known))
    _warn_of_undecided(candidates)
    chosen = best(candidates)
    copy_out(inputs[f"{STEP}{chosen.step}"], context.output("model", "model"))
    directory = context.output("report", "report")
    write_json(directory / "selection.json", document(candidates, chosen))
    write_text(directory / "selection.md", page(candidates, chosen))
    return StageResult(
        {"step": chosen.step, "candidates": len(candidates), "mean": chosen.mean, **_values(chosen)}
    )


def best(candidates: Iterable[Candidate]) -> Candidate:
    """Of those whose replies are decided, or of all where none's are: the one with the highest
    mean, of equal ones the earliest."""
    return max(candidates, key=lambda one: (one.decided, one.mean, -one.step))


def _warn_of_undecided(candidates: Sequence[Candidate]) -> None:
    if undecided := [f"step {one.step}" for one in candidates if not one.decided]:
        every = len(undecided) == len(candidates)
        logger.warning(
            "%s: more than %.0f %% of the replies to a task could not be decided about, so %s",
            some(undecided), 100 * MANY,
            "the selection says little" if every else "only the others are selected from",
        )  # fmt: skip


def document(candidates: Sequence[Candidate], chosen: Candidate) -> dict[str, Any]:
    return {
        "step": chosen.step,
        "candidates": [{**asdict(one), "mean": one.mean} for one in candidates],
        "note": OPTIMISM,
    }


def page(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """The document in Markdown."""
    titles = ["step", "mean", *(f"{score.task} ({score.metric})" for score in chosen.scores)]
    rows = [
        [
            f"{one.step}, taken" if one is chosen else one.step,
            f"{one.mean:.3f}",
            *(_cell(score) for score in one.scores),
        ]
        for one in candidates
    ]
    decided = sum(one.decided for one in candidates)
    compared = f"{len(candidates)} policies"
    if 0 < decided < len(candidates):
        compared = f"the {decided} of {compared} whose replies are decided"
    lines = [
        f"# Step {chosen.step} is taken", "",
        f"Of {compared} it has the highest mean; in brackets 95 % intervals.", "",
        *table(titles, rows), "", OPTIMISM,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(score: TaskScore) -> str:
    value = f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
    return f"{value}, {caveat}" if (caveat := lacking(score)) else value


def _evaluated(
    step: int, model: Path, config: EvaluateStageConfig, context: StageContext, progress: Progress
) -> Candidate:
    """
    Raises:
        StageError: a task gave no score.
    """
    rows, scores, _ = evaluate_model(model, config, context, progress)
    first: dict[str, TaskScore] = {}
    for s in scores:
        if s.task not in first:
            lacks = shares([row for row in rows if row.task == s.task])
            first[s.task] = TaskScore(s.task, s.metric, s.value, s.low, s.high, s.n, **lacks)
    for task in config.evaluate.tasks:
        if task.name not in first:
            raise StageError(
                f"no reply of step {step} to task {task.name} could be scored, so nothing says "
                "how good it is; the log has the reasons"
            )
    return Candidate(step, tuple(first.values()))


def _read(path: Path) -> Candidate:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Candidate(content["step"], tuple(TaskScore(**score) for score in content["scores"]))


def _values(candidate: Candidate) -> dict[str, float]:
    return {score.task: score.value for score in candidate.scores}
