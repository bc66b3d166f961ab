"""A small recipe to put mistakes into."""

from __future__ import annotations

from pathlib import Path

import pytest

from caravan.errors import RecipeError
from caravan.recipe.io import parse_recipe

SMALL = """\
name: small
base_model: {kind: imported, model_name_or_path: base}
engines:
  teacher: {kind: openai, base_url: "http://localhost", model: m}
curate:
  sources:
    - name: sums
      origin: {kind: files, paths: [sums.jsonl]}
      license: MIT
      skill: math
    - name: chats
      origin: {kind: files, paths: [chats.jsonl]}
      license: MIT
      skill: chat
sft:
  learning_rate: 5e-7
evaluate:
  tasks:
    - {name: gsm8k, task: gsm8k}
"""

POCKET = Path(__file__).parents[1] / "pipelines" / "recipes" / "pocket.yaml"

PREFERENCES = """\
sample_prompts: {used_in_sft: 10, unused_in_sft: 10}
respond: {pool: [{name: own, artifact: sft}, {name: teacher, engine: teacher}]}
judge: {judge: {kind: llm, engine: teacher}}
pair: {}
"""

OWN_PAIRS = "{name: mine, origin: {paths: [p.jsonl], kind: files}, license: MIT, skill: chat}"


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides, file="r.yaml")
    return str(caught.value)
