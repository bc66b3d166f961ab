"""Recipes of some stages only: a model is evaluated, or tuned, as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from caravan.data.template import TEMPLATE_HASH
from caravan.training.bpe import train_tokenizer
from caravan.training.models import new_reward_model, prepare_torch, save_model
from caravan.training.pretrain import new_llama
from foreign import LLAMA3, write_foreign
from tiny import SHAPE, TEXTS, conversations, pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

POSITIONS = 512
SAMPLING = {"temperature": 0.0, "max_completion_length": 8}
LOOK = {
    "name": "look",
    "base_model": {"kind": "imported", "model_name_or_path": "model"},
    "evaluate": {
        "tasks": [{"name": "lists", "task": "pocket-constraints", "limit": 4, "sampling": SAMPLING}]
    },
}
TEACH = {
    "name": "teach",
    "base_model": LOOK["base_model"],
    "curate": {
        "sources": [
            {"name": "rows", "origin": {"kind": "files", "paths": ["rows.jsonl"]},
             "license": "MIT", "skill": "s"}
        ]
    },
    "sft": {"max_length": 64, "sequences_per_step": 8, "max_steps": 2},
}  # fmt: skip


TRAINING = {"max_length": 64, "pairs_per_step": 8, "max_steps": 2}
PREFER = LOOK | {
    "name": "prefer",
    "pair": {
        "sources": [
            {"name": "mine", "origin": {"kind": "files", "paths": ["prefs.json"]},
             "license": "MIT", "skill": "s"}
        ]
    },
    "dpo": TRAINING | {"select": {"every": 1, "tasks": ["lists"]}},
    "reward_model": TRAINING,
}  # fmt: skip

PLEASE = {
    "name": "please",
    "base_model": LOOK["base_model"],
    "curate": TEACH["curate"],
    "reward_model": {"model_name_or_path": "taste"},
    "rlvr": {
        "algorithm": {"kind": "grpo", "num_generations": 4},
        "prompts": "all",
        "reward_model_multiplier": 0.5,
        "missing_eos_reward": None,
        "max_length": 64,
        "max_steps": 2,
        "prompts_per_step": 4,
        "sampling": {"max_completion_length": 8},
    },
}


@pytest.fixture
def run(caravan, tmp_path: Path):
    """Runs a recipe beside a tiny model, rows and pairs; gives what `show` says of it."""
    prepare_torch(cpus=1, seed=3)
    tokenizer = train_tokenizer(TEXTS, vocab_size=SHAPE.vocab_size, model_max_length=POSITIONS)
    shape = SHAPE.derive(max_position_embeddings=POSITIONS)
    save_model(new_llama(shape, tokenizer), tokenizer, tmp_path / "model")
    rows = [{"messages": [m.model_dump() for m in c.messages]} for c in conversations()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        {"prompt": p.prompt[-1].content, "chosen": p.chosen, "rejected": p.rejected}
        for p in pairs()
    ]
    (tmp_path / "prefs.json").write_text(json.dumps(own))

    def run(recipe: dict[str, Any]) -> dict[str, Any]:
        path = tmp_path / f"{recipe['name']}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        caravan("run", str(path), "--dry-run")
        caravan("run", str(path))
        return caravan.show()

    return run


def scored(shown: dict[str, Any]) -> list[str]:
    return sorted({score["stage"] for score in shown["scores"] if score["task"] == "lists"})


def test_a_model_is_evaluated_and_then_tuned_on_pairs_of_a_file(run, caravan):
    shown = run(LOOK)
    assert [stage["name"] for stage in shown["stages"]] == ["base", "evaluate-base", "report"]
    assert scored(shown) == ["base"]
    (page,) = caravan.directory.glob(".caravan/runs/look-*/report/report.html")
    assert "lists" in page.read_text()

    shown = run(PREFER)
    stages = {stage["name"]: stage for stage in shown["stages"]}
    assert set(stages) == {
        "base", "pair", "reference", "dpo", "select-dpo", "reward-model", "evaluate-base",
        "evaluate-dpo", "report",
    }  # fmt: skip
    assert stages["base"]["reused"]
    assert stages["evaluate-base"]["reused"]
    assert stages["pair"]["metrics"]["pairs/mine"] == 20
    assert scored(shown) == ["base", "dpo"]
    taken = stages["select-dpo"]["artifacts"]["model"]
    candidates = stages["dpo"]["artifacts"]
    assert set(candidates) == {"step-1", "step-2"}
    assert taken == candidates[f"step-{stages['select-dpo']['metrics']['step']:.0f}"]
    evaluated = caravan("artifact", "show", "--json", "latest:evaluate-dpo/evaluation").stdout
    assert taken in json.loads(evaluated)["made_from"]
    card = caravan("model", "card", "latest:dpo/model").stdout
    assert "base → dpo → select-dpo" in card
    assert "DPO's policy was selected by its scores on lists" in card
    assert "20 preference pairs" in card
    assert caravan("model", "export", "latest:dpo/model", "out").returncode == 0


def test_a_policy_is_trained_against_a_reward_model_that_exists(run, tmp_path):
    save_model(*new_reward_model(tmp_path / "model"), tmp_path / "taste")
    shown = run(PLEASE)
    stages = {stage["name"]: stage for stage in shown["stages"]}
    assert set(stages) == {"base", "curate", "decontaminate", "reward-model", "rlvr"}
    assert {stage["state"] for stage in shown["stages"]} == {"succeeded"}
    metrics = stages["rlvr"]["metrics"]
    assert metrics["prompts"] == 20
    assert metrics["reward"] == pytest.approx(0.5 * metrics["objective/scores"])
    assert "objective/verified" not in metrics


def test_a_recipe_may_train_and_evaluate_nothing(run, caravan):
    shown = run(TEACH)
    assert [stage["name"] for stage in shown["stages"] if stage["state"] != "succeeded"] == []
    assert {stage["name"] for stage in shown["stages"]} == {
        "base", "curate", "decontaminate", "mix", "sft",
    }  # fmt: skip
    assert caravan("model", "export", "latest:sft/model", "out").returncode == 0


def test_a_model_of_another_origin_is_asked_in_its_own_template_until_it_is_trained(run, caravan):
    shutil.rmtree(caravan.directory / "model")
    write_foreign(caravan.directory / "model", "llama3", positions=POSITIONS)
    selecting = TEACH["sft"] | {"select": {"every": 1, "tasks": ["lists"]}}
    shown = run(TEACH | {"evaluate": LOOK["evaluate"], "sft": selecting})
    assert scored(shown) == ["base", "sft"]
    asked = {
        stage: json.loads(caravan("artifact", "show", f"latest:{stage}/{output}", "--json").stdout)[
            "metadata"
        ]["chat_template_sha256"]
        for stage, output in (
            ("base", "model"), ("sft", "step-1"), ("select-sft", "model"),
            ("evaluate-base", "evaluation"), ("evaluate-sft", "evaluation"),
        )
    }  # fmt: skip
    theirs = hashlib.sha256(LLAMA3.removeprefix("{{ bos_token }}").encode()).hexdigest()
    assert asked == {
        "base": TEMPLATE_HASH,  # in which it is trained
        "sft": TEMPLATE_HASH,
        "select-sft": TEMPLATE_HASH,
        "evaluate-base": theirs,
        "evaluate-sft": TEMPLATE_HASH,
    }
    (page,) = caravan.directory.glob(".caravan/runs/teach-*/report/report.html")
    said = f"Asked in a chat template of its own, unlike the other models: Base ({theirs[:12]})."
    assert said in page.read_text()

    assert caravan("model", "export", "latest:base/model", "as-it-was").returncode == 0
    exported = AutoTokenizer.from_pretrained(caravan.directory / "as-it-was")
    assert exported.chat_template == LLAMA3
    assert not (caravan.directory / "as-it-was" / "chat_template.sha256").exists()
