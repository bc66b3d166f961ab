"""The `dpo` stage with every loss, on a tiny model; and what KTO measures its pairs against."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from caravan.errors import DataError
from caravan.stages import dpo
from caravan.stages.configs import DPOStageConfig
from caravan.training import reference
from caravan.training.batching import TokenRow
from caravan.training.divergence import Divergence, mismatched
from caravan.training.frozen import Frozen
from caravan.training.models import Policy
from caravan.training.reference import load_reference, reference_logprobs, save_reference
from caravan.training.tokenize import PairRow, tokenize_pairs
from tiny import ONE_CORE, Context, Stopped, pairs

CONFIG = DPOStageConfig(
    learning_rate=3e-3, max_length=64, tokens_per_pass=256, pairs_per_step=10, bf16=False,
    num_train_epochs=12, save_steps=100, resources=ONE_CORE,
)  # fmt: skip
FIRST_LOSS = {
    "sigmoid_norm": math.log(2),
    "sigmoid": math.log(2),
    "robust": math.log(2),
    "hinge": 1.0,
    "ipo": (1 / (2 * 0.1)) ** 2,
    "kto": 0.5,
}
"""Where the policy is still the reference."""
FREE = ("simpo", "orpo")
"""Losses without a reference."""
NAMES = {
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected",
}  # fmt: skip
OWN_NAMES = {"kto": {"kl"}, "orpo": {"nll_loss", "log_odds_ratio", "log_odds_chosen"}}


@pytest.mark.parametrize(
    "loss_type", ["sigmoid_norm", "sigmoid", "robust", "hinge", "ipo", "simpo", "kto", "orpo"]
)
def test_the_stage_learns_to_prefer_with_every_loss(
    loss_type: str, inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    context = Context(tmp_path)
    given = {name: path for name, path in inputs.items() if name != "reference"}
    dpo.run(CONFIG.derive(loss_type=loss_type), given if loss_type in FREE else inputs, context)
    first, last = context.logged[1], context.logged[max(context.logged)]
    if loss_type in FIRST_LOSS:
        assert first["loss"] == pytest.approx(FIRST_LOSS[loss_type], rel=1e-4)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert last["loss"] < 0.95 * first["loss"]
    assert last["rewards/accuracies"] > 0.9
    assert last["rewards/margins"] > first["rewards/margins"]
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], rel=1e-3, abs=1e-5
    )
    assert NAMES | OWN_NAMES.get(loss_type, set()) <= set(last)


def test_kto_stopped_and_started_again_takes_the_same_steps(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    config = CONFIG.derive(loss_type="kto", num_train_epochs=3, save_steps=2)
    undisturbed, stopped = Context(tmp_path / "a"), Context(tmp_path / "b", stop_at=3)
    dpo.run(config, inputs, undisturbed)
    with pytest.raises(Stopped):
        dpo.run(config, inputs, stopped)
    dpo.run(config, inputs, stopped)
    for step, metrics in undisturbed.logged.items():
        for name in ("loss", "kl", "rewards/margins"):
            assert stopped.logged[step][name] == metrics[name]


# --- the divergence -----------------------------------------------------------------------------


def rows_of(policy: Policy, count: int = 8) -> list[PairRow]:
    return tokenize_pairs(pairs(count), policy.tokenizer, 64).rows


def test_no_completion_is_paired_with_its_own_prompt(policy: Policy) -> None:
    given = pairs(8)
    rows = rows_of(policy)
    for i, row in enumerate(mismatched(rows, 64)):
        other = given[(i + 4) % 8]
        text = policy.tokenizer.decode(
            [t for t, m in zip(row.input_ids, row.loss_mask, strict=True) if m]
        )
        end = policy.tokenizer.eos_token
        assert text == (other.rejected if i % 2 else other.chosen) + end
        prompt = [t for t, m in zip(row.input_ids, row.loss_mask, strict=True) if not m]
        assert list(rows[i].chosen.input_ids[: len(prompt)]) == prompt
    assert all(row.length <= 40 for row in mismatched(rows, 40))
    with pytest.raises(DataError, match="at least two pairs"):
        mismatched(rows[:1], 64)


@pytest.mark.parametrize("tokens_per_pass", [64, 4096])
def test_the_divergence_is_the_mean_log_ratio_of_a_step_however_it_is_cut(
    policy: Policy, tokens_per_pass: int
) -> None:
    model, rows = policy.model, rows_of(policy)
    config = CONFIG.derive(tokens_per_pass=tokens_per_pass)
    pad = policy.tokenizer.pad_token_id
    taken = [5, 0, 3]
    mixed = [mismatched(rows, 64)[i] for i in taken]
    first = copy.deepcopy(model.state_dict())

    def total() -> float:
        """Summed log-probabilities of the mismatched completions, from the logits."""
        found = 0.0
        for row in mixed:
            ids, mask = torch.tensor(row.input_ids), torch.tensor(row.loss_mask)
            with torch.no_grad():
                told = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            found += float(told[torch.arange(len(ids) - 1), ids[1:]][mask[1:]].sum())
        return found

    from_first = Divergence(model, rows, config, pad_token_id=pad)
    assert from_first(taken).item() == 0
    before = total()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    from_second = Divergence(model, rows, config, pad_token_id=pad)
    moved = (total() - before) / 3
    assert abs(moved) > 0.1
    there = from_first(taken).item()
    model.load_state_dict(first)
    back = from_second(taken).item()
    assert (there, back) == pytest.approx((max(0, moved), max(0, -moved)), rel=1e-4)


def test_the_loss_does_not_depend_on_how_a_step_is_cut(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    for loss_type in ("kto", "simpo"):
        losses = []
        for tokens_per_pass in (64, 4096):
            context = Context(tmp_path / f"{loss_type}-{tokens_per_pass}")
            changes = {"max_steps": 3, "tokens_per_pass": tokens_per_pass}
            dpo.run(CONFIG.derive(loss_type=loss_type, **changes), inputs, context)
            losses.append([context.logged[step]["loss"] for step in (1, 2, 3)])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_doubtful_beta_is_told_at_the_start(
    inputs: Mapping[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    once = CONFIG.derive(max_steps=1)
    dpo.run(once.derive(beta=0.1), inputs, Context(tmp_path / "norm"))
    assert "dpo.beta: 0.1 looks like a beta of plain DPO" in caplog.text
    caplog.clear()
    dpo.run(once.derive(loss_type="sigmoid", beta=5), inputs, Context(tmp_path / "plain"))
    assert "dpo.beta: 5 looks like a beta of length-normalised DPO" in caplog.text
    caplog.clear()
    dpo.run(once.derive(loss_type="sigmoid"), inputs, Context(tmp_path / "fine"))
    assert "looks like" not in caplog.text


def test_the_reference_is_the_log_probability_of_the_completions(policy: Policy) -> None:
    rows = rows_of(policy, 3)
    pad = policy.tokenizer.pad_token_id
    read = Frozen(policy.model)
    found = reference_logprobs(read, rows, tokens_per_pass=64, bf16=False, pad_token_id=pad)
    for row, (chosen, rejected) in zip(rows, found.tolist(), strict=True):
        for side, value in ((row.chosen, chosen), (row.rejected, rejected)):
            ids = torch.tensor([list(side.input_ids)])
            labels = torch.where(torch.tensor([list(side.loss_mask)]), ids, -100)
            with torch.no_grad():
                mean = policy.model(input_ids=ids, labels=labels).loss
            assert value == pytest.approx(-float(mean) * sum(side.loss_mask), rel=1e-4)


def test_the_reference_is_frozen_while_it_is_read(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights that can be trained autocast keeps copies in bf16, half as much memory again."""
    seen: list[bool] = []
    read = reference.token_logprobs

    def spied(model: PreTrainedModel, *rest: Any) -> torch.Tensor:
        seen.extend(p.requires_grad for p in model.parameters())
        return read(model, *rest)

    monkeypatch.setattr(reference, "token_logprobs", spied)
    reference_logprobs(
        Frozen(policy.model), rows_of(policy, 3), tokens_per_pass=64, bf16=True,
        pad_token_id=policy.tokenizer.pad_token_id,
    )  # fmt: skip
    assert seen
    assert not any(seen)


def test_the_reference_of_other_pairs_is_refused(policy: Policy, tmp_path: Path) -> None:
    rows = rows_of(policy, 3)
    chosen = [TokenRow(r.id, r.chosen.input_ids[:-1], r.chosen.loss_mask[:-1]) for r in rows]
    shorter = [PairRow(r.id, c, r.rejected) for r, c in zip(rows, chosen, strict=True)]
    logprobs = torch.randn(3, 2)
    save_reference(tmp_path, rows, logprobs)
    assert torch.equal(load_reference(tmp_path, rows_of(policy, 3)), logprobs)
    for others in (rows[::-1], shorter):
        with pytest.raises(DataError, match="run the stage `reference`"):
            load_reference(tmp_path, others)
