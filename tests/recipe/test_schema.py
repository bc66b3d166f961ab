"""The JSON schema of recipes, which editors read."""

from __future__ import annotations

import json

from jsonschema import Draft202012Validator

from caravan.recipe.io import canonical_json, json_schema, parse_recipe
from small_recipe import SMALL


def test_the_schema_says_no_to_what_the_recipe_refuses() -> None:
    validator = Draft202012Validator(json_schema())
    good = json.loads(canonical_json(parse_recipe(SMALL)))
    assert validator.is_valid(good)
    assert not validator.is_valid(good | {"surprise": 1})
    assert not validator.is_valid({"name": "x"})
    assert validator.is_valid({"extends": "base.yaml", "name": "x", "sft": {"max_length": 9}})
    assert not validator.is_valid({"extends": "base.yaml", "sft": {"max_lenth": 9}})


FIRST = (
    "ImportedBase", "CurateConfig", "Source", "FileSource", "HubSource", "MixConfig", "SFTConfig",
    "DPOConfig", "RewardModelConfig", "RLVRConfig", "GRPOConfig", "PPOConfig", "EvaluateConfig",
    "EvalTask", "Sampling", "Resources",
)  # fmt: skip


def test_every_field_of_a_first_recipe_is_described_in_the_schema() -> None:
    definitions = json_schema()["$defs"]
    bare = [
        f"{name}.{field}"
        for name in FIRST
        for field, shown in definitions[name]["properties"].items()
        if field != "kind" and not shown.get("description")
    ]
    assert not bare


def test_a_field_with_another_default_is_described_as_in_its_parent() -> None:
    definitions = json_schema()["$defs"]
    described = {
        definitions[name]["properties"]["learning_rate"]["description"]
        for name in ("SFTConfig", "DPOConfig", "RewardModelConfig", "RLVRConfig")
    }
    assert described == {"Of AdamW, at its highest."}
    assert definitions["SFTConfig"]["properties"]["learning_rate"]["default"] == 5e-6


def test_the_schema_has_the_names_that_there_are() -> None:
    definitions = json_schema()["$defs"]
    task = definitions["EvalTask"]["properties"]
    assert {"gsm8k", "verify", "pocket-math"} <= set(task["task"]["examples"])
    assert {"gsm8k", "code"} <= set(task["verifier"]["examples"])
    assert {"gsm8k", "code"} <= set(definitions["Source"]["properties"]["verifier"]["examples"])


def test_every_documented_field_is_described_in_the_schema() -> None:
    fields = json_schema()["$defs"]["RLVRConfig"]["properties"]
    assert fields["beta"]["description"] == "KL penalty towards the reference policy."
