"""How many models of the pool answer each prompt."""

from collections import Counter
from pathlib import Path

import pytest

from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe
from caravan.stages.configs import RespondStageConfig
from caravan_pipelines.graph import stage_graph

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "tulu3-8b.yaml"
PROMPTS = [f"source/{n}" for n in range(300)]


def members(recipe: Recipe) -> list[RespondStageConfig]:
    configs = [node.config for node in stage_graph(recipe) if node.stage == "respond"]
    return [config for config in configs if isinstance(config, RespondStageConfig)]


@pytest.fixture(scope="module")
def pool() -> list[RespondStageConfig]:
    return members(load_recipe(RECIPE))


def test_four_models_answer_each_prompt_and_the_own_one_is_always_there(
    pool: list[RespondStageConfig],
) -> None:
    for prompt in PROMPTS:
        answering = [c.member.name for c in pool if c.answers(prompt)]
        assert len(answering) == 4
        assert "own-sft" in answering


def test_every_model_gets_its_share(pool: list[RespondStageConfig]) -> None:
    counts = Counter(c.member.name for c in pool for p in PROMPTS if c.answers(p))
    del counts["own-sft"]
    assert len(counts) == 22
    assert min(counts.values()) > 300 * 3 / 22 / 2


def test_without_a_number_all_answer_all() -> None:
    everyone = members(load_recipe(RECIPE, ["respond.models_per_prompt=null"]))
    assert all(config.answers(prompt) for config in everyone for prompt in PROMPTS)


def test_a_member_may_ask_for_resources_of_its_own(pool: list[RespondStageConfig]) -> None:
    gpus = {config.member.name: config.resources.gpus for config in pool}
    assert (gpus["gpt-4o"], gpus["falcon-7b"], gpus["llama-3.1-70b"]) == (0, 2, 4)
