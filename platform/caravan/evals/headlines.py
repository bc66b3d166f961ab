"""One number for each model of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from caravan.evals.caveats import cut_short
from caravan.evals.models import in_order, model_of

if TYPE_CHECKING:
    from caravan.registry import ScoreRow


@dataclass(frozen=True)
class Headline:
    value: float
    """Mean over tasks."""
    caveat: str
    """Why it says little, where too many replies lack their end."""


def headlines(scores: Iterable[ScoreRow]) -> dict[str, dict[str, Headline]]:
    """By run and model, the mean over tasks of the first metric of each; models in the order in
    which a recipe makes them, whichever was evaluated first."""
    first: dict[tuple[str, str, str], ScoreRow] = {}
    for score in scores:
        model = model_of(score.node)
        if model is not None and is_share(score.metric):
            first.setdefault((score.run_id, model, score.task), score)
    by_model: dict[str, dict[str, list[ScoreRow]]] = {}
    for (run_id, model, _), score in first.items():
        by_model.setdefault(run_id, {}).setdefault(model, []).append(score)
    return {
        run_id: {model: _headline(models[model]) for model in in_order(models)}
        for run_id, models in by_model.items()
    }


def _headline(scores: Sequence[ScoreRow]) -> Headline:
    caveat = cut_short(fmean(s.truncated for s in scores), fmean(s.too_long for s in scores))
    return Headline(fmean(score.value for score in scores), caveat)


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1, as accuracies and rates do; ratings do not."""
    return "rating" not in metric
