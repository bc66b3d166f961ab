"""What a completion is rewarded with, also where its verifier fails."""

import pytest

from caravan.data.io import read_rows, write_rows
from caravan.data.records import RolloutGroup
from caravan.errors import StageError
from caravan.recipe import Resources
from caravan.stages import rlvr
from caravan.training.rl import rollout
from caravan.verifiers import VERIFIERS, VerifierError

from .conftest import row
from .small_run import GRPO, PPO, config


def test_a_failed_verifier_is_counted_and_masked_not_a_zero_reward(inputs, context, monkeypatch):
    def broken_on_odd_lengths(completion, ground_truth):
        if len(completion) % 2:
            raise VerifierError("the sandbox is away")
        return VERIFIERS["contains"](completion, ground_truth)

    monkeypatch.setitem(VERIFIERS, "sometimes", broken_on_odd_lengths)
    rows = inputs["dataset"].parent / "sometimes"
    write_rows(rows / "rows.jsonl", [row(i, verifier="sometimes") for i in range(20)])
    there = context("run")
    rlvr.run(config(max_steps=1), inputs | {"dataset": rows}, there)
    groups = list(read_rows(there.root / "out" / "rollouts", RolloutGroup))
    failed = [
        (reward, advantage)
        for group in groups
        for text, reward, advantage in zip(
            group.completions, group.rewards, group.advantages, strict=True
        )
        if len(text) % 2
    ]
    assert failed
    assert set(failed) == {(None, 0.0)}
    assert there.logged[1]["verifier/failures"] == len(failed)
    known = [r for group in groups for r in group.rewards if r is not None]
    assert there.logged[1]["reward"] == pytest.approx(sum(known) / len(known))


def test_a_verifier_that_always_fails_stops_the_run(inputs, context, monkeypatch, tmp_path):
    def away(completion, ground_truth):
        raise TimeoutError

    monkeypatch.setitem(VERIFIERS, "away", away)
    write_rows(tmp_path / "rows.jsonl", [row(i, verifier="away") for i in range(4)])
    with pytest.raises(StageError, match="every verifier failed, on all 64 completions"):
        rlvr.run(config(), inputs | {"dataset": tmp_path}, context("run"))


SHARE_OF_VOWELS = """\
def verify(completion, ground_truth):
    if completion < "h":
        raise ValueError("cannot tell")
    return sum(letter in ground_truth for letter in completion) / len(completion)
"""


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_a_verifier_of_ones_own_rewards_by_its_score(inputs, context, tmp_path, algorithm, caplog):
    there = context("run")
    there.root.mkdir()
    (there.root / "own.py").write_text(SHARE_OF_VOWELS)
    rows = [row(i, verifier="share", ground_truth="aeiou") for i in range(20)]
    write_rows(tmp_path / "rows.jsonl", rows)
    settings = config(
        algorithm,
        max_steps=2,
        verification_reward=10.0,
        verifiers={"share": "own.py"},
        resources=Resources(cpus=2),
    )
    rlvr.run(settings, inputs | {"dataset": tmp_path}, there)

    failed, rewards = 0, set()
    for group in read_rows(there.root / "out" / "rollouts", RolloutGroup):
        for text, reward, outcome in zip(
            group.completions, group.rewards, group.outcomes, strict=True
        ):
            if text < "h":
                failed += 1
                assert (reward, outcome) == (None, "failed")
                assert f"verifier share failed on a completion of {group.prompt_id}" in caplog.text
            else:
                share = sum(letter in "aeiou" for letter in text) / len(text)
                assert reward == pytest.approx(10 * share)
                assert outcome == ("verified" if share == 1 else "not_verified")
                rewards.add(reward)
    assert failed
    assert any(0 < reward < 10 for reward in rewards)
    assert "own.py: verify: ValueError: cannot tell (line 3)" in caplog.text
    assert list(rlvr.external_files(settings, there.root)) == [there.root / "own.py"]


def test_a_verifier_that_gives_a_part_is_rewarded_for_the_whole_alone():
    """As in Tülu 3: of two constraints of ifeval that one kept is worth nothing."""
    no_comma = {"id": "punctuation:no_comma", "kwargs": {}}
    fox = {"id": "keywords:existence", "kwargs": {"keywords": ["fox"]}}
    constrained = row(0, verifier="ifeval", ground_truth=[no_comma, fox])
    verifier = VERIFIERS["ifeval"]
    assert verifier("a fox, a dog", constrained.ground_truth).score == 0.5
    assert rollout.judge(verifier, constrained, "a fox, a dog") == ("not_verified", 0.0)
    assert rollout.judge(verifier, constrained, "a fox") == ("verified", 1.0)


@pytest.mark.parametrize(
    ("outcome", "share", "ended", "expected"),
    [
        ("verified", 1.0, True, 10.0),
        ("verified", 1.0, False, -10.0),  # right but unterminated: replaced, as in Tülu 3's code
        ("not_verified", 0.0, True, 0.0),
        ("not_verified", 0.0, False, -10.0),
        ("not_verified", 0.25, True, 2.5),
        ("failed", 0.0, True, None),
        ("failed", 0.0, False, None),
    ],
)
def test_the_reward_of_an_outcome(outcome, share, ended, expected):
    actual = rollout.reward_of(
        rollout.Judgement(rollout.Outcome(outcome), share),
        ended=ended,
        verification_reward=10.0,
        missing_eos_reward=-10.0,
    )
    assert actual == expected
