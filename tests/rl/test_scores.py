"""RLVR against a reward model: what it scores, what that does to rewards, and that it teaches."""

import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from caravan.data.io import read_rows, write_rows
from caravan.data.records import RolloutGroup
from caravan.errors import DataError, StageError
from caravan.recipe import Resources
from caravan.stages import rlvr
from caravan.training.bpe import train_tokenizer
from caravan.training.models import load_reward_model, save_model
from caravan.training.rl import session

from .conftest import row
from .small_run import GRPO, PPO, config

SCORED = {"reward_model_multiplier": 0.5, "prompts": "all", "skills": ()}


@pytest.fixture
def half_verifiable(tmp_path):
    bare = {"verifier": None, "ground_truth": None}
    rows = [row(i, **(bare if i % 2 else {})) for i in range(20)]
    write_rows(tmp_path / "rows.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize("cpus", [1, 2])
def test_rewards_are_those_worked_out_completion_by_completion(
    inputs, context, half_verifiable, monkeypatch, cpus
):
    steps, some_rollouts = [], session._some_rollouts

    def keep(step, result):
        steps.append(result)
        return some_rollouts(step, result)

    monkeypatch.setattr(session, "_some_rollouts", keep)
    there = context("run")
    settings = config(
        max_steps=1, missing_eos_reward=-2.0, verification_reward=3.0, prompts_per_step=16,
        tokens_per_pass=256, resources=Resources(cpus=cpus), **SCORED,
    )  # fmt: skip
    rlvr.run(settings, inputs | {"dataset": half_verifiable}, there)

    judge = AutoModelForSequenceClassification.from_pretrained(inputs["reward_model"]).eval()
    judge.config.pad_token_id = None  # a completion may end in any token
    rollouts, kinds = steps[0].rollouts.rollouts, set()
    for rollout in rollouts:
        ids = [*rollout.prompt.token_ids, *rollout.sequence.token_ids]
        with torch.no_grad():
            score = judge(input_ids=torch.tensor([ids])).logits.item()
        assert rollout.score == pytest.approx(score, abs=1e-5)
        ended = rollout.sequence.finish_reason == "stop"
        right = any(character.isdigit() for character in rollout.text.split())
        verified = rollout.prompt.row.verifier is not None and right
        expected = 0.5 * score + 3.0 * verified if ended else -2.0
        assert rollout.reward == pytest.approx(expected, abs=1e-5)
        assert (rollout.outcome == "unchecked") == (rollout.prompt.row.verifier is None)
        kinds.add((ended, rollout.outcome.value))
    assert {(True, "unchecked"), (False, "unchecked"), (True, "not_verified")} <= kinds

    logged, scores = there.logged[1], torch.tensor([r.score for r in rollouts])
    assert logged["objective/scores"] == pytest.approx(float(scores.mean()), abs=1e-5)
    assert logged["objective/scores_std"] == pytest.approx(float(scores.std(correction=0)))
    checked = [r.outcome == "verified" for r in rollouts if r.prompt.row.verifier]
    assert logged["objective/verified"] == sum(checked) / len(checked)
    kept = list(read_rows(there.root / "out" / "rollouts", RolloutGroup))
    assert [s for group in kept for s in group.scores] == scores[: 8 * 8].tolist()
    assert {group.verifier for group in kept} == {"", "contains"}


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_the_policy_learns_what_the_reward_model_likes(inputs, context, half_verifiable, algorithm):
    there = context("run")
    settings = config(
        algorithm, max_steps=30, prompts_per_step=12 if algorithm is GRPO else 64,
        verification_reward=0.0, **SCORED,
    )  # fmt: skip
    rlvr.run(settings, inputs | {"dataset": half_verifiable}, there)
    scores = [there.logged[step]["objective/scores"] for step in sorted(there.logged)]
    spread = there.logged[1]["objective/scores_std"]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + spread / 2
    assert there.logged[30]["reward"] == pytest.approx(0.5 * scores[-1], abs=1e-5)


def test_prompts_without_any_verifier_have_no_share_of_verified_ones(inputs, context, tmp_path):
    write_rows(
        tmp_path / "rows.jsonl", [row(i, verifier=None, ground_truth=None) for i in range(9)]
    )
    there = context("run")
    rlvr.run(config(max_steps=21, prompts_per_step=2, **SCORED), inputs | {"dataset": tmp_path},
             there)  # fmt: skip
    assert "objective/verified" not in there.logged[21]
    assert there.logged[21]["verifier/failures"] == 0


def test_a_reward_model_is_not_asked_unless_its_score_counts(inputs, context, monkeypatch):
    monkeypatch.delattr(session, "load_reward_model")
    there = context("run")
    rlvr.run(config(max_steps=1), inputs, there)
    assert "objective/scores" not in there.logged[1]
    (line, *_) = (there.root / "out" / "rollouts" / "rows.jsonl").read_text().splitlines()
    assert '"scores"' not in line


def test_a_reward_model_of_other_tokens_is_refused(inputs, context, tmp_path):
    model, _ = load_reward_model(inputs["reward_model"])
    other = train_tokenizer(["say a digit"] * 9, vocab_size=300, model_max_length=128)
    save_model(model, other, tmp_path / "other")
    with pytest.raises(DataError, match="has other tokens than the policy's; take a reward model"):
        rlvr.run(config(**SCORED), inputs | {"reward_model": tmp_path / "other"}, context("run"))


def test_a_score_that_is_no_number_stops_the_run(inputs, context, tmp_path):
    model, tokenizer = load_reward_model(inputs["reward_model"])
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    save_model(model, tokenizer, tmp_path / "broken")
    with pytest.raises(StageError, match=r"score of a completion of toy/\d+ is nan"):
        rlvr.run(config(**SCORED), inputs | {"reward_model": tmp_path / "broken"}, context("run"))
