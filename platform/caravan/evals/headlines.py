"""One number for each model of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from caravan.evals.caveats import lacking
from caravan.evals.models import in_order, model_of
from caravan.registry import ScoreRow, is_share


@dataclass(frozen=True)
class Headline:
    """Means over tasks."""

    value: float
    truncated: float
    too_long: float
    undecided: float

    @property
    def caveat(self) -> str:
        """Why it says little, where many replies have no end or no verdict."""
        return lacking(self)


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
        run_id: {model: headline(models[model]) for model in in_order(models)}
        for run_id, models in by_model.items()
    }


def headline(scores: Sequence[ScoreRow]) -> Headline:
    """The means of these scores, alike in weight."""
    return Headline(
        value=fmean(score.value for score in scores),
        truncated=fmean(score.truncated for score in scores),
        too_long=fmean(score.too_long for score in scores),
        undecided=fmean(score.undecided for score in scores),
    )
