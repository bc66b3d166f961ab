"""Run a recipe with every combination of some values, and compare what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caravan.evals.models import in_order, model_of
from caravan.registry import Registry, ScoreRow
from caravan.settings import Settings, load_settings
from caravan_pipelines.cli.common import find_recipe, open_registry
from caravan_pipelines.cli.run import execute
from caravan_pipelines.cli.tables import columns, run_column, score_cell
from caravan_pipelines.launch import kubeflow, local
from caravan_pipelines.sweep import Member, new_tag, sweep_members


def sweep(
    recipe: Path, axes: list[str], overrides: list[str], tags: tuple[str, ...], *, on_cluster: bool
) -> None:
    path, settings, console = find_recipe(recipe), load_settings(), Console()
    members = sweep_members(path, axes, overrides)
    tags = (*tags, new_tag())
    if on_cluster:
        submitted = kubeflow.launch_together(
            [member.recipe for member in members], settings, recipe_dir=path.parent,
            tags=[(*tags, *member.values) for member in members],
        )  # fmt: skip
        for run_id, member in zip(submitted.run_ids, members, strict=True):
            console.print(Text("  ".join((f"run {run_id}", *member.values))), soft_wrap=True)
        console.print(f"Kubeflow Pipelines: {submitted.link}", highlight=False, soft_wrap=True)
        return
    run_ids = []
    for member in members:
        console.print(Text("  ".join(member.values), style="bold"))
        run_ids.append(_run(member, path.parent, (*tags, *member.values), settings))
    with open_registry(settings) as registry:
        console.print(sweep_table(members, run_ids, registry))


def _run(member: Member, recipe_dir: Path, tags: tuple[str, ...], settings: Settings) -> str:
    run_id = local.create_run(member.recipe, settings, recipe_dir=recipe_dir, tags=tags)
    execute(run_id, settings, detach=False)
    return run_id


def sweep_table(members: Sequence[Member], run_ids: Sequence[str], registry: Registry) -> Table:
    """The scores of each run's last model, by the metric that a task is known by."""
    table = Table(
        run_column(run_ids), *columns("values"), title="Scores of the last model, 95 % intervals"
    )
    rows = []
    for member, run_id in zip(members, run_ids, strict=True):
        scores = [s for s in registry.scores(run_id) if model_of(s.node)]
        last = in_order(model_of(s.node) or "" for s in scores)[-1:]
        first: dict[str, ScoreRow] = {}
        for score in scores:
            if model_of(score.node) in last:
                first.setdefault(score.task, score)
        rows.append((run_id, member, first))
    tasks = list(dict.fromkeys(task for _, _, found in rows for task in found))
    for task in tasks:
        table.add_column(task, overflow="fold")
    for run_id, member, found in rows:
        cells = [score_cell(found.get(task)) for task in tasks]
        table.add_row(Text(run_id), Text("\n".join(member.values)), *cells)
    return table
