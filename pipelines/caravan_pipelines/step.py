"""What every component does in its process: find its node in the recipe, and `execute` it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from caravan.errors import CaravanError, StageError
from caravan.garbage import collect_rarely
from caravan.operations.logs import configure_logging
from caravan.operations.traces import stage_span
from caravan.orphans import die_with_parent
from caravan.registry import StageRunRow
from caravan.settings import Settings, load_settings
from caravan.stages.candidates import Selection, selection_of
from caravan.stages.execute import execute
from caravan.stages.key import stage_seed
from caravan_pipelines.graph import Node, find_node
from caravan_pipelines.launch.files import unpack_files
from caravan_pipelines.on_nodes import wait_for_job
from caravan_pipelines.page import stage_page
from caravan_pipelines.run_data import open_registry, recipe_of, run_of


class Metrics(Protocol):
    """The part of `kfp.dsl.Metrics` that is used."""

    def log_metric(self, metric: str, value: float) -> None: ...


class Markdown(Protocol):
    """The part of `kfp.dsl.Markdown` that is used."""

    path: str


def run_step(
    run: str,
    node: str,
    inputs: Mapping[str, str],
    metrics: Metrics | None,
    summary: Markdown,
) -> dict[str, str]:
    """Execute one stage of a run.

    Args:
        run: id of the run.
        node: name of the stage run.
        inputs: digest of each input artifact; an empty one is left out.
        metrics: KFP's, which get the stage's final numbers.
        summary: KFP's Markdown page of the step, to which the stage is added.

    Returns:
        Digest of each output artifact.
    """
    die_with_parent()
    collect_rarely()
    settings = load_settings()
    configure_logging(settings.log_format, run=run, stage=node)
    given = {name: digest for name, digest in inputs.items() if digest}
    try:
        _refuse_hopeless(run, node, settings.max_failures)
        found = find_node(recipe_of(run), node)
        with stage_span(run, node, {"caravan.recipe": run_of(run).name}):
            outputs = _work(found, run, given, settings)
    except CaravanError as error:  # said in a sentence; the registry has the traceback
        raise SystemExit(f"error: {error}") from None
    with open_registry() as registry:
        stage = next(s for s in registry.stage_runs(run) if s.node == node)
    _show(stage, metrics, summary, settings.dashboard_url)
    return outputs


def _work(node: Node, run: str, inputs: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The stage's outputs: made here, or by a job on several nodes."""
    recipe_dir = unpack_files(run_of(run).recipe_dir, settings)
    selection = _selection(node, run, recipe_dir)
    if node.resources.nodes > 1 and settings.pod_name:
        return wait_for_job(node, run, inputs, settings, recipe_dir=recipe_dir, selection=selection)
    return execute(
        node.name, node.stage, node.config, inputs, run, settings, recipe_dir=recipe_dir,
        selection=selection,
    )  # fmt: skip


def _selection(node: Node, run: str, recipe_dir: Path) -> Selection | None:
    """What selects from the outputs of `node`."""
    recipe = recipe_of(run)
    if node.name not in recipe.selections:
        return None
    found = find_node(recipe, selection_of(node.name))
    seed = stage_seed(run_of(run).seed, found.name)
    return Selection(found.stage, found.config, seed, recipe_dir)


def _refuse_hopeless(run: str, node: str, max_failures: int) -> None:
    with open_registry() as registry:
        stage = next((s for s in registry.stage_runs(run) if s.node == node), None)
    if max_failures and stage and stage.failures >= max_failures:
        reason = (stage.error or "").splitlines()[:1]
        raise StageError(
            f"{node} has failed {stage.failures} times and is not tried again: {''.join(reason)}"
        )


def _show(
    stage: StageRunRow, metrics: Metrics | None, summary: Markdown, dashboard_url: str
) -> None:
    if metrics is not None:
        for name, value in stage.metrics.items():
            metrics.log_metric(name, value)
    page = Path(summary.path)
    page.parent.mkdir(parents=True, exist_ok=True)
    with page.open("a", encoding="utf-8") as file:
        file.write(stage_page(stage, dashboard_url))


def pool_artifact(run: str, member: str) -> str:
    """Which of the run's own models a pool member is: `base`, `sft`, or empty for an engine."""
    respond = recipe_of(run).respond
    assert respond is not None, "only recipes that respond have a pool"
    return next(m.artifact for m in respond.pool if m.name == member) or ""


def judge_inputs(
    run: str, prompts: str, members: Sequence[str], completions: Sequence[str]
) -> dict[str, str]:
    """The inputs of `judge`: completions in the order of the pool, however they were made."""
    respond = recipe_of(run).respond
    assert respond is not None, "only recipes that respond are judged"
    of_member = dict(zip(members, completions, strict=True))
    digests = [of_member[member.name] for member in respond.pool]
    return {"prompts": prompts} | {f"completions-{i}": d for i, d in enumerate(digests)}
