"""Facts about preference pairs: who wins, by how much, and whether length decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd

from caravan.data.records import RatedCompletion
from caravan.evals.agreement import choices, preferred
from caravan.registry import PairRatingRow

FACTS = (
    "id", "order", "skill", "source", "chosen_model", "rejected_model", "margin", "chosen_words",
    "rejected_words",
)  # fmt: skip
BINS = 25
UNKNOWN = "unknown"
"""The model of a reply that nobody named."""


def facts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        **{name: row[name] for name in ("id", "skill", "source")},
        "order": crc32(row["id"].encode()),  # one that has nothing to do with what they hold
        **{name: row.get(name, UNKNOWN) for name in ("chosen_model", "rejected_model")},
        "margin": row.get("chosen_rating", 0.0) - row.get("rejected_rating", 0.0),
        "chosen_words": len(row["chosen"].split()),
        "rejected_words": len(row["rejected"].split()),
    }


RATING_FACTS = ("prompt_id",)


def rating_facts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row["completion"]  # type: ignore[no-any-return]


def rated(
    ratings: Sequence[RatedCompletion], prompt_id: str, model: str | None, text: str
) -> RatedCompletion | None:
    """What the judge said about a side of a pair."""
    asked = (prompt_id, model, text)
    return next(
        (
            r
            for r in ratings
            if (r.completion.prompt_id, r.completion.model, r.completion.text) == asked
        ),
        None,
    )


PEOPLE = ("All pairs", "Rated by people", "People disagree")


def of_people(pairs: pd.DataFrame, which: str, ratings: Sequence[PairRatingRow]) -> pd.DataFrame:
    """The pairs that people have rated, or of which more of them prefer the rejected reply than the
    chosen one."""
    found = choices(ratings)
    if which == PEOPLE[1]:
        return pairs[pairs["id"].isin(found)]
    if which == PEOPLE[2]:
        against = [id for id, said in found.items() if preferred(said) == "rejected"]
        return pairs[pairs["id"].isin(against)]
    return pairs


def select(
    pairs: pd.DataFrame, skills: Sequence[str], models: Sequence[str], min_margin: float
) -> pd.DataFrame:
    """Pairs of the skills, with one of the models on either side; empty means all."""
    keep = pairs["margin"] >= min_margin
    if skills:
        keep &= pairs["skill"].isin(skills)
    if models:
        keep &= pairs["chosen_model"].isin(models) | pairs["rejected_model"].isin(models)
    return pairs[keep]


class LengthBias(NamedTuple):
    chosen_longer: float
    """Share of pairs whose chosen reply has more words; ties count as half."""
    mean_difference: float
    """Words of the chosen reply less those of the rejected one."""


def length_bias(pairs: pd.DataFrame) -> LengthBias:
    difference = pairs["chosen_words"] - pairs["rejected_words"]
    longer = (difference > 0).mean() + (difference == 0).mean() / 2
    return LengthBias(float(longer), float(difference.mean()))


def length_histogram(pairs: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """`low`, `high`, `count` of the difference in words; the outermost 1 % go to the ends."""
    difference = (pairs["chosen_words"] - pairs["rejected_words"]).to_numpy(float)
    low, high = np.floor(np.quantile(difference, [0.005, 0.995]))
    width = max(1, int(np.ceil((high - low + 1) / bins)))
    start = np.floor(low / width) * width  # zero is an edge, so that no bin mixes signs
    edges = np.arange(start, high + width + 1, width)
    counts, edges = np.histogram(np.clip(difference, edges[0], edges[-1]), edges)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})


def win_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """`model`, `chosen`, `rejected`, `share`: how often each model's reply was preferred."""
    chosen = pairs["chosen_model"].value_counts()
    rejected = pairs["rejected_model"].value_counts()
    table = pd.DataFrame({"chosen": chosen, "rejected": rejected}).fillna(0).astype(int)
    table["share"] = table["chosen"] / (table["chosen"] + table["rejected"])
    return table.sort_values("share", ascending=False).rename_axis("model").reset_index()
