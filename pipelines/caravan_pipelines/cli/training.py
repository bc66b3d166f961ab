"""How training goes, in words: the step, the numbers that matter, and the time left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from rich.console import Console

from caravan.registry import MetricRow, Registry, StageRunRow, State
from caravan_pipelines.cli.tables import duration

NUMBERS = {
    "loss": "loss {:.4g}",
    "rewards/accuracies": "accuracy {:.1%}",
    "accuracy": "accuracy {:.1%}",
    "rewards/margins": "margin {:.3g}",
    "margin": "margin {:.3g}",
    "reward": "reward {:.3g}",
    "objective/kl": "KL {:.3g}",
}
"""Metrics that say how training goes, by name, in the order in which they are shown."""
SPEED = "perf/tokens_per_second"
RECENT_STEPS = 20
"""Steps whose mean is the speed."""


def training(stage: StageRunRow, registry: Registry) -> str:
    """`step 312 of 900  loss 1.234  5,400 tokens/s  3 min left`; empty where nothing trains."""
    points = registry.metrics(stage.id, names=(*NUMBERS, SPEED), last_steps=RECENT_STEPS)
    if not points:
        return ""
    step, total = points[-1].step, stage.progress_total
    last = {point.name: point.value for point in points if point.step == step}
    words = [f"step {step:,} of {total:,}" if total else f"step {step:,}"]
    words += [text.format(last[name]) for name, text in NUMBERS.items() if name in last]
    if speeds := [point.value for point in points if point.name == SPEED]:
        words.append(f"{fmean(speeds):,.0f} tokens/s")
    if stage.state is State.RUNNING and (seconds := _step_seconds(stage, points)) is not None:
        words.append(f"{duration(seconds * (total - step))} left")
    return "  ".join(words)


def print_training(console: Console, registry: Registry, stages: Iterable[StageRunRow]) -> None:
    """Print how the training stages go, or went."""
    for stage in stages:
        if words := training(stage, registry):
            console.print(f"{stage.node}: {words}", highlight=False, markup=False, soft_wrap=True)


def last_metrics(stage: StageRunRow, registry: Registry) -> dict[str, float]:
    """The stage's final numbers; of one that has none, those of the last step it has logged."""
    if stage.metrics:
        return dict(stage.metrics)
    return {point.name: point.value for point in registry.metrics(stage.id, last_steps=1)}


def _step_seconds(stage: StageRunRow, points: Sequence[MetricRow]) -> float | None:
    """What a step of this attempt has taken lately; one step alone does not tell."""
    own = [p for p in points if stage.started_at is not None and p.at >= stage.started_at]
    if not own or own[-1].step == own[0].step:
        return None
    return (own[-1].at - own[0].at).total_seconds() / (own[-1].step - own[0].step)
