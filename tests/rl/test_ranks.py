"""RLVR in two processes: real ranks over gloo, against the same stage in one process."""

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from caravan.errors import StageError
from caravan.interruption import StageStopped, StopSignals
from caravan.recipe import GRPOConfig, Resources
from caravan.stages import rlvr
from tiny import Evicting

from .conftest import Context
from .small_run import GRPO, LORA, PPO, config, without_speed

GSPO = GRPOConfig(
    num_generations=4, max_sampling_rounds=4, importance_sampling_level="sequence",
    loss_type="grpo", epsilon=3e-3,
)  # fmt: skip
TWO = Resources(cpus=2, processes=2)
SAME = ("reward", "completions/mean_length", "kl", "entropy", "loss/policy", "grad_norm")


@pytest.fixture
def inputs(policy_dir, reward_model_dir, dataset_dir):
    return {"policy": policy_dir, "reward_model": reward_model_dir, "dataset": dataset_dir}


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (GRPO, {"zero_stage": 0, "prompts_per_step": 31}),
        (PPO, {"zero_stage": 2, "num_epochs": 2, "num_mini_batches": 2}),
        (GRPO, {"zero_stage": 3, "prompts_per_step": 31, "num_epochs": 2, "tokens_per_pass": 256}),
        (PPO, {"zero_stage": 3, "gradient_checkpointing": True}),
        (PPO, {"zero_stage": 2, "reward_model_multiplier": 0.5, "prompts": "all"}),
        (GRPO, {"zero_stage": 3, "reward_model_multiplier": 0.5, "prompts_per_step": 31}),
        (GRPO, {"zero_stage": 2, "prompts_per_step": 31, "lora": LORA}),
        (GSPO, {"zero_stage": 2, "prompts_per_step": 3, "num_epochs": 2}),
    ],
    ids=str,
)
def test_two_ranks_take_the_steps_of_one_process(inputs, context, algorithm, options):
    settings = config(algorithm, max_steps=3, **options)
    alone, together = context("alone"), context("together")
    rlvr.run(settings, inputs, alone)
    rlvr.run(settings.derive(resources=TWO), inputs, together)

    assert sorted(together.logged) == [1, 2, 3]
    names = (
        SAME if algorithm.kind == "grpo" else (*SAME, "loss/value", "value/grad_norm", "value/mean")
    )
    if settings.reward_model_multiplier:
        names = (*names, "objective/scores", "objective/scores_std")
    for step, expected in alone.logged.items():
        # Sums in another order differ by 1e-7, which Adam's first steps make more of.
        rel = 1e-4 if step == 1 else 2e-2
        for name in names:
            assert together.logged[step][name] == pytest.approx(expected[name], rel, abs=1e-4), (
                step, name
            )  # fmt: skip
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(c.root / "out" / "model").state_dict()
        for c in (together, alone)
    )
    moved = AutoModelForCausalLM.from_pretrained(inputs["policy"]).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        apart, way = (value - theirs[name]).norm(), (theirs[name] - moved[name]).norm()
        assert apart <= 0.05 * way, name


def test_ranks_keep_whole_policies_along_the_way(inputs, context):
    settings = config(GRPO, max_steps=3, zero_stage=3, resources=TWO)
    kept, last = context("kept"), context("last")
    rlvr.run(settings.derive(keep_every=1), inputs, kept)
    rlvr.run(settings, inputs, last)
    weights = {
        path.parent.name: path.read_bytes() for path in kept.root.glob("out/*/model.safetensors")
    }
    assert set(weights) == {"step-1", "step-2", "step-3"}
    assert weights["step-3"] == (last.root / "out" / "model" / "model.safetensors").read_bytes()
    assert weights["step-1"] != weights["step-3"]


@dataclass
class Evicted(Evicting, Context):
    after: int = 1

    def output(self, name, kind):
        shutil.rmtree(self.root / "out" / name, ignore_errors=True)
        return super().output(name, kind)


def test_stopped_ranks_go_on_with_policy_and_value_model(inputs, context, tmp_path):
    # So many that the stop, which the ranks are told of by a file, never comes after the last.
    settings = config(PPO, max_steps=40, save_steps=100, prompts_per_step=12, zero_stage=3)
    together = settings.derive(resources=TWO)
    undisturbed, evicted = context("undisturbed"), Evicted(tmp_path / "evicted", after=3)
    rlvr.run(together, inputs, undisturbed)
    with StopSignals(), pytest.raises(StageStopped):
        rlvr.run(together, inputs, evicted)
    (saved,) = (evicted.workdir / "checkpoints").iterdir()
    stopped_at = int(saved.name.removeprefix("step-"))
    assert 3 <= stopped_at < 40
    elsewhere = context("elsewhere")
    shutil.copytree(evicted.workdir / "checkpoints", elsewhere.workdir / "checkpoints")

    rlvr.run(together, inputs, evicted)
    assert without_speed(evicted.logged) == without_speed(undisturbed.logged)

    rlvr.run(settings, inputs, elsewhere)  # in one process
    step = stopped_at + 1
    assert min(elsewhere.logged) == step
    for name in ("loss/policy", "loss/value", "grad_norm", "value/grad_norm"):
        expected = pytest.approx(undisturbed.logged[step][name], rel=1e-2, abs=1e-4)
        assert elsewhere.logged[step][name] == expected


@dataclass
class Robbed(Evicting, Context):
    """Kills one of its ranks with SIGKILL instead, as a kernel out of memory does."""

    after: int = 1

    def disturb(self) -> None:
        os.kill(self.ranks()[-1], signal.SIGKILL)

    def ranks(self) -> list[int]:
        spec = str(self.workdir / "ranks" / "spec.json").encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = path.read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if spec in arguments and b"--standalone" not in arguments:
                found.append(int(path.parent.name))
        return sorted(found)


def test_a_killed_rank_is_not_blamed_on_the_one_that_noticed(inputs, tmp_path):
    settings = config(GRPO, max_steps=200, save_steps=500, prompts_per_step=12, resources=TWO)
    with pytest.raises(StageError, match="a rank that was killed has usually run out of memory"):
        rlvr.run(settings, inputs, Robbed(tmp_path / "robbed"))
