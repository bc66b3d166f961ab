"""The training stages on a tiny model: what they write, and that stopping them changes nothing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from caravan.data.io import write_rows
from caravan.data.records import Message
from caravan.errors import DataError
from caravan.recipe import RewardModelConfig
from caravan.stages import base, dpo, reward_model, sft
from caravan.stages.configs import DPOStageConfig, SFTStageConfig
from caravan.training.loop import NonFiniteError
from caravan.training.models import load_policy, load_reward_model, save_model
from tiny import ONE_CORE, SHAPE, TEXTS, Context, Stopped, conversations, write_inputs

COMMON = {
    "learning_rate": 1e-3,
    "max_length": 64,
    "tokens_per_pass": 256,
    "num_train_epochs": 1.5,
    "resources": ONE_CORE,
    "save_steps": 2,
}
STAGES = {
    "sft": (sft, SFTStageConfig(sequences_per_step=6, **COMMON)),
    "dpo": (dpo, DPOStageConfig(pairs_per_step=6, **COMMON)),
    "reward_model": (reward_model, RewardModelConfig(pairs_per_step=6, **COMMON)),
}

LONG = STAGES["sft"][1].derive(num_train_epochs=60, save_steps=20)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def contents(context: Context) -> dict[str, bytes]:
    directory = context.directory / "out" / "model"
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_stopped_at_any_step_and_started_again_gives_the_same_bytes(name, inputs, tmp_path):
    stage, config = STAGES[name]
    undisturbed = Context(tmp_path / "undisturbed")
    result = stage.run(config, inputs, undisturbed)
    steps = len(undisturbed.logged)
    assert steps == 5
    assert all(math.isfinite(value) for value in result.metrics.values())
    for stop_at in range(steps + 1):
        context = Context(tmp_path / str(stop_at), stop_at=stop_at)
        with pytest.raises(Stopped):
            stage.run(config, inputs, context)
        assert stage.run(config, inputs, context).metrics == result.metrics
        assert contents(context) == contents(undisturbed)
        for step, metrics in context.logged.items():
            ours, theirs = dict(metrics), dict(undisturbed.logged[step])
            del ours["perf/tokens_per_second"], theirs["perf/tokens_per_second"]
            assert ours == theirs


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
import test_training_stages as t
from caravan.stages.configs import SFTStageConfig
config = t.LONG
inputs = {{"model": Path({model!r}), "dataset": Path({dataset!r})}}
t.sft.run(config, inputs, t.Held(Path({directory!r})))
"""


class Held(Context):
    """Waits at the last step to be killed."""

    def progress(self, done: int, total: int) -> None:
        if done == total:
            signal.pause()


def start(inputs: Mapping[str, Path], directory: Path) -> subprocess.Popen[bytes]:
    code = CHILD.format(
        tests=str(Path(__file__).parent),
        model=str(inputs["model"]),
        dataset=str(inputs["dataset"]),
        directory=str(directory),
    )
    return subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))


def test_a_killed_process_started_again_gives_the_same_bytes(inputs, tmp_path):
    undisturbed = Context(tmp_path / "undisturbed")
    sft.run(LONG, inputs, undisturbed)

    directory = tmp_path / "killed"
    process = start(inputs, directory)
    checkpoints = directory / "work" / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (directory / "out").exists()  # it was killed in the middle

    again = Context(directory)
    sft.run(LONG, inputs, again)
    assert min(again.logged) > 1  # it went on from a checkpoint
    assert contents(again) == contents(undisturbed)


def test_sft_learns_and_keeps_only_the_documented_files(inputs, tmp_path):
    config = STAGES["sft"][1].derive(num_train_epochs=30, learning_rate=1e-2, save_steps=50)
    context = Context(tmp_path)
    sft.run(config, inputs, context)
    assert context.logged[75]["loss"] < 0.5 * context.logged[1]["loss"]
    assert set(context.logged[1]) == {
        "loss",
        "learning_rate",
        "grad_norm",
        "num_tokens",
        "skipped_steps",
        "loss_spikes",
        "perf/tokens_per_second",
    }
    load_policy(tmp_path / "out" / "model")


def test_dpo_starts_at_log_two_and_moves_the_margin(inputs, tmp_path):
    config = STAGES["dpo"][1].derive(num_train_epochs=10, bf16=False, save_steps=50)
    context = Context(tmp_path)
    dpo.run(config, inputs, context)
    first, last = context.logged[1], context.logged[max(context.logged)]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.5
    assert last["rewards/accuracies"] > 0.9
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], abs=1e-5
    )
    assert {"logps/chosen", "logps/rejected"} < set(last)


def test_a_small_beta_on_per_token_log_ratios_is_warned_about(inputs, tmp_path, caplog):
    dpo.run(STAGES["dpo"][1].derive(beta=0.1, max_steps=1), inputs, Context(tmp_path / "norm"))
    assert "looks like a beta of plain DPO" in caplog.text
    caplog.clear()
    plain = STAGES["dpo"][1].derive(beta=0.1, loss_type="sigmoid", max_steps=1)
    dpo.run(plain, inputs, Context(tmp_path / "plain"))
    assert "looks like" not in caplog.text


