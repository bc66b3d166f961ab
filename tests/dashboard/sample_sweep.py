"""A sweep, written through the real registry, for its page to show."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from itertools import product

from caravan.recipe.io import load_recipe, recipe_digest
from caravan.registry import Registry, State
from caravan.stages.context import Score
from caravan_command import MINI

QUESTIONS = 200
LUCK = 0.015
TASKS = {"math": 0.45, "constraints": 0.6, "knowledge": 0.3}


def write_sweep(
    registry: Registry,
    tag: str,
    gain: Mapping[str, Mapping[str, float]],
    seeds: Iterable[int] = (17, 18, 19),
    *,
    failed: Iterable[tuple[tuple[str, ...], int]] = (),
) -> list[str]:
    """Runs over the axes of `gain`, a field with what each of its values adds to every score.

    Args:
        failed: Arms, as their values, with the seed of which the run failed.
    """
    run_ids = []
    for values in product(*gain.values()):
        for seed in seeds:
            overrides = [f"{path}={v}" for path, v in zip(gain, values, strict=True)]
            recipe = load_recipe(MINI, [f"seed={seed}", *overrides])
            run_id = registry.create_run(
                recipe.model_dump(mode="json"), name=recipe.name, seed=seed,
                recipe_digest=recipe_digest(recipe), owner="ann", tags=[tag],
            )  # fmt: skip
            run_ids.append(run_id)
            if (values, seed) in tuple(failed):
                registry.update_run_state(run_id, State.FAILED, error="stage dpo failed")
                continue
            better = sum(gain[path][v] for path, v in zip(gain, values, strict=True))
            for model, more in (("sft", 0.0), ("dpo", better)):
                stage = registry.open_stage_run(run_id, f"evaluate-{model}", "evaluate", run_id)
                registry.add_scores(stage.id, scores(values, seed, more))
                registry.finish_stage_run(stage.id, State.SUCCEEDED)
            registry.update_run_state(run_id, State.SUCCEEDED)
    return run_ids


def scores(values: tuple[str, ...], seed: int, more: float) -> list[Score]:
    draw = random.Random(f"{values}/{seed}")
    found = []
    for task, level in TASKS.items():
        hard = random.Random(task)
        share = level + more + draw.gauss(0, LUCK)
        right = {str(i): float(hard.random() * 0.8 + 0.2 * draw.random() < share)
                 for i in range(QUESTIONS)}  # fmt: skip
        mean = sum(right.values()) / QUESTIONS
        found.append(Score(task, "accuracy", mean, mean - 0.05, mean + 0.05, QUESTIONS, "dev",
                           right))  # fmt: skip
    return found


BETA = {"dpo.beta": {"1": 0.0, "2": 0.01, "5": 0.13, "10": -0.1}}
TWO_AXES = {"dpo.beta": {"1": 0.0, "2": 0.02, "5": 0.1},
            "dpo.learning_rate": {"1e-6": 0.0, "5e-6": 0.12}}  # fmt: skip
