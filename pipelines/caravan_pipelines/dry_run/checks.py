"""Check everything that can be known before the first step of a run.

caravan run RECIPE --dry-run
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from caravan.errors import CaravanError, below
from caravan.recipe import (
    ImportedBase,
    OpenAIEngineConfig,
    PretrainedBase,
    Recipe,
    TrainingConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.recipe.checks import check_tasks
from caravan.settings import Settings
from caravan_pipelines.dry_run import data, hub, models, needs, prompts, training
from caravan_pipelines.dry_run.seen import NothingToCheckError, Seen
from caravan_pipelines.graph import stage_graph

Check = tuple[str, Callable[[], str]]


def dry_run(recipe: Recipe, recipe_dir: Path, settings: Settings, console: Console) -> None:
    """Run every check, tell how each went, and fail if one failed.

    Raises:
        CaravanError: at least one check failed.
    """

    def tell(state: str, style: str, says: str) -> None:
        console.print(Text.assemble((f"{state:<8}", style), says), soft_wrap=True)

    seen = Seen(recipe, recipe_dir)
    with hub.local_cache_where_away(recipe, recipe_dir) as away:
        if away:
            tell(
                "skipped", "yellow", f"hub: {away}; what is of the hub has to be in its local cache"
            )
        for title, check in _checks(seen, settings):
            try:
                tell("ok", "green", f"{title}: {check()}")
            except NothingToCheckError as reason:
                tell("skipped", "yellow", f"{title}: {reason}")
            except CaravanError as error:
                seen.failed.append(title)
                tell("failed", "red", f"{title}: {below(title, error)}")
            except Exception as error:
                # Not foreseen, but the other checks still have something to tell.
                seen.failed.append(title)
                tell("failed", "red", f"{title}: {type(error).__name__}: {error}")
    if seen.failed:
        raise CaravanError(f"{len(seen.failed)} of the checks failed; nothing was started")


def _checks(seen: Seen, settings: Settings) -> Iterator[Check]:
    from caravan.stages.curate import Filters

    recipe, recipe_dir = seen.recipe, seen.recipe_dir
    yield "recipe", lambda: _recipe(recipe)
    yield "registry", lambda: needs.registry(settings)
    yield "store", lambda: needs.store(settings)
    for name, engine in recipe.engines.items():
        if isinstance(engine, OpenAIEngineConfig):
            yield f"engine {name}", partial(needs.has_key, engine)
        if isinstance(engine, TransformersEngineConfig | VLLMEngineConfig):
            yield f"engine {name}", partial(needs.asked, name, engine, recipe, recipe_dir)
    if recipe.verifiers:
        yield "verifiers", lambda: needs.verifiers(recipe, recipe_dir)
    if recipe.sources or recipe.pair_sources:
        yield "licences", lambda: _licences(recipe)
    if recipe.curate:
        filters = Filters(recipe.curate, [])
        for source in recipe.sources:
            yield f"source {source.name}", partial(data.source_rows, source, filters, seen)
    for of_pairs in recipe.pair_sources:
        yield f"pairs {of_pairs.name}", partial(data.source_pairs, of_pairs, seen)
    if recipe.rlvr:
        yield "rlvr", lambda: prompts.of_rlvr(seen)
    for task in recipe.tasks:
        yield f"task {task.name}", partial(data.task_questions, task, seen)
    if isinstance(recipe.base_model, ImportedBase):
        base = recipe.base_model
        yield "base model", lambda: models.base_model(base, recipe_dir)
    if recipe.reward_model and recipe.reward_model.model_name_or_path:
        existing = ImportedBase(model_name_or_path=recipe.reward_model.model_name_or_path)
        yield "reward model", lambda: models.reward_model(existing, recipe, recipe_dir)
    if trained := _trained(recipe):
        yield "lengths", lambda: models.lengths(trained, recipe, recipe_dir)
    for trains, config in trained.items():
        if config.lora:
            yield f"adapters of {trains}", partial(models.adapters, trains, config.lora, seen)
    if sft := recipe.sft:
        yield "template and masks", lambda: training.masks(sft, seen)
    if recipe.tasks or recipe.respond:
        yield "prompts", lambda: prompts.lengths(seen, trains=bool(trained))
    if recipe.pair_sources:
        for name in ("dpo", "reward_model"):
            if stage := trained.get(name):
                yield f"masks of pairs for {name}", partial(training.pair_masks, stage, seen)
    if trained:
        first = next(iter(trained.values()))
        yield "memory", lambda: models.memory(first, recipe, recipe_dir)
    if trained or recipe.evaluate:
        yield "packages", lambda: needs.packages(trained, recipe)
    if isinstance(recipe.base_model, PretrainedBase):
        yield "two steps of base", lambda: training.two_steps_of("base", recipe.base_model)
    if sft:
        yield "two steps of sft", lambda: training.two_steps_of("sft", sft, seen.answered)
    if dpo := recipe.dpo:
        yield "two steps of dpo", lambda: training.two_steps_of("dpo", dpo, seen.pairs)
    if reward := trained.get("reward_model"):
        yield (
            "two steps of reward-model",
            lambda: training.two_steps_of("reward_model", reward, seen.pairs),
        )


def _recipe(recipe: Recipe) -> str:
    check_tasks(recipe)  # files are looked for with each task
    return f"{recipe.name}, {len(stage_graph(recipe))} stages"


def _trained(recipe: Recipe) -> dict[str, TrainingConfig]:
    """The stages that train the base model or one made from it, in their order."""
    names = ("sft", "dpo", "reward_model", "rlvr")
    trained = {name: stage for name in names if (stage := getattr(recipe, name)) is not None}
    if recipe.reward_model and recipe.reward_model.model_name_or_path:
        del trained["reward_model"]
    return trained


def _licences(recipe: Recipe) -> str:
    return ", ".join(
        sorted({s.license for s in recipe.sources} | {p.license for p in recipe.pair_sources})
    )
