"""Follow a run live: one line a stage, a bar for the ones that tell how far they are, and under a
training stage its numbers. Where there is no terminal, lines now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from caravan.errors import RegistryUnavailableError
from caravan.recipe import Recipe
from caravan.registry import Registry, StageRunRow, State
from caravan_pipelines.cli.tables import STATE_STYLE, duration
from caravan_pipelines.cli.training import training
from caravan_pipelines.graph import stage_graph

POLL_SECONDS = 0.5
LINE_SECONDS = 15.0
"""Between two lines of one stage, at least; of long ones a twentieth of what they have taken."""
LONGEST_LINE_SECONDS = 600.0
INDENT = (0, 0, 0, 4)
SPARE_ROWS = 2
"""For numbers of training that take a second row."""


@dataclass(frozen=True)
class Seen:
    """A stage run, and how its training goes, in words."""

    stage: StageRunRow
    training: str


def follow(
    recipe: Recipe,
    run_id: str,
    registry: Registry,
    has_ended: Callable[[], bool],
    console: Console,
    patience_seconds: float,
    since: datetime,
) -> None:
    """Show the stages of a run until it has ended.

    What ended before `since` is of an earlier attempt, and may be done again.

    Raises:
        RegistryUnavailableError: the registry has been away for longer than `patience_seconds`.
    """
    known = _KnownStages(run_id, registry, patience_seconds)
    if console.is_terminal:
        nodes = [node.name for node in stage_graph(recipe)]
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            while not has_ended():
                live.update(_picture(nodes, known.now(), console.height))
                time.sleep(POLL_SECONDS)
        return
    lines = Lines(console)
    while True:
        ended = has_ended()
        for seen in known.now():
            stage = seen.stage
            if stage.finished_at is None:
                lines.going(seen)
            # A stage that a stopped run left open may start again: only what succeeded is final.
            elif stage.finished_at >= since and (ended or stage.state is State.SUCCEEDED):
                lines.end(seen)
        if ended:
            return
        time.sleep(POLL_SECONDS)


class Lines:
    """Tells how stages go where there is no terminal, so that a log tells how it went."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ended: set[tuple[int, int]] = set()
        self._told: dict[tuple[int, int], float] = {}
        """When a training stage was last told of, by stage run and attempt."""
        self._warned: dict[int, str] = {}
        """What was last told of the warnings of a stage run."""

    def going(self, seen: Seen) -> None:
        """Tell of a stage that trains, if it is time to."""
        stage, now = seen.stage, time.monotonic()
        last = self._told.setdefault((stage.id, stage.attempt), now)
        pause = min(max(LINE_SECONDS, (stage.seconds or 0) / 20), LONGEST_LINE_SECONDS)
        if (seen.training or self._has_warned(seen)) and now - last >= pause:
            self._told[stage.id, stage.attempt] = now
            self._tell(seen, str(stage.state))

    def end(self, seen: Seen, why: str = "") -> None:
        """Tell how a stage ended, once."""
        stage = seen.stage
        if (stage.id, stage.attempt) not in self._ended:
            self._ended.add((stage.id, stage.attempt))
            self._tell(seen, str(stage.state), why)

    def _tell(self, seen: Seen, state: str, why: str = "") -> None:
        stage = seen.stage
        words = "(reused)" if stage.reused_from else seen.training
        line = f"{stage.node:<24} {state:<10} {duration(stage.seconds):>8}  {words}  {why}"
        self._print(line.rstrip())
        if self._has_warned(seen):
            self._print(f"{stage.node}: {stage.warned}")
        self._warned[stage.id] = stage.warned

    def _has_warned(self, seen: Seen) -> bool:
        return self._warned.get(seen.stage.id, "") != seen.stage.warned

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _KnownStages:
    """The stage runs of a run, as the registry told them when it last answered."""

    def __init__(self, run_id: str, registry: Registry, patience_seconds: float) -> None:
        self._run_id, self._registry, self._patience = run_id, registry, patience_seconds
        self._seen: list[Seen] = []
        self._answered = time.monotonic()

    def now(self) -> list[Seen]:
        try:
            self._seen = look(self._registry.stage_runs(self._run_id), self._registry, self._seen)
            self._answered = time.monotonic()
        except RegistryUnavailableError:
            if time.monotonic() - self._answered > self._patience:
                raise
        return self._seen


def look(
    stage_runs: Iterable[StageRunRow], registry: Registry, before: Iterable[Seen] = ()
) -> list[Seen]:
    """How stages are; the training of one that had ended `before` is not asked for again."""
    ended = [seen for seen in before if seen.stage.state.finished]
    return [
        next((seen for seen in ended if seen.stage == stage), None)
        or Seen(stage, training(stage, registry))
        for stage in stage_runs
    ]


def _picture(nodes: list[str], seen: Iterable[Seen], height: int) -> RenderableType:
    """All stages; where the terminal is too low for them, those that ended first are left out."""
    by_node = {one.stage.node: one for one in seen}
    width = max(len(node) for node in nodes)
    rows: list[RenderableType] = []
    ended: list[int] = []
    """Rows of what has ended."""
    for node in nodes:
        one, above = by_node.get(node), len(rows)
        rows.append(_row(node, one.stage if one else None, width))
        if one and one.training and one.stage.state is State.RUNNING:
            rows.append(Padding(Text(one.training), INDENT))
        if one and one.stage.warned:  # on one line; `caravan show` has the whole of it
            warned = Text(one.stage.warned, "yellow", no_wrap=True, overflow="ellipsis")
            rows.append(Padding(warned, INDENT))
        if one and one.stage.state.finished:
            ended += range(above, len(rows))
    left_out = ended[: max(0, len(rows) + SPARE_ROWS - height)]
    return Group(*(row for number, row in enumerate(rows) if number not in left_out))


def _row(node: str, stage: StageRunRow | None, width: int) -> Table:
    table = Table.grid(
        Column(width=width), Column(width=11), Column(width=12, justify="right"), Column(width=30),
        padding=(0, 2),
    )  # fmt: skip
    if stage is None:
        table.add_row(Text(node, style="dim"), Text("waiting", style="dim"))
        return table
    running = stage.state is State.RUNNING
    bar: RenderableType = ""
    if running and stage.progress_total:
        bar = ProgressBar(stage.progress_total, stage.progress_done, width=30)
    style = STATE_STYLE[stage.state]
    state = "reused" if stage.reused_from else str(stage.state)
    shown = Spinner("dots", text=Text(state, style=style)) if running else Text(state, style=style)
    table.add_row(Text(node), shown, duration(stage.seconds), bar)
    return table
