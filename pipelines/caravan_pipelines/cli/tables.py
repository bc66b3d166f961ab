"""Tables of runs, stages and scores for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from caravan.evals.caveats import lacking, without_spread
from caravan.evals.headlines import headlines
from caravan.evals.models import in_order, model_of
from caravan.registry import RunRow, ScoreRow, StageRunRow, State, scale_of

WIDEST = 10_000
"""Characters of a line."""

STATE_STYLE = {
    State.PENDING: "dim",
    State.RUNNING: "cyan",
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.INTERRUPTED: "yellow",
}


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def columns(*headers: str) -> list[Column]:
    """Columns whose words go on in the next line where they are too long; none is cut."""
    return [Column(header, overflow="fold") for header in headers]


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as it is: names and numbers that are cut say nothing."""
    wide = console.options.update(max_width=WIDEST)
    width = Measurement.get(console, wide, table).maximum
    Console(file=console.file, width=width).print(table)


def print_table(console: Console, table: Table) -> None:
    """Print a table in the width of the terminal; what is no terminal gets it whole, so that
    every word of it can be found."""
    if console.is_terminal:
        console.print(table)
    else:
        print_whole(console, table)


def print_results(
    console: Console, scores: Sequence[ScoreRow], stage_runs: Sequence[StageRunRow]
) -> None:
    """Print what a run came to: scores, comparisons, and rows that it did not find."""
    if scores:
        print_table(console, scores_table(scores))
        if any(score.stage == "report" for score in scores):  # one model has none beside it
            print_table(console, comparisons_table(scores))
    for shortfall in shortfalls(stage_runs):
        console.print(Text(shortfall, style="yellow"), soft_wrap=True)


def run_column(run_ids: Iterable[str]) -> Column:
    """The ids of runs, which are copied: whole on one line where the terminal has room for it."""
    width = max((len(run_id) for run_id in run_ids), default=0)
    return Column("run", overflow="fold", width=max(width, len("run")))


def runs_table(runs: Sequence[RunRow], scores: Iterable[ScoreRow]) -> Table:
    """Scores, owners and tags have a column where any run has one: room is short."""
    found = main_scores(scores)
    more = [name for name in ("owner", "tags") if any(getattr(run, name) for run in runs)]
    if found:
        more.insert(0, "score")
    table = Table(
        run_column(run.id for run in runs),
        Column("state", no_wrap=True),
        *columns("recipe", "seed", "started", "took", *more),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for run in runs:
        started = run.started_at or run.created_at
        others = {"score": found.get(run.id, ""), "owner": run.owner, "tags": " ".join(run.tags)}
        table.add_row(
            Text(run.id), Text(run.state, style=STATE_STYLE[run.state]),
            f"{run.name} {run.recipe_digest[:6]}", str(run.seed),
            f"{started.astimezone():%Y-%m-%d %H:%M}", duration(run.seconds),
            *(Text(others[name]) for name in more),
        )  # fmt: skip
    return table


def main_scores(scores: Iterable[ScoreRow]) -> dict[str, str]:
    """Of each run the last model and, in per cent, the mean over its tasks of the metric that each
    is known by: `dpo 41.2`; with what its replies lack, where it is much."""
    found = {}
    for run_id, models in headlines(scores).items():
        last, headline = list(models.items())[-1]
        caveat = f" ({headline.caveat})" if headline.caveat else ""
        found[run_id] = f"{last} {100 * headline.value:.1f}{caveat}"
    return found


def stages_table(stages: Iterable[StageRunRow]) -> Table:
    table = Table(*columns("stage", "state", "took", "artifacts"))
    for stage in stages:
        state = "reused" if stage.reused_from else str(stage.state)
        outputs = "  ".join(f"{name} {digest[:12]}" for name, digest in stage.outputs.items())
        table.add_row(
            Text(stage.node), Text(state, style=STATE_STYLE[stage.state]),
            "" if stage.reused_from else duration(stage.seconds), outputs,
        )  # fmt: skip
    return table


def shortfalls(stage_runs: Sequence[StageRunRow]) -> list[str]:
    """What stages found fewer rows of than the recipe asks for, in words."""
    found = []
    for stage in stage_runs:
        for name, value in stage.metrics.items():
            of, _, kind = name.rpartition("/")
            if kind == "missing" and value:
                which = of or f"its sources (caravan artifact get {stage.run_id}:mix/report)"
                found.append(
                    f"{stage.node}: {value:,.0f} rows fewer than the recipe asks for, of {which}"
                )
    return found


def comparisons_table(scores: Sequence[ScoreRow]) -> Table:
    """What the report stage compares: win rates, and differences between stages."""
    table = Table(
        *columns("comparison", "metric", "%, 95 % interval", "n"), title="Stage against stage"
    )
    for score in scores:
        if score.stage == "report":
            table.add_row(Text(score.task), Text(score.metric), score_cell(score), str(score.n))
    return table


def scores_table(scores: Sequence[ScoreRow]) -> Table:
    """Tasks down, models across; values with their 95 % confidence intervals.

    Shares are in per cent; a judge's mean rating is from 1 to 5.
    """
    scores = [score for score in scores if score.stage != "report"]
    rows = list(dict.fromkeys((score.task, score.metric) for score in scores))
    found = {(s.task, s.metric, model_of(s.node) or s.node): s for s in scores}
    models = in_order(model for _, _, model in found)
    table = Table(*columns("task", "metric", *models, "n"), title="Scores, 95 % intervals")
    for task, metric in rows:
        cells = [found.get((task, metric, model)) for model in models]
        table.add_row(
            Text(task), Text(metric), *(score_cell(score) for score in cells),
            str(next(score.n for score in cells if score)),
        )  # fmt: skip
    return table


def score_cell(score: ScoreRow | None) -> Text:
    if score is None:
        return Text("")
    scale, digits = scale_of(score.metric)
    text = Text(f"{scale * score.value:.{digits}f}")
    if score.metric == "difference" and (same := without_spread(score, text.plain)):
        return Text(same)
    interval = f" [{scale * score.low:.{digits}f}, {scale * score.high:.{digits}f}]"
    text.append(interval, style="dim")
    if caveat := lacking(score):
        text.append(f" ({caveat})", style="yellow")
    return text
