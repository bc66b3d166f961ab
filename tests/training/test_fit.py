"""What a training run does when it is asked to stop, and when its numbers go wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from caravan.data.io import read_rows
from caravan.data.records import Conversation
from caravan.interruption import StageStopped, StopSignals
from caravan.stages import sft
from caravan.stages.configs import SFTStageConfig
from caravan.training.adapters import add_adapters
from caravan.training.batching import StepSampler, TokenRow
from caravan.training.dpo import DPOObjective
from caravan.training.fit import Job
from caravan.training.health import PEAK_FLOPS, SpikeWatch, peak_flops, speed
from caravan.training.loop import NonFiniteError, Pass, train
from caravan.training.losses.simpo import SimPO
from caravan.training.models import load_policy, save_model
from caravan.training.optim import Schedule, Updater
from caravan.training.pairs import pair_passes
from caravan.training.parallel import ranks
from caravan.training.sft import sft_job
from caravan.training.tokenize import PairRow, tokenize_conversations
from tiny import ONE_CORE, Context, Evicting

CONFIG = SFTStageConfig(
    learning_rate=1e-3, max_length=64, tokens_per_pass=256, sequences_per_step=4, max_steps=6,
    save_steps=100, bf16=False, resources=ONE_CORE,
)  # fmt: skip


@dataclass
class Evicted(Evicting, Context):
    after: int = 2


def test_sigterm_saves_after_the_step_and_the_next_attempt_goes_on_from_there(inputs, tmp_path):
    undisturbed, evicted = Context(tmp_path / "a"), Evicted(tmp_path / "b")
    sft.run(CONFIG, inputs, undisturbed)
    with StopSignals(), pytest.raises(StageStopped):
        sft.run(CONFIG, inputs, evicted)
    saved = [path.name for path in (evicted.workdir / "checkpoints").iterdir()]
    assert saved == ["step-00000002"]
    assert sorted(evicted.logged) == [1, 2]

    sft.run(CONFIG, inputs, evicted)
    assert sorted(evicted.logged) == sorted(undisturbed.logged)
    assert {step: values["loss"] for step, values in evicted.logged.items()} == {
        step: values["loss"] for step, values in undisturbed.logged.items()
    }
    weights = [c.directory / "out" / "model" / "model.safetensors" for c in (evicted, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_loss_of_held_out_rows_is_that_of_the_model_on_rows_it_never_trains_on(
    inputs, tmp_path
):
    config = CONFIG.derive(validation_share=0.3, validation_steps=4)
    context, stopped = Context(tmp_path / "a"), Evicted(tmp_path / "b", after=5)
    result = sft.run(config, inputs, context)
    measured = [step for step, values in context.logged.items() if "validation/loss" in values]
    assert measured == [4, 6]
    assert result.metrics["validation/loss"] == context.logged[6]["validation/loss"]

    model, tokenizer = load_policy(context.directory / "out" / "model")
    rows = tokenize_conversations(read_rows(inputs["dataset"], Conversation), tokenizer, 64).rows
    job = sft_job(model, rows, config, pad_token_id=tokenizer.pad_token_id, seed=context.seed)
    held_out = [rows[i] for i in job.sampler.held_out]
    assert 0 < len(held_out) < len(rows)
    losses, tokens = 0.0, 0
    for row in held_out:
        ids, mask = torch.tensor([row.input_ids]), torch.tensor(row.loss_mask)[1:]
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)[range(len(mask)), ids[0, 1:]]
        losses, tokens = losses - logprobs[mask].sum().item(), tokens + int(mask.sum())
    assert result.metrics["validation/loss"] == pytest.approx(losses / tokens, rel=1e-5)

    with StopSignals(), pytest.raises(StageStopped):
        sft.run(config, inputs, stopped)
    assert sft.run(config, inputs, stopped).metrics == result.metrics


def give_dropout(model: Path) -> None:
    """In attention, which has no module for it."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))


def test_equal_runs_drop_the_same_also_with_several_cores(inputs, tmp_path):
    model = shutil.copytree(inputs["model"], tmp_path / "model")
    give_dropout(model)
    config = CONFIG.derive(tokens_per_pass=64, sequences_per_step=8, resources={"cpus": 2})
    runs = [Context(tmp_path / f"{i}") for i in range(3)]
    for run in runs:
        sft.run(config, inputs | {"model": model}, run)
    losses = [[values["loss"] for values in run.logged.values()] for run in runs]
    assert losses[0] == losses[1] == losses[2]


def test_each_step_draws_anew_and_each_rank_its_own(monkeypatch):
    def drawn(rank: int, first_step: int) -> list[float]:
        monkeypatch.setattr(ranks, "_current", ranks.Ranks(rank, 2))
        found = []
        job = idle_job(lambda taken: found.append(torch.rand(()).item()) or [])
        for step in range(first_step, 4):
            job._own_passes([1, 1], step)
        return found

    assert drawn(0, 2) == drawn(0, 0)[2:]  # goes on as if it had not stopped
    every = drawn(0, 0) + drawn(1, 0)
    assert len(set(every)) == len(every)


