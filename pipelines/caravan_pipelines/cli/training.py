"""How training goes, in words: the step, the numbers that matter, and the time left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from rich.console import Console
from rich.text import Text

from caravan.registry import MetricRow, Registry, StageRunRow, State
from caravan.stages.candidates import SELECT, selected, selected_step
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
ENDS = {"loss": "loss", "rewards/margins": "margin", "margin": "margin", "reward": "reward"}
"""Metrics that runs are compared by, and how they are called."""
HELD_OUT = "validation/loss"
"""Measured now and then: its last value may be of an earlier step."""
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
    if held_out := registry.metrics(stage.id, names=(HELD_OUT,), last_steps=1):
        words.append(f"held-out loss {held_out[-1].value:.4g}")
    if speeds := [point.value for point in points if point.name == SPEED]:
        words.append(f"{fmean(speeds):,.0f} tokens/s")
    if stage.attempt > 1 and stage.started_at and not stage.reused_from:
        first = registry.first_step(stage.id, tuple(NUMBERS), stage.started_at)
        if first is not None:
            words.append(f"went on at step {first - 1:,}" if first > 1 else "begun anew")
    if stage.state is State.RUNNING and (seconds := _step_seconds(stage, points)) is not None:
        words.append(f"{duration(seconds * (total - step))} left")
    return "  ".join(words)


def print_course(console: Console, registry: Registry, stages: Iterable[StageRunRow]) -> None:
    """Print how the training stages go, or went, which policy was selected, and what stages warned
    of."""
    for stage in stages:
        if stage.warned:
            console.print(Text(f"{stage.node}: {stage.warned}", style="yellow"), soft_wrap=True)
        trained = "" if stage.stage == SELECT else training(stage, registry)
        if words := "  ".join(filter(None, (trained, selected(stage)))):
            console.print(f"{stage.node}: {words}", highlight=False, markup=False, soft_wrap=True)


def ends(stage: StageRunRow, registry: Registry) -> dict[str, float]:
    """What the training of a finished stage came to, by the names that people use."""
    if stage.state is not State.SUCCEEDED:
        return {}
    found = {ENDS[name]: value for name, value in stage.metrics.items() if name in ENDS}
    if held_out := registry.metrics(stage.id, names=(HELD_OUT,), last_steps=1):
        found["held-out loss"] = held_out[-1].value
    if (step := selected_step(stage)) is not None:
        found["step"] = step
    return found


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
