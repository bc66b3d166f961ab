"""The losses of the `dpo` section: flat in the file, each with its own options and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from jsonschema import Draft202012Validator

from caravan.errors import RecipeError
from caravan.recipe import DPOConfig, DPOLoss
from caravan.recipe.io import canonical_json, json_schema, load_recipe, parse_recipe
from caravan.training.losses.simpo import SimPO

RECIPE = """\
name: small
base_model: {kind: imported, model_name_or_path: base}
engines:
  teacher: {kind: openai, base_url: "http://localhost", model: m}
curate:
  sources:
    - {name: sums, origin: {kind: files, paths: [sums.jsonl]}, license: MIT, skill: math}
sft: {}
sample_prompts: {used_in_sft: 10}
respond: {pool: [{name: own, artifact: sft}, {name: teacher, engine: teacher}]}
judge: {judge: {kind: llm, engine: teacher}}
pair: {}
evaluate: {tasks: [{name: gsm8k, task: gsm8k}]}
dpo:
  learning_rate: 1e-6
"""

LOSSES = get_args(get_args(DPOLoss)[0])


def dpo(text: str = "", *overrides: str) -> DPOConfig:
    recipe = parse_recipe(RECIPE + text, overrides, file="r.yaml")
    assert recipe.dpo is not None
    return recipe.dpo


def refusal(text: str = "", *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        dpo(text, *overrides)
    return str(caught.value)


def test_length_normalised_dpo_with_beta_5_is_the_default() -> None:
    assert dpo().loss.model_dump() == {
        "loss_type": "sigmoid_norm",
        "beta": 5.0,
        "label_smoothing": 0.0,
    }


@pytest.mark.parametrize(
    ("loss_type", "beta"),
    [("sigmoid_norm", 5), ("dpo_norm", 5), ("sigmoid", 0.1), ("dpo", 0.1), ("robust", 0.1),
     ("hinge", 0.1), ("ipo", 0.1), ("simpo", 2), ("kto", 0.1), ("orpo", 0.1)],
)  # fmt: skip
def test_every_loss_has_a_beta_of_its_own(loss_type: str, beta: float) -> None:
    loss = dpo(f"  loss_type: {loss_type}\n").loss
    assert (loss.loss_type, loss.beta) == (loss_type, beta)


def test_options_are_written_flat_and_read_back_so() -> None:
    config = dpo("  loss_type: simpo\n  beta: 2.5\n  simpo_gamma: 1.4\n")
    data = config.model_dump(mode="json")
    assert (data["loss_type"], data["beta"], data["simpo_gamma"]) == ("simpo", 2.5, 1.4)
    assert "loss" not in data
    assert data["learning_rate"] == 1e-6
    assert DPOConfig.model_validate(data) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  simpo_gamma: 1\n", "r.yaml:16: dpo.simpo_gamma: is an option of loss_type simpo, not "
         "of sigmoid_norm; remove it, or set loss_type: simpo"),
        ("  loss_type: ipo\n  label_smoothing: 0.1\n", "r.yaml:17: dpo.label_smoothing: is an "
         "option of loss_type sigmoid_norm or sigmoid or robust or simpo, not of ipo"),
        ("  loss_type: sipo\n", "r.yaml:16: dpo.loss_type: unknown loss_type 'sipo'; did you mean "
         "'simpo'?"),
        ("  simpo_gama: 1\n", "dpo.simpo_gama: unknown key 'simpo_gama'; did you mean "
         "'simpo_gamma'?"),
        ("  beta: -1\n", "r.yaml:16: dpo.beta: expected greater than 0; got -1"),
        ("  loss_type: simpo\n  beta: big\n", "r.yaml:17: dpo.beta: expected a number; got 'big'"),
        ("  loss: {beta: 1}\n", "write loss_type and its options beside the rest"),
        ("  loss_type: kto\n  zero_stage: 3\n", "use zero_stage 2"),
        ("  learning_rate_: 1\n", "did you mean 'learning_rate'?"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_with_its_line_and_the_way_out(text: str, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize("section", ["sft", "dpo"])
def test_a_learning_rate_of_a_thousand_is_refused(section: str) -> None:
    message = refusal("", f"{section}.learning_rate=1e3")
    assert f"{section}.learning_rate: 1000 is no learning rate" in message


def test_the_options_of_another_loss_do_not_carry_over(tmp_path: Path) -> None:
    given = "  loss_type: sigmoid_norm\n  beta: 7\n  label_smoothing: 0.1\n"
    assert dpo(given, "dpo.loss_type=ipo").loss == dpo("  loss_type: ipo\n").loss
    assert dpo(given, "dpo.loss_type=sigmoid_norm").loss.beta == 7
    assert dpo(given).derive(loss_type="orpo").loss == dpo("  loss_type: orpo\n").loss
    assert dpo(given).derive(beta=6).loss.beta == 6

    (tmp_path / "parent.yaml").write_text(RECIPE + given)
    child = tmp_path / "child.yaml"
    child.write_text("extends: parent.yaml\ndpo: {loss_type: simpo, simpo_gamma: 0.5}\n")
    changed = load_recipe(child).dpo
    assert changed is not None
    assert changed.loss == SimPO(simpo_gamma=0.5)
    child.write_text("extends: parent.yaml\ndpo: {pairs_per_step: 4}\n")
    kept = load_recipe(child).dpo
    assert kept is not None
    assert kept.loss.beta == 7


def test_the_schema_for_editors_knows_every_option_and_whose_it_is() -> None:
    validator = Draft202012Validator(json_schema())
    good = json.loads(canonical_json(parse_recipe(RECIPE)))
    assert validator.is_valid(good)
    for loss in LOSSES:
        changed = dict(good["dpo"])
        del changed["loss_type"], changed["beta"], changed["label_smoothing"]
        assert validator.is_valid(good | {"dpo": changed | loss().model_dump()})
    assert not validator.is_valid(good | {"dpo": good["dpo"] | {"simpo_gamma": 1}})
    assert not validator.is_valid(good | {"dpo": good["dpo"] | {"loss_type": "sipo"}})
    changes = {"extends": "a.yaml", "dpo": {"loss_type": "simpo", "simpo_gamma": 1}}
    assert validator.is_valid(changes)
    assert not validator.is_valid({"extends": "a.yaml", "dpo": {"loss_type": "ipo", "kl": 1}})
