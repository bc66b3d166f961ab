"""Intervals and differences, against scipy and against counting every case."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from caravan.evals.stats import (
    bootstrap_means,
    crossed_interval,
    macro_interval,
    mean_interval,
    paired_difference,
    pass_at_k,
    student95,
    suite_interval,
    wilson,
)

scores = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=40)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 7), (63, 100), (999, 1000)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    interval = wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_interval_is_close_to_scipys() -> None:
    values = np.random.default_rng(0).beta(2, 1, size=200)
    expected = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    interval = mean_interval(values.tolist(), samples=20_000)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_bootstrap_draws_every_resample_equally_often() -> None:
    values = np.array([0.0, 1.0, 10.0])
    exact = [np.mean(choice) for choice in itertools.product(values, repeat=3)]
    drawn = bootstrap_means(values, samples=54_000, seed=3)
    for mean in set(exact):
        share = np.isclose(drawn, mean).mean()
        assert share == pytest.approx(exact.count(mean) / 27, abs=0.01)


def test_zeros_and_ones_get_wilsons_interval() -> None:
    assert mean_interval([1.0, 0.0, 1.0]) == wilson(2, 3)
    assert mean_interval([1.0] * 10).high == 1.0
    assert mean_interval([1.0] * 10).low < 0.75


def test_a_suite_weighs_its_groups_and_their_tasks_alike() -> None:
    """(mean of 0 and 1) and 1, whatever the number of instances."""
    interval = suite_interval([[[0.0] * 2000, [1.0] * 10], [[1.0] * 50]])
    assert (interval.value, interval.low, interval.high, interval.n) == (0.75, 0.75, 0.75, 2060)
    tasks = [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    assert suite_interval([[task] for task in tasks]) == macro_interval(tasks)


def test_macro_interval_gives_every_group_the_same_weight() -> None:
    interval = macro_interval([[1.0] * 100, [0.0, 0.0]])
    assert (interval.value, interval.n) == (0.5, 102)


def test_a_difference_that_is_everywhere_is_certain_and_none_is_none() -> None:
    sure = paired_difference([0.0] * 50, [1.0] * 50)
    assert (sure.value, sure.low, sure.high, sure.significant) == (1.0, 1.0, 1.0, True)
    none = paired_difference([0.3, 0.4], [0.3, 0.4])
    assert (none.value, none.p_value, none.significant) == (0.0, 1.0, False)


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.random(400)
    before = hardness.tolist()
    after = (hardness + rng.normal(0.02, 0.05, 400)).tolist()
    assert mean_interval(before).high > mean_interval(after).low  # they overlap
    difference = paired_difference(before, after)
    assert difference.significant
    assert difference.p_value < 0.01


def test_p_value_is_close_to_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.random(300), rng.random(300) + 0.04
    expected = scipy_stats.ttest_rel(after, before).pvalue
    p_value = paired_difference(before.tolist(), after.tolist(), samples=20_000).p_value
    assert p_value == pytest.approx(expected, abs=0.01)


def test_interval_of_no_difference_covers_zero_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        a, b = rng.integers(0, 2, 120), rng.integers(0, 2, 120)
        d = paired_difference(a.tolist(), b.tolist(), samples=500, seed=trial)
        covered += d.low <= 0 <= d.high
    assert 0.90 <= covered / 300 <= 0.99


# --- seeds and questions ------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 40, 999, 14_000])
def test_students_quantile_is_scipys(freedom: int) -> None:
    assert student95(freedom) == pytest.approx(scipy_stats.t.ppf(0.975, freedom), rel=1e-6)


def students(values: np.ndarray) -> tuple[float, float]:
    return tuple(scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95))


def test_where_only_questions_or_only_seeds_differ_the_interval_is_students() -> None:
    rng = np.random.default_rng(2)
    questions, seeds = rng.random(50), rng.random(4)
    for table, expected in (
        (np.tile(questions, (4, 1)), students(questions)),
        (questions[None], students(questions)),  # one seed: all that can be counted
        (np.tile(seeds[:, None], (1, 50)), students(seeds)),
    ):
        interval = crossed_interval([table])
        assert (interval.low, interval.high) == pytest.approx(expected)


def test_noise_of_seeds_and_of_questions_add_up_in_quadrature() -> None:
    table = np.random.default_rng(3).random((3, 40))
    halves = [np.ptp(students(table.mean(axis=axis))) / 2 for axis in (0, 1)]
    interval = crossed_interval([table])
    assert (interval.high - interval.low) / 2 == pytest.approx(np.hypot(*halves))
    assert (interval.value, interval.n) == (pytest.approx(table.mean()), 40)


def test_tasks_weigh_alike_and_share_the_noise_of_the_seeds() -> None:
    """Questions of another task are other questions; a lucky seed is lucky in all of them."""
    seeds, questions = np.array([[0.0], [0.1], [0.2]]), np.linspace(-1, 1, 30)[None]
    table = seeds + questions
    ours = [np.ptp(students(table.mean(axis=axis))) / 2 for axis in (0, 1)]
    interval = crossed_interval([table, np.tile(table, 2)])
    assert interval.value == pytest.approx(0.1)
    twice = np.ptp(students(np.tile(questions[0], 2))) / 2
    expected = np.hypot(ours[1], np.hypot(ours[0], twice) / 2)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected)


def test_of_many_seeds_the_interval_is_that_of_resampling_seeds_and_questions() -> None:
    """The pigeonhole bootstrap (Owen 2007), which of a few seeds would be too narrow."""
    rng = np.random.default_rng(4)
    table = 0.1 * rng.normal(size=(60, 1)) + 0.4 * rng.normal(size=(1, 150))
    table = table + 0.3 * rng.normal(size=(60, 150))
    means = [
        table[np.ix_(rng.integers(60, size=60), rng.integers(150, size=150))].mean()
        for _ in range(4000)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    interval = crossed_interval([table])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.006)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.02, 0.1])
def test_an_interval_over_seeds_and_questions_covers_no_difference(
    seeds: int, of_seeds: float
) -> None:
    """Right and wrong answers of two arms that do not differ, but for the luck of their seeds. A
    bootstrap over seeds, and over questions within each, covers 0.81 to 0.89 where that is 0.1."""
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(1000):
        hardness = rng.random((1, 80))
        luck = rng.normal(0, of_seeds, (2, seeds, 1))
        right = rng.random((2, seeds, 80)) < hardness + luck
        interval = crossed_interval([right[1].astype(float) - right[0]])
        covered += interval.low <= 0 <= interval.high
    assert covered / 1000 >= 0.94


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_interval_of_seeds_and_questions_has_no_order(
    seeds: int, questions: int, seed: int, rounded: bool
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(seeds, questions))
    table = table.round() if rounded else table
    interval, other = crossed_interval([table]), crossed_interval([-table])
    assert interval.low <= interval.value <= interval.high
    assert (interval.low, interval.high) == pytest.approx((-other.high, -other.low))
    shuffled = table[rng.permutation(seeds)][:, rng.permutation(questions)]
    again = crossed_interval([shuffled])
    assert (again.low, again.high) == pytest.approx((interval.low, interval.high))
    assert interval.high - interval.low >= np.ptp(students(table.mean(axis=0))) - 1e-9


@given(scores, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_its_mean_and_stays_in_range(values: list[float], seed: int) -> None:
    interval = mean_interval(values, samples=200, seed=seed)
    assert 0.0 <= interval.low <= interval.high <= 1.0
    assert interval == mean_interval(values, samples=200, seed=seed)
    assert interval.value == pytest.approx(sum(values) / len(values))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_swapping_the_models_turns_the_difference_round(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(side) for side in zip(*pairs, strict=True))
    one, other = (paired_difference(*sides, samples=200) for sides in ((a, b), (b, a)))
    assert one.value == pytest.approx(-other.value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert 0 < one.p_value <= 1
    assert one.low <= one.value <= one.high


@given(st.integers(1, 7), st.data())
@settings(max_examples=40, deadline=None)
def test_pass_at_k_counts_the_draws_with_a_right_one(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_what_makes_no_sense_is_an_error() -> None:
    with pytest.raises(ValueError, match="not the same instances"):
        paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no scores"):
        mean_interval([])
    with pytest.raises(ValueError, match="pass@3 of 2"):
        pass_at_k(2, 1, 3)
