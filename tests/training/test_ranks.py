"""Training in two processes: real ranks over gloo, against the same stage in one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caravan.data.io import write_rows
from caravan.errors import MissingExtraError
from caravan.interruption import StageStopped, StopSignals
from caravan.recipe import LoRAConfig, Resources, RewardModelConfig
from caravan.stages import dpo, reference, reward_model, sft
from caravan.stages.configs import DPOStageConfig, ReferenceStageConfig, SFTStageConfig
from caravan.training.models import load_policy, load_reward_model, save_model
from caravan.training.reference import FILE
from tiny import Context, Evicting, pairs

COMMON = {
    "learning_rate": 1e-2,
    "max_length": 64,
    "tokens_per_pass": 128,
    "max_steps": 4,
    "save_steps": 2,
    "weight_decay": 0.1,
    "bf16": False,
    "resources": Resources(cpus=1),
}
STAGES = {
    "sft": (sft, SFTStageConfig(sequences_per_step=5, **COMMON)),
    "dpo": (dpo, DPOStageConfig(pairs_per_step=5, **COMMON)),
    "reward_model": (reward_model, RewardModelConfig(pairs_per_step=5, **COMMON)),
}
REFERENCE = ReferenceStageConfig.of(STAGES["dpo"][1])
TWO = {"resources": Resources(cpus=2, processes=2)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sft", {"zero_stage": 0}),
        ("sft", {"zero_stage": 2, "validation_share": 0.2, "validation_steps": 2, "keep_every": 3}),
        ("sft", {"zero_stage": 3, "zero_offload": "optimizer", "loss_reduction": "sum"}),
        ("dpo", {"zero_stage": 3, "validation_share": 0.1, "keep_every": 3}),
        ("reward_model", {"zero_stage": 3, "gradient_checkpointing": True}),
    ],
    ids=str,
)
def test_two_ranks_take_the_steps_of_one_process(name, options, inputs, tmp_path):
    stage, config = STAGES[name]
    config = config.derive(**options)
    alone, together = Context(tmp_path / "alone"), Context(tmp_path / "together")
    expected = stage.run(config, inputs, alone).metrics
    metrics = stage.run(config.derive(**TWO), inputs, together).metrics

    assert set(together.logged) == {1, 2, 3, 4}
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for step, values in alone.logged.items():
        # Sums in another order differ by 1e-7, which Adam's first steps make more of.
        rel = 1e-5 if step == 1 else 2e-4
        for key in ("loss", "grad_norm", "learning_rate", "num_tokens"):
            assert together.logged[step][key] == pytest.approx(values[key], rel=rel), (step, key)
    load = load_reward_model if name == "reward_model" else load_policy
    for output in {"step-3", "step-4"} if "keep_every" in options else {"model"}:
        ours, theirs = (
            load(c.directory / "out" / output).model.state_dict() for c in (together, alone)
        )
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [20, 1])
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_two_ranks_give_the_reference_of_one_process(zero_stage, count, inputs, tmp_path):
    """Rows of all lengths, so that ranks need different numbers of passes, and a single one."""
    write_rows(tmp_path / "pairs" / "rows.jsonl", pairs(count))
    inputs = {"model": inputs["model"], "pairs": tmp_path / "pairs"}
    config = REFERENCE.derive(zero_stage=zero_stage)
    alone, together = Context(tmp_path / "alone"), Context(tmp_path / "together")
    expected = reference.run(config, inputs, alone).metrics
    assert reference.run(config.derive(**TWO), inputs, together).metrics == pytest.approx(expected)
    ours, theirs = (
        load_file(c.directory / "out" / "logprobs" / FILE)["logprobs"] for c in (together, alone)
    )
    assert ours.shape == (count, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_stopped_reference_is_begun_again(inputs, tmp_path):
    config = REFERENCE.derive(tokens_per_pass=16, zero_stage=3, **TWO)
    write_rows(tmp_path / "pairs" / "rows.jsonl", pairs(20) * 200)
    many = {**inputs, "pairs": tmp_path / "pairs"}
    evicted = Evicted(tmp_path / "stage")
    with StopSignals(), pytest.raises(StageStopped):
        reference.run(config, many, evicted)
    assert not (evicted.directory / "out").exists()
    assert reference.run(config, inputs, evicted).metrics["logps/chosen"] < 0


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_train_the_adapters_of_one_process_in_bf16(zero_stage, inputs, tmp_path):
    config = STAGES["sft"][1].derive(
        bf16=True, lora=LoRAConfig(rank=4), zero_stage=zero_stage, keep_every=3
    )
    alone, together = Context(tmp_path / "alone"), Context(tmp_path / "together")
    sft.run(config, inputs, alone)
    sft.run(config.derive(**TWO), inputs, together)
    assert losses(together) == pytest.approx(losses(alone), rel=3e-3)
    before = load_policy(inputs["model"]).model.state_dict()
    for output in ("step-3", "step-4"):
        ours, theirs = (
            load_policy(c.directory / "out" / output).model.state_dict() for c in (together, alone)
        )
        for name, value in ours.items():
            apart, way = (value - theirs[name]).norm(), (theirs[name] - before[name]).norm()
            assert apart <= 0.1 * way, name


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ({"zero_stage": 3, **TWO}, "deepspeed"),
        ({"lora": LoRAConfig()}, "peft"),
        ({"lora": LoRAConfig(), "quantization": "nf4"}, "bitsandbytes"),
    ],
    ids=["zero", "lora", "nf4"],
)
def test_an_option_without_its_package_is_refused_before_anything_is_read(
    options, module, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    nowhere = {"model": tmp_path / "none", "dataset": tmp_path / "none"}
    with pytest.raises(MissingExtraError, match=f"needs '{module}': install it with"):
        sft.run(STAGES["sft"][1].derive(**options), nowhere, Context(tmp_path / "stage"))


@dataclass
class Evicted(Evicting, Context):
    after: int = 1


def losses(context: Context) -> dict[int, float]:
    return {step: values["loss"] for step, values in context.logged.items()}


def test_stopped_ranks_go_on_in_any_number_with_any_sharing(inputs, tmp_path):
    # So many that the stop, which the ranks are told of by a file, never comes after the last.
    config = STAGES["sft"][1].derive(zero_stage=3, max_steps=60, save_steps=100)
    undisturbed, evicted = Context(tmp_path / "a"), Evicted(tmp_path / "b")
    sft.run(config.derive(**TWO), inputs, undisturbed)
    with StopSignals(), pytest.raises(StageStopped):
        sft.run(config.derive(**TWO), inputs, evicted)
    saved = [path.name for path in (evicted.workdir / "checkpoints").iterdir()]
    assert len(saved) == 1
    stopped_at = int(saved[0].removeprefix("step-"))
    assert stopped_at < 60
    elsewhere = Context(tmp_path / "c")
    shutil.copytree(evicted.workdir / "checkpoints", elsewhere.workdir / "checkpoints")

    sft.run(config.derive(**TWO), inputs, evicted)
    assert losses(evicted) == losses(undisturbed)

    sft.run(config, inputs, elsewhere)  # zero_stage means nothing to one process
    assert set(losses(elsewhere)) == set(range(stopped_at + 1, 61))
    for step in range(stopped_at + 1, min(stopped_at + 5, 61)):
        assert losses(elsewhere)[step] == pytest.approx(losses(undisturbed)[step], rel=1e-4)


def test_ranks_that_drop_at_random_go_on_with_the_same_losses(inputs, tmp_path):
    model = shutil.copytree(inputs["model"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    inputs = inputs | {"model": model}
    undisturbed, resumed = Context(tmp_path / "a"), Context(tmp_path / "b")
    sft.run(STAGES["sft"][1].derive(**TWO), inputs, undisturbed)
    first = Path("checkpoints") / "step-00000002"
    shutil.copytree(undisturbed.workdir / first, resumed.workdir / first)
    sft.run(STAGES["sft"][1].derive(**TWO), inputs, resumed)
    assert losses(resumed) == {step: losses(undisturbed)[step] for step in (3, 4)}


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_checkpoint_from_before_the_first_taken_step_is_gone_on_from(
    zero_stage, inputs, tmp_path
):
    """All steps are left out, so the optimiser has no moments to save."""
    model, tokenizer = load_policy(inputs["model"])
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = torch.nan
    save_model(model, tokenizer, tmp_path / "spoilt")
    spoilt = inputs | {"model": tmp_path / "spoilt"}
    config = STAGES["sft"][1].derive(zero_stage=zero_stage, on_non_finite="skip")
    whole, checkpoint = Context(tmp_path / "a"), Path("checkpoints") / "step-00000002"
    sft.run(config.derive(**TWO), spoilt, whole)
    for name, again in (("b", config.derive(**TWO)), ("c", config)):
        resumed = Context(tmp_path / name)
        shutil.copytree(whole.workdir / checkpoint, resumed.workdir / checkpoint)
        assert sft.run(again, spoilt, resumed).metrics["skipped_steps"] == 4
        assert set(resumed.logged) == {3, 4}


WAIT_SECONDS = 600
"""A busy machine takes minutes to import torch in six processes."""
NODE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from caravan.stages.configs import SFTStageConfig
from caravan.stages import sft
from tiny import Context, Evicting
config = SFTStageConfig.model_validate_json({config!r})
inputs = {{"model": Path({model!r}), "dataset": Path({dataset!r})}}
sft.run(config, inputs, Context(Path({directory!r})))
"""


