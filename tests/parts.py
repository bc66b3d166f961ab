"""Recipes of some stages only, and the nodes after `base` that each has."""

from __future__ import annotations

from pathlib import Path

from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe

POCKET = Path(__file__).resolve().parents[1] / "pipelines" / "recipes" / "pocket.yaml"
OWN_PAIRS = {
    "sources": [
        {"name": "mine", "origin": {"kind": "files", "paths": ["p.jsonl"]}, "license": "Apache-2.0",
         "skill": "chat"}
    ]
}  # fmt: skip
POOL_OF_BASE = {
    "sample_prompts": {"unused_in_sft": 10},
    "respond": {"pool": [{"name": "own", "artifact": "base"}]},
    "judge": {"judge": {"kind": "program"}},
    "pair": {},
    "dpo": {},
}
DATA = ["curate", "decontaminate"]
PARTS: dict[str, tuple[dict[str, object], list[str]]] = {
    "look": ({}, ["evaluate-base", "report"]),
    "prefer": (
        {"pair": OWN_PAIRS, "dpo": {}},
        ["pair", "reference", "dpo", "evaluate-base", "evaluate-dpo", "report"],
    ),
    "reward": (
        {"pair": OWN_PAIRS, "reward_model": {}, "evaluate": None},
        ["pair", "reward-model"],
    ),
    "reinforce": (
        {"rlvr": {"algorithm": {"kind": "grpo"}}},
        [*DATA, "rlvr", "evaluate-base", "evaluate-rlvr", "report"],
    ),
    "please": (
        {
            "reward_model": {"model_name_or_path": "reward-model"},
            "rlvr": {
                "algorithm": {"kind": "grpo"}, "prompts": "all", "reward_model_multiplier": 1.0,
            },
        },
        [*DATA, "reward-model", "rlvr", "evaluate-base", "evaluate-rlvr", "report"],
    ),
    "pool": (
        POOL_OF_BASE,
        [*DATA, "sample-prompts", "respond-own", "judge", "pair", "reference", "dpo",
         "evaluate-base", "evaluate-dpo", "report"],
    ),
    "teach": ({"sft": {}, "evaluate": None}, [*DATA, "mix", "sft"]),
}  # fmt: skip


def part(sections: dict[str, object]) -> Recipe:
    """The pocket recipe with these sections only, beside base model, sources and evaluation."""
    whole = load_recipe(POCKET).model_dump()
    kept = {name: whole[name] for name in ("name", "base_model", "curate", "evaluate")}
    return Recipe.model_validate(kept | sections)
