"""How sure a score is, and whether two scores differ.

Intervals are 95 %. A proportion gets Wilson's interval, which stays inside [0, 1] and is honest at
0 and 1; any other mean gets a bootstrap percentile interval. Two models on the same instances are
compared by a paired bootstrap: instances are resampled, each with both its scores. Where runs are
repeated with other seeds, `crossed_interval` counts seeds and questions: of a few seeds a bootstrap
would say too little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""

_CELLS_AT_ONCE = 4_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of `b - a` over the instances that both have."""

    value: float
    low: float
    high: float
    p_value: float
    """Two-sided: how often chance alone moves the mean this far, by the same bootstrap."""
    n: int

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(successes: float, n: int) -> Interval:
    """Share of `successes` in `n` trials (Wilson 1927)."""
    if n == 0:
        raise ValueError("no trials, no proportion")
    share = successes / n
    spread = Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, n)


def mean_interval(scores: Sequence[float], *, samples: int = 2000, seed: int = 0) -> Interval:
    """Mean of scores: Wilson's interval where all are 0 or 1, else a bootstrap percentile one."""
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no scores, no mean")
    if bool(np.isin(values, (0.0, 1.0)).all()):
        return wilson(float(values.sum()), values.size)
    low, high = _percentiles(bootstrap_means(values, samples=samples, seed=seed))
    return Interval(float(values.mean()), low, high, values.size)


def macro_interval(
    groups: Sequence[Sequence[float]], *, samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of the groups' means (MMLU's subjects), resampled within each group."""
    return suite_interval([[group] for group in groups], samples=samples, seed=seed)


def suite_interval(
    groups: Sequence[Sequence[Sequence[float]]], *, samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of the groups' means, each the mean of its tasks' means, resampled within each task."""
    arrays = [[np.asarray(task, dtype=np.float64) for task in group] for group in groups]
    seeds = count(seed)
    resampled = [
        np.mean([bootstrap_means(a, samples=samples, seed=next(seeds)) for a in group], axis=0)
        for group in arrays
    ]
    low, high = _percentiles(np.mean(resampled, axis=0))
    value = float(np.mean([np.mean([a.mean() for a in group]) for group in arrays]))
    n = sum(a.size for group in arrays for a in group)
    return Interval(value, min(low, value), max(high, value), n)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float], n: int, *, samples: int = 500, seed: int = 0
) -> Interval:
    """Of a number that is no mean: `statistic` of rows, which it gets as positions below `n`."""
    rng = np.random.default_rng(seed)
    resampled = np.array([statistic(rng.integers(n, size=n)) for _ in range(samples)])
    value = statistic(np.arange(n))
    low, high = _percentiles(resampled)
    return Interval(value, min(low, value), max(high, value), n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, samples: int = 2000, seed: int = 0
) -> Difference:
    """Paired bootstrap of `mean(b) - mean(a)`; `a[i]` and `b[i]` score the same instance."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}: not the same instances")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    if differences.size == 0:
        raise ValueError("no scores, no difference")
    value = float(differences.mean())
    means = bootstrap_means(differences, samples=samples, seed=seed)
    low, high = _percentiles(means)
    # centred on no difference; one more on both counts, so that p is never 0
    as_far = np.abs(means - value) >= abs(value) - 1e-12
    p_value = (1 + int(as_far.sum())) / (1 + samples)
    return Difference(value, min(low, value), max(high, value), p_value, differences.size)


def crossed_interval(tasks: Sequence[Floats]) -> Interval:
    """Mean over tasks of a mean over seeds and questions, of which both are samples: other seeds,
    or other questions, would have given another.

    Student's interval of the seeds' means and that of the questions' means; their half-widths are
    added in quadrature, as Howe (1974, JASA 69:789) does for the mean of a sum. What seed and
    question only have together is in both, so that the interval is rather too wide than too narrow.
    Of one seed only the questions can be counted.

    Args:
        tasks: [seeds, questions] of each, two questions at least.
    """
    means = np.array([task.mean(axis=1) for task in tasks])
    by_questions = sum(_half_width(task.mean(axis=0)) ** 2 for task in tasks) / len(tasks) ** 2
    by_seeds = _half_width(means.mean(axis=0)) ** 2 if means.shape[1] > 1 else 0.0
    value, half = float(means.mean()), math.sqrt(by_questions + by_seeds)
    return Interval(value, value - half, value + half, sum(task.shape[1] for task in tasks))


def _half_width(values: Floats) -> float:
    """Of Student's 95 % interval of the mean of `values`."""
    return student95(values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)


@cache
def student95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution.

    With t = sqrt(freedom) tan(a), the density over the angle a is cos(a) ** (freedom - 1).
    """
    angles = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(0.95 * below[-1], below, angles))


def bootstrap_means(values: Floats, *, samples: int, seed: int) -> Floats:
    """Means of `samples` resamples of `values`."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS_AT_ONCE // values.size)
    parts = [
        values[rng.integers(values.size, size=(min(rows, samples - start), values.size))].mean(1)
        for start in range(0, samples, rows)
    ]
    return np.concatenate(parts)


def _percentiles(means: Floats) -> tuple[float, float]:
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of `k` of `n` samples, `correct` of which are right, is right (Chen et al.
    2021, arXiv:2107.03374)."""
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples with {correct} right makes no sense")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


_RIDGE = 0.01
"""Keeps the fit finite where one side always wins; nothing beside hundreds of judgements."""
_NEWTON_STEPS = 25


def length_controlled(wins: Floats, longer_by: Floats) -> float:
    """The win rate that replies as long as the reference's would have.

    The logistic regression of AlpacaEval in its minimal form, `length_controlled_minimal`:
    logit P(win) = a + b tanh(length difference / its standard deviation), read at no difference.
    The leaderboard's own form also has a difficulty of each instruction, fitted on many models, and
    is pulled towards two baselines that game length; both are data that is not here.

    Args:
        wins: [N] 1 where the model's reply was preferred.
        longer_by: [N] characters of the model's reply over the reference's.
    """
    spread = longer_by.std(ddof=1) if longer_by.size > 1 else 0.0
    scaled = np.tanh(longer_by / spread) if spread else np.zeros_like(longer_by)
    design = np.stack([np.ones_like(scaled), scaled], axis=1)
    weights = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        chance = _logistic(design @ weights)
        gradient = design.T @ (wins - chance) - _RIDGE * weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + _RIDGE * np.eye(2)
        weights = weights + np.clip(np.linalg.solve(curvature, gradient), -2.0, 2.0)
    return float(_logistic(weights[0]))


def _logistic(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
