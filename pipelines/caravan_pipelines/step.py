"""What every component does in its process: find its node in the recipe, and `execute` it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from caravan.errors import CaravanError, StageError
from caravan.recipe import Recipe
from caravan.registry import Registry, RunRow, StageRunRow
from caravan.settings import load_settings
from caravan.stages.execute import die_with_parent, execute, patiently
from caravan_pipelines.graph import find_node
from caravan_pipelines.launch.files import unpack_files
from caravan_pipelines.page import stage_page


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
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = load_settings()
    given = {name: digest for name, digest in inputs.items() if digest}
    try:
        _refuse_hopeless(run, node, settings.max_failures)
        found = find_node(recipe_of(run), node)
        outputs = execute(
            found.name, found.stage, found.config, given, run, settings,
            recipe_dir=unpack_files(_run(run).recipe_dir, settings),
        )  # fmt: skip
    except CaravanError as error:  # said in a sentence; the registry has the traceback
        raise SystemExit(f"error: {error}") from None
    with _registry() as registry:
        stage = next(s for s in registry.stage_runs(run) if s.node == node)
    _show(stage, metrics, summary, settings.dashboard_url)
    return outputs


def _refuse_hopeless(run: str, node: str, max_failures: int) -> None:
    with _registry() as registry:
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


def _registry() -> Registry:
    settings = load_settings()
    return patiently(
        lambda: Registry(
            settings.resolved_registry_url, stale_after_seconds=settings.stale_after_seconds
        ),
        settings.patience_seconds,
    )


@lru_cache(maxsize=1)
def _run(run: str) -> RunRow:
    with _registry() as registry:
        return registry.get_run(run)


@lru_cache(maxsize=1)
def recipe_of(run: str) -> Recipe:
    """The recipe of a run, as the registry has it."""
    return Recipe.model_validate(_run(run).recipe)


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
