"""The report as one HTML page that needs nothing else: pictures inside, every text escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Container, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from caravan.data.records import Message
from caravan.data.template import TEMPLATE_HASH
from caravan.data.template_stamp import SHOWN
from caravan.evals.caveats import lacking, selected_by_scores, without_spread
from caravan.evals.comparison import Change, Evaluation, Sample, WinRate
from caravan.evals.figures import stage_colour, stage_name
from caravan.evals.scoring import ScoredCompletion
from caravan.evals.stats import Interval

PICTURES = ("scores", "changes", "win_rates", "mix")
SHOWN_CHARACTERS = 700
"""Longer texts are cut in the page; `instances.jsonl` has them whole."""


def render_page(
    *,
    evaluations: Sequence[Evaluation],
    steps: Sequence[tuple[Sequence[Change], Interval | None]],
    rates: Sequence[WinRate],
    samples: Sequence[Sample],
    data: Mapping[str, Any],
    pictures: Mapping[str, Path],
    selections: Mapping[str, Sequence[str]],
) -> str:
    """The page. `data` is what is known of the training data; see `caravan.stages.report`. Of
    `selections` are the tasks that the policy of a stage was selected by."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"points": _points, "percent": _percent, "number": _number}
    template = environment.from_string(
        files("caravan.evals").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    tasks = list(dict.fromkeys(name for e in evaluations for name in e.scores))
    judged = {name for e in evaluations for name, score in e.scores.items() if score.judged}
    return template.render(
        stages=[
            {"key": e.stage, "name": stage_name(e.stage), "colour": stage_colour(e.stage)}
            for e in evaluations
        ],
        own_templates=[
            f"{stage_name(e.stage)} ({e.template_hash[:SHOWN]})"
            for e in evaluations
            if e.template_hash != TEMPLATE_HASH
        ],
        steps=[_step(step, average, rates, judged) for step, average in steps],
        table=[_line(task, evaluations, [step for step, _ in steps]) for task in tasks],
        rates=[_rate(rate) for rate in rates],
        samples=[_sample(sample) for sample in samples],
        data=data,
        selected=selected_by_scores(selections),
        pictures=dict.fromkeys(PICTURES, "")
        | {name: _data_uri(path) for name, path in pictures.items()},
    )


def _step(
    step: Sequence[Change],
    average: Interval | None,
    rates: Sequence[WinRate],
    judged: Container[str],
) -> dict[str, Any]:
    after, before = step[0].after, step[0].before
    return {
        "name": stage_name(after),
        "before": stage_name(before),
        "colour": stage_colour(after),
        "average": average,
        "same": "" if average is None else without_spread(average, _points(average.value)),
        "rates": [_rate(r) for r in rates if (r.winner, r.loser) == (after, before)],
        "changes": [
            {
                "task": c.task,
                "d": c.difference,
                "kind": _kind(c),
                "judged": c.task in judged,
                "same": without_spread(c.difference, _change(c, c.task in judged)),
            }
            for c in step
        ],
        "better": sum(_kind(c) == "better" for c in step),
        "worse": sum(_kind(c) == "worse" for c in step),
    }


def _change(change: Change, judged: bool) -> str:
    value = change.difference.value
    return f"{value:+.2f}" if judged else _points(value)


def _kind(change: Change) -> str:
    if not change.difference.significant:
        return "unsure"
    return "better" if change.difference.value > 0 else "worse"


def _line(
    task: str, evaluations: Sequence[Evaluation], steps: Sequence[Sequence[Change]]
) -> dict[str, Any]:
    kinds = {(c.after): _kind(c) for step in steps for c in step if c.task == task}
    cells: list[dict[str, Any] | None] = []
    for evaluation in evaluations:
        score = evaluation.scores.get(task)
        if score is None:
            cells.append(None)
            continue
        width = (score.value - 1) / 4 if score.judged else score.value
        cells.append(
            {
                "score": score,
                "caveat": lacking(score),
                "width": round(100 * width, 1),
                "kind": kinds.get(evaluation.stage, ""),
                "colour": stage_colour(evaluation.stage),
            }
        )
    first = next(e.scores[task] for e in evaluations if task in e.scores)
    return {"task": task, "first": first, "cells": cells}


def _rate(rate: WinRate) -> dict[str, Any]:
    return {
        "task": rate.task,
        "winner": stage_name(rate.winner),
        "loser": stage_name(rate.loser),
        "rate": rate,
    }


def _sample(sample: Sample) -> dict[str, Any]:
    first = sample.rows[0]
    return {
        "task": sample.task,
        "id": sample.id,
        "why": sample.why,
        "turns": [_turn(message) for message in first.messages[-1:]],
        "earlier": len(first.messages) - 1,
        "expected": None if first.ground_truth is None else _expected(first.ground_truth),
        "answers": [_answer(row) for row in sample.rows],
    }


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "text": _cut(message.content)}


def _answer(row: ScoredCompletion) -> dict[str, Any]:
    if row.score is None:
        mark, kind = "not decided", "unsure"
    elif row.ratings is not None:
        mark = f"{row.score:.2f} of 5"
        kind = "better" if row.score >= 4 else "worse" if row.score < 2.5 else "unsure"
    else:
        mark = "right" if row.score == 1 else "wrong" if row.score == 0 else f"{row.score:.2f}"
        kind = "better" if row.score == 1 else "worse" if row.score == 0 else "unsure"
    ratings = {
        aspect.replace("_", " "): "n/a" if rating is None else str(rating)
        for aspect, rating in (row.ratings or {}).items()
    }
    text = _cut(row.completion)
    return {
        "text": text,
        "mark": mark,
        "kind": kind,
        "ratings": ratings,
        "ended": row.cut_short,
    }


def _expected(ground_truth: Any) -> str:
    if isinstance(ground_truth, str):
        return _cut(ground_truth)
    if isinstance(ground_truth, list) and all(
        isinstance(g, dict) and "id" in g for g in ground_truth
    ):
        return "\n".join(map(_constraint, ground_truth))
    return _cut(json.dumps(ground_truth, ensure_ascii=False))


def _constraint(constraint: Mapping[str, Any]) -> str:
    kwargs = constraint.get("kwargs") or {}
    values = ", ".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in kwargs.items())
    return f"{constraint['id']} ({values})" if values else str(constraint["id"])


def _cut(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]} … ({len(text) - SHOWN_CHARACTERS} more characters)"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _number(value: float) -> str:
    return f"{value:,}"


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