def start_node(rank: int, port: int, config: SFTStageConfig, inputs, directory: Path):
    code = NODE.format(
        tests=str(Path(__file__).parents[1]),
        config=config.model_dump_json(),
        model=str(inputs["model"]),
        dataset=str(inputs["dataset"]),
        directory=str(directory),
    )
    job = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(rank)}
    place = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | job | place)


def events(directory: Path) -> list[dict[str, object]]:
    """What the leading rank has told, without a line that it is writing."""
    path = directory / "work" / "ranks" / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_nodes_train_together_and_a_lost_one_may_come_back(inputs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = STAGES["sft"][1].derive(
        zero_stage=2, max_steps=400, save_steps=150, learning_rate=1e-4
    )
    first = start_node(0, port, config, inputs, tmp_path / "first")
    second = start_node(1, port, config, inputs, tmp_path / "second")
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        # A checkpoint, and steps that it does not have.
        while not any(event.get("done", 0) > 160 for event in events(tmp_path / "first")):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        second.kill()  # its torchrun and its rank follow it
        second.wait()
        second = start_node(1, port, config, inputs, tmp_path / "second")
        assert first.wait(WAIT_SECONDS) == 0
        assert second.wait(WAIT_SECONDS) == 0
    finally:
        first.kill()
        second.kill()
    told = events(tmp_path / "first")
    assert {event["step"] for event in told if "step" in event} == set(range(1, 401))
    done = [event["done"] for event in told if "done" in event]
    assert any(
        0 < later <= earlier for earlier, later in pairwise(done)
    )  # went on from a checkpoint
    load_policy(tmp_path / "first" / "out" / "model")
    assert not (tmp_path / "second" / "out").exists()
