"""`tokens_per_pass: auto`: the planner's memory model asked for the device that is there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from caravan.recipe import Resources, RewardModelConfig, Sampling
from caravan.stages import dpo, reference, reward_model, rlvr, sft
from caravan.stages.configs import (
    DPOStageConfig,
    ReferenceStageConfig,
    RLVRStageConfig,
    SFTStageConfig,
)
from caravan.stages.context import StageResult
from caravan.stages.key import stage_key
from caravan.training.pretrain import new_llama
from caravan.training.reference import FILE
from tiny import SHAPE, Context, Stopped

LARGE = Resources(cpus=1, memory_gib=4)
SMALL = Resources(cpus=1, memory_gib=0.493)  # room for the tiny model and hardly a row
COMMON = {
    "learning_rate": 1e-2, "max_length": 64, "tokens_per_pass": "auto", "max_steps": 4,
    "save_steps": 2, "bf16": False,
}  # fmt: skip
STAGES = {
    "sft": (sft, SFTStageConfig(sequences_per_step=10, resources=LARGE, **COMMON)),
    "dpo": (dpo, DPOStageConfig(pairs_per_step=10, resources=LARGE, **COMMON)),
    "reward_model": (
        reward_model, RewardModelConfig(pairs_per_step=10, resources=LARGE, **COMMON),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_less_memory_cuts_a_step_into_more_passes_and_changes_no_loss(name, inputs, tmp_path):
    stage, config = STAGES[name]
    large, small = Context(tmp_path / "large"), Context(tmp_path / "small")
    wide = stage.run(config, inputs, large).metrics
    narrow = stage.run(config.derive(resources=SMALL), inputs, small).metrics
    assert wide["tokens_per_pass"] == 65_536
    assert narrow["tokens_per_pass"] <= 2 * config.max_length
    for step, values in large.logged.items():
        assert small.logged[step]["loss"] == pytest.approx(values["loss"], rel=2e-5)
        assert small.logged[step]["grad_norm"] == pytest.approx(values["grad_norm"], rel=1e-3)


def test_the_key_of_a_stage_knows_nothing_of_the_device():
    stage, config = STAGES["sft"]
    elsewhere = config.derive(resources=SMALL.derive(gpus=8, gpu_type="h200"))
    keys = {stage_key(stage, one, {"model": "m"}, 17) for one in (config, elsewhere)}
    assert len(keys) == 1


def test_the_key_of_the_reference_pass_knows_nothing_of_its_ranks():
    dpo = STAGES["dpo"][1]
    ranks = {"zero_stage": 3, "zero_offload": "all", "resources": SMALL.derive(nodes=2, gpus=8)}
    asked = [ReferenceStageConfig.of(one) for one in (dpo, dpo.derive(**ranks))]
    assert (asked[1].zero_stage, asked[1].resources.training_processes) == (3, 16)
    assert len({stage_key(reference, one, {"model": "m"}, 17) for one in asked}) == 1


def test_a_run_goes_on_on_a_device_with_less_memory(inputs, tmp_path):
    stage, config = STAGES["sft"]
    undisturbed, moved = Context(tmp_path / "a"), Context(tmp_path / "b", stop_at=3)
    stage.run(config, inputs, undisturbed)
    with pytest.raises(Stopped):
        stage.run(config, inputs, moved)
    metrics = stage.run(config.derive(resources=SMALL), inputs, moved).metrics
    assert metrics["tokens_per_pass"] <= config.max_length
    assert sorted(moved.logged) == [1, 2, 3, 4]
    for step, values in undisturbed.logged.items():
        assert moved.logged[step]["loss"] == pytest.approx(values["loss"], rel=2e-5)


def test_the_reference_pass_takes_what_fits_too(inputs, tmp_path):
    config = ReferenceStageConfig.of(STAGES["dpo"][1])
    found = []
    for name, resources in (("large", LARGE), ("small", SMALL)):
        context = Context(tmp_path / name)
        reference.run(config.derive(resources=resources), inputs, context)
        found.append(load_file(context.directory / "out" / "logprobs" / FILE)["logprobs"])
    torch.testing.assert_close(found[0], found[1])


def test_a_device_too_small_for_one_row_is_warned_about_with_a_remedy(inputs, tmp_path, caplog):
    stage, config = STAGES["sft"]
    tiny = config.derive(resources=Resources(cpus=1, memory_gib=0.4))
    metrics = stage.run(tiny, inputs, Context(tmp_path)).metrics
    assert metrics["tokens_per_pass"] <= config.max_length
    assert "take a device with more memory" in caplog.text


def test_a_smaller_value_model_leaves_room_for_more_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr("caravan.training.rl.session.train_rlvr", lambda *_: StageResult({}))
    for name, size in {"policy": 2048, "value": 512}.items():
        shape = SHAPE.derive(hidden_size=size, intermediate_size=4 * size)
        with torch.device("meta"):
            model = new_llama(shape, SimpleNamespace(eos_token_id=0, pad_token_id=1))
        model.config.save_pretrained(tmp_path / name)
    config = RLVRStageConfig(
        tokens_per_pass="auto", max_length=64, sampling=Sampling(max_completion_length=8),
        bf16=False, resources=Resources(cpus=1, memory_gib=9),
    )  # fmt: skip

    def tokens(**reward_model):
        inputs = {"policy": tmp_path / "policy", **reward_model}
        return rlvr.train(config, inputs, Context(tmp_path)).metrics["tokens_per_pass"]

    assert tokens() == tokens(reward_model=tmp_path / "policy")
    assert tokens() < tokens(reward_model=tmp_path / "value")
