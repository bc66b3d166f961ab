"""Rounds of dynamic sampling, with completions whose rewards are given."""

from itertools import chain, pairwise

import pytest

from caravan.inference.sampler import TokenSequence
from caravan.recipe import GRPOConfig
from caravan.stages import rlvr
from caravan.training.rl.dynamic_sampling import sample_in_rounds
from caravan.training.rl.rollout import Outcome, RLPrompt, Rollout, RolloutBatch

from .conftest import row
from .small_run import config

PROMPTS = [RLPrompt(row(i), (1,)) for i in range(20)]


class Collecting:
    """Gives prompts whose number is in `teaching` a group of different rewards."""

    def __init__(self, teaching):
        self.teaching = teaching
        self.rounds, self.seeds = [], []

    def __call__(self, prompts, seed):
        numbers = [PROMPTS.index(prompt) for prompt in prompts]
        self.rounds.append(numbers)
        self.seeds.append(seed)
        rollouts = [
            Rollout(prompt, TokenSequence((3,), (0.0,), "stop"), "", Outcome.VERIFIED, reward)
            for prompt, number in zip(prompts, numbers, strict=True)
            for reward in (1.0, 0.0 if number in self.teaching else 1.0)
        ]
        return RolloutBatch(tuple(rollouts), 2)


def rounds(teaching, *, most, first=4, spare=None):
    collect = Collecting(teaching)
    found = sample_in_rounds(
        collect, PROMPTS[:first], PROMPTS[first:] if spare is None else spare,
        max_rounds=most, seed=7,
    )  # fmt: skip
    assert [r.prompt for r in found.rollouts[::2]] == [
        PROMPTS[i] for i in chain.from_iterable(collect.rounds)
    ]
    assert len(set(collect.seeds)) == len(collect.seeds)
    assert collect.seeds[0] == 7
    return collect.rounds


def test_a_batch_that_teaches_is_sampled_once():
    assert rounds({0, 1, 2, 3}, most=5) == [[0, 1, 2, 3]]


def test_further_prompts_come_in_their_order_until_there_are_enough_that_teach():
    # Two of four teach, so four more should bring the missing two; one teaches, and the last
    # missing one is asked for among ceil(1 * 8 / 3) = 3.
    assert rounds({0, 3, 5, 8, 10}, most=5) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_where_nothing_teaches_a_round_is_as_large_as_the_step():
    assert rounds(set(), most=3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(("most", "spare"), [(1, None), (4, [])])
def test_one_round_or_no_spare_prompt_takes_what_there_is(most, spare):
    assert rounds(set(), most=most, spare=spare) == [[0, 1, 2, 3]]


def test_prompts_that_run_out_end_the_rounds():
    assert rounds({0}, most=9, spare=PROMPTS[4:6]) == [[0, 1, 2, 3], [4, 5]]


def test_a_step_of_the_stage_gets_more_groups_to_learn_from(
    policy_dir, reward_model_dir, dataset_dir, context
):
    inputs = {"policy": policy_dir, "reward_model": reward_model_dir, "dataset": dataset_dir}

    def learned_from(most):
        there = context(f"rounds-{most}")
        algorithm = GRPOConfig(num_generations=2, max_sampling_rounds=most)
        rlvr.run(config(algorithm, prompts_per_step=4), inputs, there)
        sampled = [0.0, *(there.logged[step]["episodes"] / 2 for step in (1, 2, 3, 4))]
        skipped = [there.logged[step]["batch/groups_skipped"] for step in (1, 2, 3, 4)]
        asked = [b - a for a, b in pairwise(sampled)]
        return asked, [a - s for a, s in zip(asked, skipped, strict=True)]

    asked, once = learned_from(1)
    assert asked == [4] * 4
    asked, often = learned_from(9)
    assert all(4 <= number <= 20 for number in asked)  # there are twenty prompts
    assert sum(often) > sum(once)
    assert all(teach >= 4 or number == 20 for teach, number in zip(often, asked, strict=True))
