import logging
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caravan.errors import DataError
from caravan.recipe import Resources, SFTConfig
from caravan.training.batching import (
    TokenRow,
    collate,
    plan_steps,
    split_passes,
    split_ranks,
)
from caravan.training.sft import sft_job


@given(st.lists(st.integers(1, 200), min_size=1, max_size=50), st.integers(8, 500))
def test_passes_take_every_row_once_and_stay_within_the_limit(lengths, limit):
    passes = split_passes(lengths, limit)
    assert sorted(i for cut in passes for i in cut) == list(range(len(lengths)))
    for cut in passes:
        assert len(cut) == 1 or sum(lengths[i] for i in cut) <= limit


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=60), st.integers(1, 9))
def test_ranks_share_every_row_once_with_nearly_equal_tokens(lengths, ranks):
    shares = split_ranks(lengths, ranks)
    assert len(shares) == ranks
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    assert len(lengths) < ranks or all(shares)
    loads = [sum(lengths[i] for i in share) for share in shares]
    # Whoever has the most had the least before its last row, so no two differ by more than a row.
    assert max(loads) - min(loads) <= max(lengths)


def test_every_epoch_takes_every_row_once_in_another_order():
    sampler = plan_steps(10, 4, epochs=2, max_steps=None, seed=5)
    steps = [sampler.step(i) for i in range(sampler.steps)]
    rows = [row for step in steps for row in step]
    assert [len(step) for step in steps] == [4, 4, 4, 4, 4]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]


def test_rows_of_a_step_do_not_depend_on_the_steps_asked_before():
    def fresh():
        return plan_steps(10, 3, epochs=3, max_steps=None, seed=5)

    whole = fresh()
    assert [whole.step(i) for i in range(whole.steps)] == [
        fresh().step(i) for i in range(fresh().steps)
    ]


def test_epochs_may_be_fractions_and_the_last_step_smaller():
    sampler = plan_steps(10, 4, epochs=0.6, max_steps=None, seed=5)
    assert [len(sampler.step(i)) for i in range(sampler.steps)] == [4, 2]


def test_a_step_larger_than_the_dataset_takes_all_of_it_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        sampler = plan_steps(3, 128, epochs=2, max_steps=None, seed=5)
    assert "128 rows per optimiser step were asked for, but there are only 3" in caplog.text
    assert [sorted(sampler.step(i)) for i in range(sampler.steps)] == [[0, 1, 2], [0, 1, 2]]


@given(st.integers(3, 60), st.floats(0.01, 0.6), st.integers(0, 5))
def test_rows_held_out_are_in_no_step_and_all_others_once_an_epoch(rows, share, seed):
    sampler = plan_steps(rows, 3, epochs=2.0, max_steps=None, seed=seed, validation_share=share)
    drawn = Counter(row for step in range(sampler.steps) for row in sampler.step(step))
    assert set(drawn.values()) == {2}
    assert sorted([*drawn, *sampler.held_out]) == list(range(rows))
    assert len(sampler.held_out) == math.ceil(share * rows)


def test_something_must_be_left_to_train_on():
    with pytest.raises(DataError, match=r"validation_share 0.9 of 3 rows leaves none to train on"):
        plan_steps(3, 3, epochs=1.0, max_steps=None, seed=0, validation_share=0.9)


def test_no_rows_is_an_error_before_the_first_step():
    with pytest.raises(DataError, match="no rows are left"):
        plan_steps(0, 4, epochs=1, max_steps=None, seed=5)


def test_rows_are_padded_on_the_right():
    batch = collate([TokenRow("a", [5, 6, 7], [False, True, True]), TokenRow("b", [8], [True])], 0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.tokens == 4


@torch.no_grad()
def plain_logprobs(model, row):
    """Of the supervised tokens of one row, unpadded, through the whole logits."""
    ids = torch.tensor(row.input_ids)
    every = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])
    return every.squeeze(1)[torch.tensor(row.loss_mask[1:])]


def test_the_loss_is_the_same_however_the_step_is_cut(policy, ids):
    """Rows of unlike length and unlike share of supervised tokens: a mean of means would differ."""
    rows = [
        TokenRow(str(i), ids[i % 3, :n].tolist(), [False] * (n - k) + [True] * k)
        for i, (n, k) in enumerate([(16, 2), (6, 5), (12, 1), (9, 8), (4, 3), (16, 15)])
    ]
    expected = -torch.cat([plain_logprobs(policy.model, row) for row in rows]).mean().item()
    start = {k: v.clone() for k, v in policy.model.state_dict().items()}
    results = []
    for tokens_per_pass in (1, 40, 10_000):
        policy.model.load_state_dict(start)
        config = SFTConfig(
            sequences_per_step=6,
            tokens_per_pass=tokens_per_pass,
            bf16=False,
            num_train_epochs=1,
            resources=Resources(cpus=1),
        )
        job = sft_job(policy.model, rows, config, pad_token_id=0, seed=1)
        passes = job.passes(range(6))
        assert len(passes) == {1: 6, 40: 2, 10_000: 1}[tokens_per_pass]
        (metrics,) = job.steps(bf16=False)
        results.append((metrics.values["loss"], metrics.values["grad_norm"]))
    assert results[0][0] == pytest.approx(expected, rel=1e-5)
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


@given(st.integers(2, 30), st.integers(1, 8), st.floats(0.1, 3), st.floats(0, 0.5))
def test_rows_that_are_drawn_are_those_of_all_steps(rows, rows_per_step, epochs, held_out):
    sampler = plan_steps(
        rows, rows_per_step, epochs=epochs, max_steps=None, seed=5, validation_share=held_out
    )
    steps = {row for index in range(sampler.steps) for row in sampler.step(index)}
    assert sorted(sampler.drawn()) == sorted(steps)
