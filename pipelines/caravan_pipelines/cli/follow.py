"""Follow a run live: one line a stage, with a bar for the ones that tell how far they are."""

from __future__ import annotations

import subprocess
import time
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from caravan.errors import RegistryUnavailableError
from caravan.recipe import Recipe
from caravan.registry import Registry, StageRunRow, State
from caravan_pipelines.cli.tables import STATE_STYLE, duration
from caravan_pipelines.graph import stage_graph

POLL_SECONDS = 0.5


def follow(
    recipe: Recipe,
    run_id: str,
    registry: Registry,
    process: subprocess.Popen[bytes],
    console: Console,
    patience_seconds: float,
    since: datetime,
) -> None:
    """Show the stages of a run until the process that executes it ends.

    What ended before `since` is of an earlier attempt, and may be done again.

    Raises:
        RegistryUnavailableError: the registry has been away for longer than `patience_seconds`.
    """
    known = _KnownStages(run_id, registry, patience_seconds)
    nodes = [node.name for node in stage_graph(recipe)]
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            while process.poll() is None:
                live.update(_picture(nodes, known.now()))
                time.sleep(POLL_SECONDS)
        return
    told: set[int] = set()
    while True:
        ended = process.poll() is not None
        for stage in known.now():
            ended_now = stage.finished_at is not None and stage.finished_at >= since
            if ended_now and stage.id not in told and _fresh(stage, process):
                told.add(stage.id)
                note = "  (reused)" if stage.reused_from else ""
                console.print(
                    f"{stage.node:<24} {stage.state:<10} {duration(stage.seconds):>8}{note}",
                    highlight=False,
                )
        if ended:
            return
        time.sleep(POLL_SECONDS)


class _KnownStages:
    """The stage runs of a run, as the registry told them when it last answered."""

    def __init__(self, run_id: str, registry: Registry, patience_seconds: float) -> None:
        self._run_id, self._registry, self._patience = run_id, registry, patience_seconds
        self._stage_runs: list[StageRunRow] = []
        self._answered = time.monotonic()

    def now(self) -> list[StageRunRow]:
        try:
            self._stage_runs = self._registry.stage_runs(self._run_id)
            self._answered = time.monotonic()
        except RegistryUnavailableError:
            if time.monotonic() - self._answered > self._patience:
                raise
        return self._stage_runs


def _fresh(stage: StageRunRow, process: subprocess.Popen[bytes]) -> bool:
    """Whether the state is final: a stage that a stopped run left open may start again."""
    return stage.state is State.SUCCEEDED or process.poll() is not None


def _picture(nodes: list[str], stage_runs: list[StageRunRow]) -> RenderableType:
    by_node = {stage.node: stage for stage in stage_runs}
    table = Table.grid(padding=(0, 2))
    for node in nodes:
        stage = by_node.get(node)
        if stage is None:
            table.add_row(Text(node, style="dim"), Text("waiting", style="dim"), "", "")
            continue
        running = stage.state is State.RUNNING
        bar: RenderableType = ""
        if running and stage.progress_total:
            bar = ProgressBar(stage.progress_total, stage.progress_done, width=30)
        state = (
            Spinner("dots", text=Text("running", style="cyan"))
            if running
            else Text(
                "reused" if stage.reused_from else str(stage.state), style=STATE_STYLE[stage.state]
            )
        )
        table.add_row(Text(node), state, Text(duration(stage.seconds), justify="right"), bar)
    return Group(table)
