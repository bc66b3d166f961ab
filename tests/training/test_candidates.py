"""The policies along the way of SFT and DPO: which are given out, and that they are whole."""

from __future__ import annotations

import shutil

import pytest

from caravan.errors import CaravanError
from caravan.recipe import LoRAConfig
from caravan.stages import dpo, sft
from caravan.stages.configs import DPOStageConfig, SFTStageConfig
from caravan.store.checkpoints import S3Checkpoints
from tiny import ONE_CORE, Context, Stopped

COMMON = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0,
    "max_length": 64,
    "tokens_per_pass": 128,
    "max_steps": 5,
    "save_steps": 3,
    "bf16": False,
    "resources": ONE_CORE,
}
SFT = SFTStageConfig(sequences_per_step=5, **COMMON)
DPO = DPOStageConfig(pairs_per_step=5, **COMMON)


def models(context: Context) -> dict[str, dict[str, bytes]]:
    """The files of each model that a stage gave out."""
    found: dict[str, dict[str, bytes]] = {}
    for path in (context.directory / "out").glob("*/*"):
        found.setdefault(path.parent.name, {})[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize(
    ("stage", "config"),
    [(sft, SFT), (sft, SFT.derive(lora=LoRAConfig(rank=4, dropout=0.1))), (dpo, DPO)],
    ids=["sft", "lora", "dpo"],
)
def test_policies_are_kept_along_the_way_and_the_last_is_that_of_a_run_without(
    stage, config, inputs, tmp_path
):
    kept, last, shorter = (Context(tmp_path / name) for name in ("kept", "last", "shorter"))
    result = stage.run(config.derive(keep_every=2), inputs, kept)
    assert stage.run(config, inputs, last).metrics == result.metrics
    stage.run(config.derive(max_steps=2), inputs, shorter)
    found = models(kept)
    assert set(found) == {"step-2", "step-4", "step-5"}
    assert found["step-5"] == models(last)["model"]
    assert found["step-2"] == models(shorter)["model"]
    assert found["step-2"] != found["step-4"]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_stopped_run_keeps_the_same_policies(stop_at, inputs, tmp_path):
    config = SFT.derive(keep_every=2)
    whole, stopped = Context(tmp_path / "whole"), Context(tmp_path / "stopped", stop_at=stop_at)
    sft.run(config, inputs, whole)
    with pytest.raises(Stopped):
        sft.run(config, inputs, stopped)
    sft.run(config, inputs, stopped)
    assert models(stopped) == models(whole)


def test_a_candidate_that_was_half_written_is_written_anew(inputs, tmp_path):
    config = SFT.derive(keep_every=2)
    whole, killed = Context(tmp_path / "whole"), Context(tmp_path / "killed")
    sft.run(config, inputs, whole)
    half = killed.workdir / "candidates" / "writing-step-2"
    half.mkdir(parents=True)
    (half / "model-00001-of-00002.safetensors").write_bytes(b"half")
    sft.run(config, inputs, killed)
    assert models(killed) == models(whole)


def test_a_candidate_that_is_gone_is_told_before_the_next_step(inputs, tmp_path):
    config, stopped = SFT.derive(keep_every=2), Context(tmp_path, stop_at=4)
    with pytest.raises(Stopped):
        sft.run(config, inputs, stopped)
    shutil.rmtree(stopped.workdir / "candidates" / "step-2")
    with pytest.raises(CaravanError, match=r"candidates/step-2 is missing, .* to start anew"):
        sft.run(config, inputs, stopped)
    assert max(stopped.logged) == 4


def test_another_machine_has_the_candidates_from_the_store(inputs, tmp_path, s3_settings):
    config, copies = SFT.derive(keep_every=2), S3Checkpoints(s3_settings, "k" * 64)
    whole, one, two = (Context(tmp_path / name) for name in ("whole", "one", "two"))
    sft.run(config, inputs, whole)
    one.stop_at = 4
    one.remote_checkpoints = two.remote_checkpoints = copies
    with pytest.raises(Stopped):
        sft.run(config, inputs, one)
    sft.run(config, inputs, two)
    assert min(two.logged) == 4
    assert models(two) == models(whole)


def test_a_run_too_short_to_select_from_says_so(inputs, tmp_path, caplog):
    config = SFT.derive(max_steps=None, num_train_epochs=0.5, keep_every=2)
    context = Context(tmp_path)
    sft.run(config, inputs, context)
    assert set(models(context)) == {"step-2"}
    assert "select.every 2 keeps no policy before the last of 2 steps" in caplog.text


def test_without_tasks_the_policy_with_the_lowest_held_out_loss_is_the_result(inputs, tmp_path):
    kept, chosen, stopped = (Context(tmp_path / name) for name in ("kept", "chosen", "stopped"))
    config = SFT.derive(
        max_steps=4, learning_rate=5e-2, keep_every=1, validation_share=0.3, validation_steps=100
    )
    sft.run(config, inputs, kept)
    losses = {step: logged["validation/loss"] for step, logged in kept.logged.items()}
    best = min(losses, key=losses.get)
    assert 1 < best < 4, "at such a rate the loss is not lowest at the end"
    by_loss = config.derive(by_loss=True)
    result = sft.run(by_loss, inputs, chosen)
    assert result.metrics["selected_step"] == best
    assert models(chosen) == {"model": models(kept)[f"step-{best}"]}

    stopped.stop_at = 4
    with pytest.raises(Stopped):
        sft.run(by_loss, inputs, stopped)
    assert sft.run(by_loss, inputs, stopped).metrics == result.metrics
    assert models(stopped) == models(chosen)
