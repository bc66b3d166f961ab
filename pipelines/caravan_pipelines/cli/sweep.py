"""Run a recipe with every combination of some values, and compare what comes out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caravan.errors import CaravanError
from caravan.evals.models import in_order, model_of
from caravan.registry import Registry, ScoreRow, State, open_registry
from caravan.settings import Settings, load_settings
from caravan_pipelines.cli.common import read_recipe
from caravan_pipelines.cli.run import execute
from caravan_pipelines.cli.tables import STATE_STYLE, columns, print_table, run_column, score_cell
from caravan_pipelines.cli.training import ends
from caravan_pipelines.launch import kubeflow, local
from caravan_pipelines.sweep import Member, new_tag, sweep_members


def sweep(
    recipe: Path, axes: list[str], overrides: list[str], tags: tuple[str, ...], *, on_cluster: bool
) -> None:
    settings, console = load_settings(), Console()
    _, directory = read_recipe(recipe, overrides)
    members = sweep_members(lambda values: read_recipe(recipe, values)[0], axes, overrides)
    tags = (*tags, new_tag())
    if on_cluster:
        submitted = kubeflow.launch_together(
            [member.recipe for member in members], settings, recipe_dir=directory,
            tags=[(*tags, *member.values) for member in members],
        )  # fmt: skip
        for run_id, member in zip(submitted.run_ids, members, strict=True):
            console.print(Text("  ".join((f"run {run_id}", *member.values))), soft_wrap=True)
        console.print(f"Kubeflow Pipelines: {submitted.link}", highlight=False, soft_wrap=True)
        return
    runs: list[tuple[str, Member]] = []
    refusal = None
    for member in members:
        console.print(Text("  ".join(member.values), style="bold"), soft_wrap=True)
        try:
            run_id = local.create_run(
                member.recipe, settings, recipe_dir=directory, tags=(*tags, *member.values)
            )
            runs.append((run_id, member))
            execute(run_id, settings, detach=False)
        except SystemExit:  # the run did not succeed, and has said why
            if _state(run_id, settings) is State.CANCELLED:
                break
        except KeyboardInterrupt:  # between two runs
            break
        except CaravanError as error:  # what keeps this member from starting keeps the others too
            refusal = error
            break
    with open_registry(settings) as registry:
        print_table(console, sweep_table(runs, registry))
        if (course := course_table(runs, registry)) is not None:
            print_table(console, course)
        done = [registry.get_run(run_id).state is State.SUCCEEDED for run_id, _ in runs]
    for member in members[len(runs) :]:
        console.print(Text(f"not started: {'  '.join(member.values)}"), soft_wrap=True)
    if refusal is not None:
        raise refusal
    if done != [True] * len(members):
        sys.exit(1)


def _state(run_id: str, settings: Settings) -> State:
    with open_registry(settings) as registry:
        return registry.get_run(run_id).state


def sweep_table(runs: Sequence[tuple[str, Member]], registry: Registry) -> Table:
    """The scores of each run's last model, by the metric that a task is known by."""
    table = Table(
        run_column(run_id for run_id, _ in runs),
        *columns("state", "values"),
        title="Scores of the last model, 95 % intervals",
    )
    rows = []
    for run_id, member in runs:
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
        state = registry.get_run(run_id).state
        table.add_row(
            Text(run_id),
            Text(state, style=STATE_STYLE[state]),
            Text("\n".join(member.values)),
            *cells,
        )
    return table


def course_table(runs: Sequence[tuple[str, Member]], registry: Registry) -> Table | None:
    """What training came to in each run, as far as that differs between them."""
    found = [
        (member, {f"{stage.node} {name}": value for stage in registry.stage_runs(run_id)
                  for name, value in ends(stage, registry).items()})
        for run_id, member in runs
    ]  # fmt: skip
    names = list(dict.fromkeys(name for _, numbers in found for name in numbers))
    names = [n for n in names if len({numbers[n] for _, numbers in found if n in numbers}) > 1]
    if not names:
        return None
    table = Table(*columns("values", *names), title="Training, where it differs")
    for member, numbers in found:
        cells = (f"{numbers[name]:.4g}" if name in numbers else "" for name in names)
        table.add_row(Text("\n".join(member.values)), *cells)
    return table
