"""The report's pictures, as PNG files whose bytes depend on the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caravan.errors import require
from caravan.evals.comparison import Change, Evaluation, TaskScore, WinRate

STAGE_COLOURS = {"base": "#a3abb5", "sft": "#4e79a7", "dpo": "#f28e2b", "rlvr": "#3f9b6c"}
STAGE_NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "rlvr": "RLVR"}
_SPARE_COLOUR = "#8f6bb3"
_BETTER, _WORSE, _UNSURE = "#2e8b57", "#c8553d", "#9aa2ab"
_INK, _FAINT = "#1f2933", "#e4e7eb"
_SKILLS = ("#4e79a7", "#f28e2b", "#3f9b6c", "#b07aa1", "#e15759", "#76b7b2", "#9c755f", "#edc948")


def stage_name(stage: str) -> str:
    return STAGE_NAMES.get(stage, stage)


def stage_colour(stage: str) -> str:
    return STAGE_COLOURS.get(stage, _SPARE_COLOUR)


def draw_scores(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """One panel for each task: a bar for each stage, with its 95 % interval."""
    tasks = list(dict.fromkeys(name for e in evaluations for name in e.scores))
    columns = min(len(tasks), 5 if len(tasks) > 8 else 4 if len(tasks) != 5 else 5)
    lines = -(-len(tasks) // columns)
    figure = _figure(2.35 * columns + 0.4, 2.55 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, task in zip(axes, tasks, strict=False):
        shown = [(e.stage, e.scores[task]) for e in evaluations if task in e.scores]
        _score_panel(axis, task, shown)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    _save(figure, path)


def _score_panel(axis: Any, task: str, shown: Sequence[tuple[str, TaskScore]]) -> None:
    judged = shown[0][1].judged
    for x, (stage, score) in enumerate(shown):
        error = [[score.value - score.low], [score.high - score.value]]
        bottom = 1.0 if judged else 0.0
        axis.bar(x, score.value - bottom, bottom=bottom, width=0.72, color=stage_colour(stage))
        axis.errorbar(
            x, score.value, yerr=error, color=_INK, elinewidth=1.1, capsize=2.5, capthick=1.1
        )
        label = f"{score.value:.2f}" if judged else f"{100 * score.value:.1f}"
        offset = 0.12 if judged else 0.03
        axis.text(x, score.high + offset, label, ha="center", fontsize=9, weight="bold", color=_INK)
    axis.set_xticks(range(len(shown)), [stage_name(stage) for stage, _ in shown], fontsize=8.5)
    if judged:
        axis.set_ylim(1, 5.6)
        axis.set_yticks([1, 2, 3, 4, 5], ["1", "2", "3", "4", "5"])
    else:
        axis.set_ylim(0, 1.15)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    unit = "mean rating, 1 to 5" if judged else f"{shown[0][1].metric.replace('_', ' ')}, %"
    axis.set_title(_plain(task), fontsize=10.5, weight="bold", loc="left", color=_INK, pad=17)
    axis.text(
        0,
        1.035,
        f"{unit} · n = {shown[0][1].n}",
        transform=axis.transAxes,
        fontsize=7,
        color="#616e7c",
    )
    _bare(axis)


def draw_changes(path: Path, steps: Sequence[Sequence[Change]]) -> None:
    """One panel for each stage: the change of every task in points, with its interval."""
    tasks = max((len(step) for step in steps), default=1)
    figure = _figure(3.35 * len(steps) + 0.7, 0.34 * tasks + 1.15)
    axes = figure.subplots(1, len(steps), squeeze=False, sharey=True)[0]
    for axis, step in zip(axes, steps, strict=True):
        axis.axvline(0, color=_INK, linewidth=0.9)
        for y, change in enumerate(step):
            d = change.difference
            colour = _UNSURE if not d.significant else _BETTER if d.value > 0 else _WORSE
            axis.plot([100 * d.low, 100 * d.high], [y, y], color=colour, linewidth=3, alpha=0.45)
            axis.plot(100 * d.value, y, "o", color=colour, markersize=6.5)
            axis.annotate(
                f"{100 * d.value:+.1f}",
                (100 * d.value, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_INK,
            )
        axis.set_yticks(range(len(step)), [_plain(change.task) for change in step], fontsize=9)
        axis.set_ylim(len(step) - 0.5, -0.7)
        title = f"{stage_name(step[0].after)} over {stage_name(step[0].before)}"
        colour = stage_colour(step[0].after)
        axis.set_title(title, fontsize=10.5, weight="bold", loc="left", color=colour)
        axis.set_xlabel("points", fontsize=8, color="#616e7c")
        axis.margins(x=0.14)
        _bare(axis, grid="x")
    _save(figure, path)


def draw_win_rates(path: Path, rates: Sequence[WinRate]) -> None:
    """Wins, ties and losses as one bar for each pair of models and task."""
    figure = _figure(8.2, 0.62 * len(rates) + 0.75)
    axis = figure.subplots()
    for y, rate in enumerate(rates):
        total = rate.wins + rate.ties + rate.losses
        left = 0.0
        parts = (
            (rate.wins, stage_colour(rate.winner), "wins"),
            (rate.ties, _FAINT, "ties"),
            (rate.losses, stage_colour(rate.loser), "losses"),
        )
        for count, colour, _ in parts:
            share = 100 * count / total
            axis.barh(y, share, left=left, height=0.55, color=colour)
            if share > 6:
                light = colour == _FAINT
                axis.text(
                    left + share / 2,
                    y,
                    f"{share:.0f} %",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=_INK if light else "white",
                    weight="bold",
                )
            left += share
    axis.axvline(50, color=_INK, linewidth=0.9, linestyle=(0, (3, 2)))
    labels = [
        f"{stage_name(r.winner)} against {stage_name(r.loser)}\n{_plain(r.task)}" for r in rates
    ]
    axis.set_yticks(range(len(rates)), labels, fontsize=9)
    axis.set_ylim(len(rates) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of prompts: better, tied, worse", fontsize=8, color="#616e7c")
    _bare(axis, grid="")
    _save(figure, path)


def draw_mix(path: Path, by_source: Mapping[str, int], skill_of: Mapping[str, str]) -> None:
    """Rows of each source in the mix, coloured by skill."""
    sources = sorted(by_source, key=lambda s: (skill_of.get(s, ""), -by_source[s], s))
    skills = list(dict.fromkeys(skill_of.get(source, "") for source in sources))
    colours = {skill: _SKILLS[i % len(_SKILLS)] for i, skill in enumerate(skills)}
    figure = _figure(8.2, 0.27 * len(sources) + 0.9)
    axis = figure.subplots()
    for y, source in enumerate(sources):
        axis.barh(y, by_source[source], color=colours[skill_of.get(source, "")], height=0.7)
        axis.text(
            by_source[source], y, f" {by_source[source]:,}", va="center", fontsize=8, color=_INK
        )
    axis.set_yticks(range(len(sources)), [_plain(source) for source in sources], fontsize=8.5)
    axis.set_ylim(len(sources) - 0.5, -0.5)
    axis.margins(x=0.12)
    handles = [_patch(colours[skill], _plain(skill or "no skill")) for skill in skills]
    if any(skills):
        axis.legend(
            handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
    axis.set_xlabel("rows", fontsize=8, color="#616e7c")
    _bare(axis, grid="x")
    _save(figure, path)


# --- shared -------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Any:
    figure = require("matplotlib.figure", extra="train", feature="the report").Figure
    return figure(figsize=(width, height), dpi=150, facecolor="white", layout="constrained")


def _patch(colour: str, label: str) -> Any:
    patches = require("matplotlib.patches", extra="train", feature="the report")
    return patches.Patch(color=colour, label=label)


def _plain(text: str) -> str:
    """Text without what matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def _bare(axis: Any, grid: str = "y") -> None:
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#9aa5b1")
    axis.tick_params(length=0, labelsize=8, colors="#3e4c59")
    if grid:
        axis.grid(axis=grid, color=_FAINT, linewidth=0.8)
        axis.set_axisbelow(True)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})