def idle_job(passes, **options) -> Job:
    row = TokenRow("r", [1], [True])
    return Job(None, None, None, StepSampler(2, 2, 20, seed=1), [row, row], passes, **options)  # type: ignore[arg-type]


def test_a_rank_without_rows_adds_nothing_to_an_estimate(monkeypatch):
    told = []
    job = idle_job(list, add_estimate=lambda batches, own: told.extend(own) or batches)
    for rank in range(4):
        monkeypatch.setattr(ranks, "_current", ranks.Ranks(rank, 4))
        passes = job._own_passes([1, 1], 0)
        assert [one.counts for one in passes] == [rank < 2]
    assert sorted(told) == [0, 1]


@pytest.fixture
def poisoned(inputs, tmp_path):
    """Inputs in which one row, the first, has a token whose embedding is not a number."""
    model, tokenizer = load_policy(inputs["model"])
    rows = tokenize_conversations(read_rows(inputs["dataset"], Conversation), tokenizer, 64).rows
    used = Counter(token for row in rows for token in set(row.input_ids))
    row, token = next((row, t) for row in rows for t in row.input_ids if used[t] == 1)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    save_model(model, tokenizer, tmp_path / "poisoned")
    return inputs | {"model": tmp_path / "poisoned"}, row.id


def test_a_step_that_is_not_finite_is_left_out_where_the_recipe_says_so(poisoned, tmp_path, caplog):
    inputs, row = poisoned
    config = CONFIG.derive(on_non_finite="skip", max_steps=10)
    context = Context(tmp_path / "stage")
    metrics = sft.run(config, inputs, context).metrics
    skipped = [step for step, values in context.logged.items() if values["loss"] != values["loss"]]
    assert metrics["skipped_steps"] == len(skipped) == 2  # twenty rows, four a step: two epochs
    assert caplog.text.count(f"{row};") + caplog.text.count(f"{row},") == 2
    losses = [values["loss"] for values in context.logged.values() if values["loss"] > 0]
    assert losses[-1] < losses[0]


def test_too_many_such_steps_stop_the_run(poisoned, tmp_path):
    inputs, _ = poisoned
    config = CONFIG.derive(on_non_finite="skip", max_steps=100, sequences_per_step=20)
    with pytest.raises(
        NonFiniteError, match="11 steps had a loss or a gradient that is not finite"
    ):
        sft.run(config, inputs, Context(tmp_path / "stage"))


def test_such_a_step_stops_the_run_otherwise_and_names_its_rows(poisoned, tmp_path):
    inputs, row = poisoned
    with pytest.raises(NonFiniteError, match=rf"on rows .*{row}\b"):
        sft.run(CONFIG, inputs, Context(tmp_path / "stage"))


def test_a_jump_of_the_loss_is_a_spike_and_noise_is_none():
    watch = SpikeWatch()
    noise = torch.rand(60, generator=torch.Generator().manual_seed(1)).tolist()
    found = [watch.watch(2.0 - 0.01 * i + 0.1 * value) for i, value in enumerate(noise)]
    assert not any(found)
    assert watch.watch(4.0)
    assert SpikeWatch(**watch.state()) == watch
    assert watch.spikes == 1
    assert not watch.watch(1.4)


def test_the_peak_of_a_device_is_known_by_its_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == PEAK_FLOPS["H100"]
    assert peak_flops("NVIDIA H200") == PEAK_FLOPS["H200"]
    assert peak_flops("NVIDIA L40S") == PEAK_FLOPS["L40S"]
    assert peak_flops("Tesla V100") is None


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**31)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")


def test_speed_counts_what_was_computed(policy, on_gpu):
    model = policy.model
    shape = model.config
    body = shape.num_hidden_layers * (
        4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
    )
    head = shape.hidden_size * shape.vocab_size

    def mfu() -> float:
        values = speed(model, 1000, 100, 2.0, ranks=4)
        assert values["perf/tokens_per_second"] == 500
        assert values["perf/peak_gpu_memory_gib"] == 2
        return values["perf/mfu"] * 2.0 * 4 * PEAK_FLOPS["H100"]

    assert mfu() == pytest.approx(6 * body * 1000 + 6 * head * 100)
    add_adapters(
        model, CONFIG.derive(lora={"rank": 4, "target_modules": ["q_proj"]}), torch.device("cpu")
    )
    adapters = shape.num_hidden_layers * 2 * 4 * shape.hidden_size
    assert mfu() == pytest.approx(4 * body * 1000 + 6 * adapters * 1000 + 4 * head * 100)


def test_a_prompt_that_both_sides_begin_with_is_computed_once(policy):
    prompt, mask = [5] * 20, [False] * 20 + [True] * 6
    row = PairRow("p", *(TokenRow("s", prompt + [last] * 6, mask) for last in (6, 7)))
    [batch] = pair_passes([row], torch.empty(0), 2000, 0, [0])
    [metrics] = train(
        policy.model,
        Updater(policy.model, Schedule(1e-3, 1)),
        lambda step: [Pass(batch), Pass(batch, counts=False)],
        DPOObjective(SimPO()),
        bf16=False,
    )
    assert (metrics.tokens, metrics.computed, metrics.supervised) == (52, 32, 12)
