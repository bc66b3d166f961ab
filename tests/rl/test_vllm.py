"""RLVR with rollouts of vLLM, for real, where it is installed; starting it takes half a minute."""

import shutil

import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from caravan.inference import EngineError
from caravan.recipe import Resources, VLLMRollouts
from caravan.stages import rlvr
from caravan.training.models import save_model
from caravan.training.rl import vllm_sampler

from .conftest import Context
from .small_run import GRPO, config, without_speed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAME = ("reward", "completions/mean_length", "kl", "entropy", "loss/policy", "grad_norm")


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two on one socket


@pytest.fixture(scope="module")
def inputs(tokenizer, dataset_dir, tmp_path_factory):
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
        head_dim=32,  # vLLM has no CPU kernel for smaller heads
        max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("policy")
    save_model(LlamaForCausalLM(shape), tokenizer, directory)
    return {"policy": directory, "dataset": dataset_dir}


@pytest.fixture(scope="module")
def settings():
    return config(GRPO, max_steps=4, save_steps=2, prompts_per_step=12, rollouts=VLLMRollouts())


@pytest.fixture(scope="module")
def alone(settings, inputs, tmp_path_factory):
    """A run in one process."""
    there = Context(tmp_path_factory.mktemp("alone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        rlvr.run(settings, inputs, there)
    return there


def sampled_with_the_weights_of_each_step(there):
    for metrics in there.logged.values():
        # What vLLM says of its tokens is what the trainer computes of them, after every update.
        assert metrics["mismatch/logprob_abs_max"] < 1e-4
        assert metrics["mismatch/importance_weight"] == pytest.approx(1, abs=1e-4)
        assert metrics["mismatch/capped_ratio"] == 0
    first, *later = (there.logged[step] for step in sorted(there.logged))
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert all(metrics["kl"] > 1e-3 for metrics in later)  # it is not what the run began with


def test_each_step_is_sampled_with_the_weights_of_its_policy(alone):
    assert sorted(alone.logged) == [1, 2, 3, 4]
    sampled_with_the_weights_of_each_step(alone)
    for metrics in alone.logged.values():
        assert 0 < metrics["completions/clipped_ratio"] < 1  # some ended, at the end token
        assert metrics["completions/max_length"] == 8


class Killing(Context):
    """Kills vLLM when step 3 is done, as a kernel out of memory does."""

    def progress(self, done, total):
        super().progress(done, total)
        if done == 3:
            children = psutil.Process().children(recursive=True)
            for child in [c for c in children if c.name().startswith("VLLM")]:
                child.kill()


def test_a_run_whose_vllm_was_killed_says_so_and_goes_on_with_the_same_completions(
    settings, inputs, alone, context, monkeypatch, tmp_path
):
    stopped = Killing(tmp_path / "stopped")
    with pytest.raises(EngineError, match="vLLM's process has ended"):
        rlvr.run(settings, inputs, stopped)
    assert sorted(stopped.logged) == [1, 2, 3]
    elsewhere = context("elsewhere")
    shutil.copytree(stopped.workdir / "checkpoints", elsewhere.workdir / "checkpoints")
    monkeypatch.setattr(vllm_sampler, "IN_MEMORY", context("no file system in memory").root)
    rlvr.run(settings, inputs, elsewhere)
    assert sorted(elsewhere.logged) == [3, 4]
    assert not list(elsewhere.workdir.glob("caravan-policy-*"))
    assert without_speed(stopped.logged | elsewhere.logged) == without_speed(alone.logged)


@pytest.mark.parametrize(("size", "zero_stage"), [(1, 0), (2, 3)])
def test_ranks_sample_what_one_process_does(settings, inputs, alone, context, size, zero_stage):
    """Each with a vLLM of its own, or with one that is divided over both and has weights that no
    rank has whole."""
    there = context("run")
    rollouts = VLLMRollouts(tensor_parallel_size=size)
    resources = Resources(cpus=2, processes=2)
    rlvr.run(
        settings.derive(max_steps=2, zero_stage=zero_stage, rollouts=rollouts, resources=resources),
        inputs,
        there,
    )
    assert sorted(there.logged) == [1, 2]
    sampled_with_the_weights_of_each_step(there)
    for name in SAME:
        expected = pytest.approx(alone.logged[1][name], rel=1e-3, abs=1e-5)
        assert there.logged[1][name] == expected, name
