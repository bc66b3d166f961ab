"""Say what each stage changed, with how sure that is: data, a page and pictures.

Outputs `report.json` (all numbers), `report.html` (one page that needs nothing else) and the
pictures as PNG files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from caravan.data.io import write_json, write_text
from caravan.errors import DataError
from caravan.evals import figures
from caravan.evals.comparison import (
    Change,
    Evaluation,
    Sample,
    WinRate,
    average_change,
    changes,
    load_evaluations,
    pick_samples,
    transitions,
    win_rates,
)
from caravan.evals.page import render_page
from caravan.evals.stats import Interval
from caravan.stages.configs import ReportStageConfig
from caravan.stages.context import Score, StageContext, StageResult

NAME = "report"
VERSION = 2

Step = tuple[list[Change], Interval | None]

_BOOTSTRAP_SEED = 20241122
"""Fixed, so that the same evaluations give the same intervals in every run."""


def run(
    config: ReportStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    evaluations = load_evaluations(inputs)
    if not evaluations:
        raise DataError("the report has no evaluation to show")
    samples, seed = config.bootstrap_samples, _BOOTSTRAP_SEED
    pairs = transitions(evaluations)
    steps: list[Step] = [
        (changes(a, b, samples, seed), average_change(a, b, samples, seed)) for a, b in pairs
    ]
    steps = [step for step in steps if step[0]]
    rates = [rate for a, b in pairs if b.stage != "sft" for rate in win_rates(a, b, samples, seed)]
    tasks = list(dict.fromkeys(name for e in evaluations for name in e.scores))
    shown = pick_samples(evaluations, tasks)
    data = read_data(inputs)

    directory = context.output("report", "report")
    pictures = draw(directory, evaluations, steps, rates, data)
    page = render_page(
        evaluations=evaluations,
        steps=steps,
        rates=rates,
        samples=shown,
        data=data,
        pictures=pictures,
        selections=config.selections,
    )
    write_text(directory / "report.html", page)
    numbers = document(evaluations, steps, rates, shown, data)
    if selections := config.selections:
        numbers["selected_by"] = {stage: list(tasks) for stage, tasks in selections.items()}
    write_json(directory / "report.json", numbers)
    context.progress(1, 1)
    return StageResult(
        metrics={f"win_rate/{_versus(rate)}": rate.interval.value for rate in rates}
        | {
            f"average_change/{step[0].after}": average.value
            for step, average in steps
            if average is not None
        },
        scores=(*(_rate_score(rate) for rate in rates), *_change_scores(steps, evaluations)),
    )


def read_data(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What the data stages say of themselves, as far as it is given; None for the rest."""
    card = _read(inputs, "card", "card.json")
    mix = _read(inputs, "mix", "mix.json")
    overlap = _read(inputs, "evidence", "overlap.json")
    skill_of = {s["name"]: s["skill"] for s in (card or {}).get("sources", [])}
    return {
        "card": card and {k: card[k] for k in ("available", "kept", "dropped", "by_skill")},
        "mix": mix and {k: mix[k] for k in ("rows", "by_source", "by_skill") if k in mix},
        "overlap": overlap
        and {
            "rows": sum(overlap["dropped_rows"].values()),
            "matches": _contaminated_rows(inputs["evidence"]),
            "dropped_rows": overlap["dropped_rows"],
            "dropped_sources": overlap["dropped_sources"],
        },
        "skill_of": skill_of,
    }


def _read(inputs: Mapping[str, Path], name: str, file: str) -> Any:
    path = inputs[name] / file if name in inputs else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else None


def _contaminated_rows(directory: Path) -> int:
    lines = (directory / "evidence.jsonl").read_text(encoding="utf-8").split("\n")
    return len({json.loads(line)["row_id"] for line in lines if line.strip()})


def draw(
    directory: Path,
    evaluations: Sequence[Evaluation],
    steps: Sequence[Step],
    rates: Sequence[WinRate],
    data: Mapping[str, Any],
) -> dict[str, Path]:
    """The pictures that there are numbers for; missing ones are empty names in the page."""
    pictures: dict[str, Path] = {}
    if any(evaluation.scores for evaluation in evaluations):
        pictures["scores"] = directory / "scores.png"
        figures.draw_scores(pictures["scores"], evaluations)
    judged = {t for e in evaluations for t, score in e.scores.items() if score.judged}
    measured = [[c for c in step if c.task not in judged] for step, _ in steps]
    measured = [step for step in measured if step]
    if measured:
        pictures["changes"] = directory / "changes.png"
        figures.draw_changes(pictures["changes"], measured)
    if rates:
        pictures["win_rates"] = directory / "win_rates.png"
        figures.draw_win_rates(pictures["win_rates"], rates)
    if data["mix"] and data["mix"].get("by_source"):
        pictures["mix"] = directory / "mix.png"
        figures.draw_mix(pictures["mix"], data["mix"]["by_source"], data["skill_of"])
    return pictures


def document(
    evaluations: Sequence[Evaluation],
    steps: Sequence[Step],
    rates: Sequence[WinRate],
    samples: Sequence[Sample],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the page shows, as data."""
    return {
        "stages": [evaluation.stage for evaluation in evaluations],
        "scores": [
            {"stage": e.stage} | {k: v for k, v in asdict(s).items() if k != "instances"}
            for e in evaluations
            for s in e.scores.values()
        ],
        "changes": [
            {"task": c.task, "metric": c.metric, "before": c.before, "after": c.after}
            | asdict(c.difference)
            | {"significant": c.difference.significant}
            for step, _ in steps
            for c in step
        ],
        "average_changes": [
            {"before": step[0].before, "after": step[0].after} | asdict(average)
            for step, average in steps
            if average is not None
        ],
        "win_rates": [
            {
                "task": rate.task,
                "winner": rate.winner,
                "loser": rate.loser,
                "wins": rate.wins,
                "ties": rate.ties,
                "losses": rate.losses,
            }
            | asdict(rate.interval)
            for rate in rates
        ],
        "samples": [
            {
                "task": sample.task,
                "id": sample.id,
                "why": sample.why,
                "messages": [message.model_dump() for message in sample.rows[0].messages],
                "answers": {
                    e.stage: {"completion": row.completion, "score": row.score}
                    for e, row in zip(evaluations, sample.rows, strict=True)
                },
            }
            for sample in samples
        ],
        "data": dict(data),
    }


def _versus(rate: WinRate) -> str:
    return f"{rate.task}:{rate.winner}>{rate.loser}"


def _rate_score(rate: WinRate) -> Score:
    return Score(
        task=_versus(rate),
        metric="win_rate",
        value=rate.interval.value,
        low=rate.interval.low,
        high=rate.interval.high,
        n=rate.interval.n,
        instances=rate.instances,
    )


def _change_scores(steps: Sequence[Step], evaluations: Sequence[Evaluation]) -> list[Score]:
    """Differences from stage to stage, as scores of the report: `math:rlvr>dpo`, `difference`.

    Judged tasks have win rates instead.
    """
    suites = {n: s.suite for e in evaluations for n, s in e.scores.items() if not s.judged}
    return [
        Score(
            task=f"{change.task}:{change.after}>{change.before}",
            metric="difference",
            value=change.difference.value,
            low=change.difference.low,
            high=change.difference.high,
            n=change.difference.n,
            suite=suites[change.task],
        )
        for step, _ in steps
        for change in step
        if change.task in suites
    ]
