"""Exported models as transformers loads them, and their cards against the registry."""

import json
import re

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from caravan.data.template import TEMPLATE, TEMPLATE_HASH
from caravan.errors import CaravanError
from caravan.recipe.io import recipe_digest
from caravan.release.export import export_model

from .conftest import SCORE

CHAT = [{"role": "user", "content": "How many bags does the camel carry?"}]


def reply(directory) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    return out[0].tolist()


def test_transformers_writes_the_same_tokens_as_from_the_artifact(finished, exported):
    artifact = finished.store.fetch(finished.output("dpo"))
    assert reply(exported) == reply(artifact)
    assert len(reply(exported)) > 12


def test_an_export_says_how_it_ends_and_limits_no_reply(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert json.loads((exported / "generation_config.json").read_text()) == {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    assert tokenizer.chat_template == TEMPLATE


def test_what_rlvr_has_trained_is_sampled_as_it_was_trained(finished, caravan, tmp_path):
    dpo = finished.output("dpo")
    model = finished.store.fetch(finished.output("sft"))
    finished.recipe = finished.recipe.derive(
        rlvr={"sampling": {"temperature": 0.7, "max_completion_length": 24}}
    )
    finished.run_id = finished.registry.create_run(
        finished.recipe.model_dump(mode="json"), name="rl", seed=1, recipe_digest="d" * 64
    )
    finished.stage("rlvr", {"model": dpo}, {"model": model})
    caravan("model", "export", "latest:rlvr/model", str(tmp_path / "rl"))
    config = GenerationConfig.from_pretrained(tmp_path / "rl")
    assert (config.do_sample, config.temperature, config.top_p) == (True, 0.7, 1.0)
    assert config.max_new_tokens is None


def test_a_selected_policy_is_known_by_its_own_scores_and_steps(finished, caravan, tmp_path):
    base, sft, dpo = (finished.store.fetch(finished.output(n)) for n in ("base", "sft", "dpo"))
    report = finished.store.fetch(finished.output("evaluate-dpo", "evaluation"))
    candidates = {"step-2": sft, "step-4": dpo}
    rlvr = finished.recipe.rlvr.derive(select={"every": 2, "tasks": ["math"]})
    finished.run_id = finished.registry.create_run(
        finished.recipe.derive(rlvr=rlvr).model_dump(mode="json"),
        name="rl",
        seed=1,
        recipe_digest="d" * 64,
    )
    finished.stage("base", {}, {"model": base})
    finished.stage("rlvr", {"policy": finished.output("base")}, candidates)
    made = {name: finished.output("rlvr", name) for name in candidates}
    finished.stage("select", made, {"model": sft}, metrics={"step": 2})
    finished.stage("evaluate-rlvr", {"model": finished.output("select")},
                   {"evaluation": report}, scores=[SCORE])  # fmt: skip

    chosen = caravan("model", "card", "latest:select/model")
    assert "base → rlvr → select." in chosen
    assert "| step of rlvr | 2 |" in chosen
    assert "# rl-select\n" in chosen
    assert "| stage | select |" in chosen
    assert "tags:\n- caravan\n- select\n" in chosen
    assert "| math | dev | accuracy | 64.5 |" in chosen
    assert "policy was selected by its scores on math: there its scores" in evaluation(chosen)
    assert chosen.count("was selected by") == 1
    other = caravan("model", "card", "latest:rlvr/step-4")
    assert "base → rlvr." in other
    assert "# rl-rlvr\n" in other
    assert "not evaluated" in other
    assert "was selected" not in other
    caravan("model", "export", "latest:rlvr/step-4", str(tmp_path / "one"))
    assert (tmp_path / "one" / "model.safetensors").is_file()
    told = f"warning: run {finished.run_id} has selected step 2 of 4 of rlvr: taking select/model"
    assert told in (named := caravan("model", "card", "latest:rlvr/model"))
    assert named.replace(f"{told}\n", "") == chosen
    assert told in caravan("model", "export", "latest:rlvr/model", str(tmp_path / "two"))
    assert "# rl-select\n" in (tmp_path / "two" / "README.md").read_text()


def evaluation(card):
    return card.split("## Evaluation\n")[1]


def test_a_model_from_a_selected_one_names_the_selection_before_it(finished, caravan):
    base, sft, dpo = (finished.store.fetch(finished.output(n)) for n in ("base", "sft", "dpo"))
    chosen = finished.recipe.sft.derive(select={"every": 2, "tasks": ["math", "constraints"]})
    finished.run_id = finished.registry.create_run(
        finished.recipe.derive(sft=chosen).model_dump(mode="json"),
        name="two", seed=1, recipe_digest="d" * 64,
    )  # fmt: skip
    finished.stage("base", {}, {"model": base})
    finished.stage("sft", {"model": finished.output("base")}, {"step-2": sft, "step-4": base})
    made = {name: finished.output("sft", name) for name in ("step-2", "step-4")}
    finished.stage("select-sft", made, {"model": sft}, metrics={"step": 2})
    finished.stage("dpo", {"model": finished.output("select-sft")}, {"model": dpo})
    finished.stage("evaluate-dpo", {"model": finished.output("dpo")}, {}, scores=[SCORE])

    card = caravan("model", "card", "latest:dpo/model")
    assert "base → sft → select-sft → dpo." in card
    assert "| step of sft | 2 |" in card
    assert "| select.tasks | math, constraints |" in card
    assert "SFT's policy was selected by its scores on math, constraints: there its scores" in card
    assert card.index("### select-sft") < card.index("SFT's policy") < card.index("### dpo")
    assert "was selected by" not in evaluation(card)
    told = f"warning: run {finished.run_id} has selected step 2 of 4 of sft: taking select-sft/"
    taken = caravan("model", "card", "latest:sft/model")
    assert told in taken
    assert "# two-select-sft\n" in taken


def test_the_step_with_the_lowest_held_out_loss_is_on_the_card(finished, caravan):
    base, sft = (finished.store.fetch(finished.output(name)) for name in ("base", "sft"))
    chosen = finished.recipe.sft.derive(select={"every": 2}, validation_share=0.1)
    finished.run_id = finished.registry.create_run(
        finished.recipe.derive(sft=chosen).model_dump(mode="json"),
        name="one", seed=1, recipe_digest="d" * 64,
    )  # fmt: skip
    finished.stage("base", {}, {"model": base})
    metrics = {"selected_step": 4}
    finished.stage("sft", {"model": finished.output("base")}, {"model": sft}, metrics=metrics)
    finished.stage("evaluate-sft", {"model": finished.output("sft")}, {}, scores=[SCORE])
    card = caravan("model", "card", "latest:sft/model")
    assert "| step that was taken | 4 |" in card
    assert "was selected by its scores" not in card


def test_an_export_in_bfloat16_is_half_as_large(caravan, exported, tmp_path):
    half = tmp_path / "half"
    caravan("model", "export", "latest:dpo/model", str(half), "--dtype", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype is torch.bfloat16
    sizes = [(path / "model.safetensors").stat().st_size for path in (half, exported)]
    assert sizes[0] < 0.55 * sizes[1]


def test_the_card_says_what_the_registry_says(finished, exported):
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    rows = {
        cells[0]: cells
        for line in card.replace("\\", "").splitlines()
        if len(cells := [c.strip() for c in line.strip("|").split("|")]) > 1
    }
    for i, source in enumerate(finished.recipe.curate.sources):
        assert rows[source.name][1:4] == [source.license, source.skill, str(100 + i)]
        assert rows[source.name][6] == source.provenance
    assert rows["notes"][4:6] == ["77", "70"]
    assert rows["persona-math"][4:6] == ["40", "0"]
    assert "117 rows in the SFT mix, of which SFT trained on 70." in card
    assert "careful" in rows["persona-math"][6]
    score = rows["math"]
    assert score[1:] == ["dev", "accuracy", "64.5", "61.2 to 67.8", "1500"]
    assert rows["digest of the recipe"][1] == recipe_digest(finished.recipe)
    assert rows["digest of the model"][1] == finished.output("dpo")
    assert rows["SHA-256 of the chat template"][1] == TEMPLATE_HASH
    assert rows["seed"][1] == str(finished.recipe.seed)
    dpo = card.split("### dpo")[1].split("## ")[0]
    assert re.search(rf"learning\\_rate \| {finished.recipe.dpo.learning_rate}", dpo)
    assert "tokens\\_per\\_pass" not in card


def test_a_card_tells_only_of_the_stages_before_the_model(caravan):
    card = caravan("model", "card", "latest:sft/model")
    assert "### sft" in card
    assert "### dpo" not in card
    assert "not evaluated" in card


def test_text_of_a_recipe_stays_text_in_the_card(finished, caravan):
    model = finished.store.fetch(finished.output("dpo"))
    recipe = finished.recipe.derive(description="<script>x</script> | a\n# b")
    finished.run_id = finished.registry.create_run(
        recipe.model_dump(mode="json"), name="odd", seed=1, recipe_digest="d" * 64
    )
    finished.stage("base", {}, {"model": model})
    card = caravan("model", "card", f"{finished.run_id}:base/model")
    assert "<script>" not in card
    assert "\n# b" not in card


def test_what_is_no_model_or_is_there_already_is_refused(finished, caravan, exported):
    assert "exists" in caravan("model", "export", "latest:dpo/model", str(exported), code=2)
    report = finished.output("mix", "report")
    said = caravan("model", "export", report, str(exported / "x"), code=2)
    assert "not a model" in said
    below = str(exported / "README.md" / "x")
    said = caravan("model", "export", "latest:dpo/model", below, code=2)
    assert "README.md: File exists; name a place that is a directory" in said
    with pytest.raises(CaravanError, match="exists"):
        export_model(finished.output("dpo"), exported, finished.registry, finished.store)


def test_a_merge_is_an_artifact_of_the_run_with_a_card_of_its_own(finished, caravan):
    command = ["model", "merge", "latest:sft/model:1", "latest:dpo/model:3"]
    reference, digest = caravan(*command).split()
    assert caravan(*command).split() == [reference, digest]
    soup = finished.store.fetch(digest)
    parts = [finished.store.fetch(finished.output(node)) for node in ("sft", "dpo")]
    states = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
        for path in (*parts, soup)
    ]
    for name, merged in states[2].items():
        torch.testing.assert_close(merged, 0.25 * states[0][name] + 0.75 * states[1][name])
    card = caravan("model", "card", reference)
    assert "### merge" in card
    assert "0.75" in card


def test_a_merge_of_one_model_or_into_a_directory_that_is_there_is_refused(caravan, tmp_path):
    assert "two models" in caravan("model", "merge", "latest:sft/model", code=2)
    arguments = ["model", "merge", "latest:sft/model", "latest:dpo/model", "--out", str(tmp_path)]
    assert "exists" in caravan(*arguments, code=2)