def test_the_reward_model_learns_to_prefer(inputs, tmp_path):
    context = Context(tmp_path)
    reward_model.run(
        STAGES["reward_model"][1].derive(num_train_epochs=15, save_steps=50), inputs, context
    )
    last = context.logged[max(context.logged)]
    assert last["accuracy"] > 0.9
    assert load_reward_model(tmp_path / "out" / "model").model.config.num_labels == 1


def test_a_margin_of_the_ratings_and_centering_raise_the_loss_of_a_reward_model(inputs, tmp_path):
    config = STAGES["reward_model"][1].derive(max_steps=1)
    losses = {}
    for name, changes in (
        ("plain", {}),
        ("margin", {"rating_margin": 0.5}),  # of 4 points: 2
        ("centred", {"center_rewards_coefficient": 10.0}),
    ):
        context = Context(tmp_path / name)
        reward_model.run(config.derive(**changes), inputs, context)
        losses[name] = context.logged[1]["loss"]
    assert 0.8 < losses["margin"] - losses["plain"] < 2
    assert losses["centred"] > losses["plain"]


def test_a_reward_model_that_exists_is_taken_as_it_is(inputs, tmp_path):
    trained = Context(tmp_path / "trained")
    config = STAGES["reward_model"][1].derive(max_steps=1)
    reward_model.run(config, inputs, trained)
    directory = trained.directory / "out" / "model"

    taken = Context(tmp_path / "taken")
    reward_model.run(config.derive(model_name_or_path=str(directory)), inputs, taken)
    assert contents(taken) == contents(trained)

    tokenizer = directory / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"pad_token": None}))
    padded = Context(tmp_path / "padded")
    result = reward_model.run(config.derive(model_name_or_path=str(directory)), inputs, padded)
    assert result.metrics["added_tokens"] == 1
    before, after = (
        load_reward_model(c.directory / "out" / "model").model.score.weight for c in (taken, padded)
    )
    assert torch.equal(before, after)


def test_a_policy_is_no_reward_model(inputs, tmp_path):
    config = STAGES["reward_model"][1].derive(model_name_or_path=str(inputs["model"]))
    with pytest.raises(DataError, match="LlamaForCausalLM under architectures, so this is no rewa"):
        reward_model.run(config, inputs, Context(tmp_path / "taken"))


def test_rows_whose_reply_is_cut_off_are_counted_and_dropped(inputs, tmp_path, caplog):
    long = conversations(2)[0].model_copy(
        update={"id": "long", "messages": (Message(role="user", content=TEXTS[0] * 9),
                                           Message(role="assistant", content="Yes"))}
    )  # fmt: skip
    write_rows(tmp_path / "mixed" / "rows.jsonl", [long, *conversations()])
    config = STAGES["sft"][1].derive(max_steps=1)
    result = sft.run(config, inputs | {"dataset": tmp_path / "mixed"}, Context(tmp_path / "a"))
    assert (result.metrics["rows"], result.metrics["dropped_rows"]) == (20, 1)
    assert "1 of 21 rows have no reply to train on" in caplog.text
    assert result.metrics["source/t"] == config.sequences_per_step  # one step
    whole = config.derive(max_steps=None, num_train_epochs=1.5, validation_share=0.2)
    result = sft.run(whole, inputs | {"dataset": tmp_path / "mixed"}, Context(tmp_path / "c"))
    assert result.metrics["source/t"] == 16

    write_rows(tmp_path / "only" / "rows.jsonl", [long])
    with pytest.raises(DataError, match="all 1 rows are longer than max_length=64"):
        sft.run(config, inputs | {"dataset": tmp_path / "only"}, Context(tmp_path / "b"))


def test_rows_longer_than_the_model_can_read_are_refused(inputs, tmp_path):
    config = STAGES["sft"][1].derive(max_length=128)
    with pytest.raises(DataError, match="max_length=128 is more than the 64 positions"):
        sft.run(config, inputs, Context(tmp_path))


def test_a_loss_that_is_not_finite_stops_and_names_rows(inputs, tmp_path):
    model, tokenizer = load_policy(inputs["model"])
    with torch.no_grad():
        model.get_output_embeddings().weight[5, 5] = float("inf")
    save_model(model, tokenizer, tmp_path / "broken")
    with pytest.raises(NonFiniteError, match=r"step 0: the loss is .* on rows t/\d+"):
        sft.run(STAGES["sft"][1], inputs | {"model": tmp_path / "broken"}, Context(tmp_path))


def test_the_base_model_is_pretrained_the_same_way_twice(tmp_path):
    first, second = Context(tmp_path / "a"), Context(tmp_path / "b", stop_at=3)
    metrics = base.run(SHAPE, {}, first).metrics
    with pytest.raises(Stopped):
        base.run(SHAPE, {}, second)
    assert base.run(SHAPE, {}, second).metrics == metrics
    assert contents(first) == contents(second)
    assert first.logged[6]["loss"] < first.logged[1]["loss"]
    assert json.loads(contents(first)["config.json"])["architectures"] == ["LlamaForCausalLM"]
