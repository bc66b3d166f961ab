"""What a sweep came to: its runs, and each arm against the first one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caravan.errors import without_traceback
from caravan.evals.caveats import without_spread
from caravan.evals.sweeps import (
    BETTER,
    UNKNOWN,
    WORSE,
    ArmScore,
    arms_of,
    compare,
    evaluated_models,
    notes,
    sweep_runs,
)
from caravan.recipe.io import ABSENT
from caravan.registry import Registry, ScoreRow, scale_of
from caravan_pipelines.cli.tables import STATE_STYLE, columns, print_table, run_column
from caravan_pipelines.cli.training import ends

VERDICT_STYLE = {BETTER: "green", WORSE: "red", UNKNOWN: "yellow"}


class Results:
    """A sweep as the registry has it now.

    Raises:
        RegistryError: no run has the tag.
    """

    def __init__(self, tag: str, registry: Registry) -> None:
        self.tag, self.registry = tag, registry
        self.runs = sweep_runs(tag, registry)
        self.arms = arms_of(self.runs)
        several = len({run.seed for run in self.runs}) > 1
        self.labels = {
            run.id: [*arm.labels, *([f"seed={run.seed}"] if several else [])]
            for arm in self.arms
            for run in arm.runs
        }

    @cached_property
    def scores(self) -> list[ScoreRow]:
        return self.registry.scores(*(run.id for run in self.runs))

    @property
    def models(self) -> list[str]:
        return evaluated_models(self.scores)

    def compared(self, model: str) -> list[ArmScore]:
        @cache  # those of the first arm are compared with every other
        def instances(score_id: int) -> dict[str, float]:
            rows = self.registry.score_instances(score_id)
            return {row.instance_id: row.value for row in rows}

        return compare(self.arms, self.scores, model, instances)

    def show(self, console: Console) -> None:
        print_table(console, self.runs_table())
        for run in self.runs:
            failed = [stage for stage in self.registry.stage_runs(run.id) if stage.error]
            told = [f"{s.node}: {without_traceback(s.error or '')}" for s in failed]
            for line in told or ([without_traceback(run.error)] if run.error else []):
                console.print(Text(f"{run.id}: {line}", style="red"), soft_wrap=True)
        if (course := self.course_table()) is not None:
            print_table(console, course)
        if not self.models:
            console.print("no run has scores yet", soft_wrap=True)
            return
        found = self.compared(self.models[-1])
        print_table(console, self.scores_table(found))
        for line in notes(self.arms, found):
            console.print(Text(line), soft_wrap=True)

    def runs_table(self) -> Table:
        table = Table(
            run_column(run.id for run in self.runs), *columns("state", "values"), title=self.tag
        )
        for arm in self.arms:
            for run in arm.runs:
                state = Text(run.state, style=STATE_STYLE[run.state])
                table.add_row(Text(run.id), state, Text("\n".join(self.labels[run.id])))
        return table

    def course_table(self) -> Table | None:
        """What training came to in each run, as far as that differs between them."""
        found = {
            run.id: {
                f"{stage.node} {name}": value
                for stage in self.registry.stage_runs(run.id)
                for name, value in ends(stage, self.registry).items()
            }
            for run in self.runs
        }
        all_numbers = found.values()
        names = list(dict.fromkeys(name for numbers in all_numbers for name in numbers))
        names = [n for n in names if len({nums[n] for nums in all_numbers if n in nums}) > 1]
        if not names:
            return None
        table = Table(*columns("values", *names), title="Training, where it differs")
        for run_id, label in self.labels.items():
            numbers = found[run_id]
            cells = (f"{numbers[name]:.4g}" if name in numbers else "" for name in names)
            table.add_row(Text("\n".join(label)), *cells)
        return table

    def scores_table(self, found: Sequence[ArmScore]) -> Table:
        """Of the last model: a section for each task, a row for each arm."""
        table = Table(
            *columns("task", "arm", "seeds", "score", "over the first arm, 95 % interval", ""),
            title=f"Scores of {self.models[-1]}, mean ± standard deviation over seeds",
        )
        for score in found:
            first = score.arm is self.arms[0]
            if first:
                table.add_section()
            table.add_row(
                Text(score.task if first else ""), Text("\n".join(score.arm.labels)), _seeds(score),
                _score(score), _difference(score),
                Text(score.verdict, style=VERDICT_STYLE.get(score.verdict, "")),
            )  # fmt: skip
        return table

    def as_data(self) -> dict[str, Any]:
        """What `caravan show sweep:... --json` prints."""
        arms = [
            {path: None if value is ABSENT else value for path, value in arm.values.items()}
            for arm in self.arms
        ]
        return {
            "sweep": self.tag,
            "recipe": self.runs[0].name,
            "arms": arms,
            "runs": [
                {"run": run.id, "state": run.state, "arm": i, "seed": run.seed, "error": run.error}
                for i, arm in enumerate(self.arms)
                for run in arm.runs
            ],
            "scores": [
                {
                    "model": model,
                    "task": score.task,
                    "metric": score.metric,
                    "arm": self.arms.index(score.arm),
                    "by_seed": {str(seed): value for seed, value in score.by_seed.items()},
                    "mean": score.mean,
                    "spread": score.spread,
                    "difference": score.difference and score.difference.value,
                    "low": score.difference and score.difference.low,
                    "high": score.difference and score.difference.high,
                    "n": score.difference and score.difference.n,
                    "paired_seeds": score.paired_seeds,
                    "verdict": score.verdict,
                }
                for model in self.models
                for score in self.compared(model)
            ],
        }


def _seeds(score: ArmScore) -> str:
    found, asked = len(score.by_seed), len(score.arm.runs)
    return str(found) if found == asked else f"{found} of {asked}"


def _score(score: ArmScore) -> Text:
    if score.mean is None:
        return Text("–")
    scale, digits = scale_of(score.metric)
    text = Text(f"{scale * score.mean:.{digits}f}")
    if score.spread is not None:
        text.append(f" ± {scale * score.spread:.{digits}f}", style="dim")
    if score.caveat:
        text.append(f" ({score.caveat})", style="yellow")
    return text


def _difference(score: ArmScore) -> Text:
    if (found := score.difference) is None:
        return Text("")
    scale, digits = scale_of(score.metric)
    text = Text(f"{scale * found.value:+.{digits}f}")
    if same := without_spread(found, text.plain):
        return Text(same)
    interval = f" [{scale * found.low:.{digits}f}, {scale * found.high:.{digits}f}]"
    return text.append(interval, style="dim")
