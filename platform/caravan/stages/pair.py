"""Make preference pairs: the best rated completion of a prompt against a worse one.

Tülu 3, section 5.2.1: chosen has the highest mean rating, rejected is a random completion with a
lower one. Where the released script departs from that, this follows the paper: completions with
equal ratings make no pair, an aspect that does not apply is left out of the mean, and a completion
whose ratings could not all be read takes no part.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from caravan.data.io import read_rows, write_rows
from caravan.data.records import Conversation, Pair, RatedCompletion
from caravan.errors import DataError
from caravan.recipe import PairConfig
from caravan.stages.context import StageContext, StageResult

NAME = "pair"
VERSION = 1

_EPSILON = 1e-9
"""Mean ratings closer than this are equal."""


def run(config: PairConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    prompts = {row.id: row for row in read_rows(inputs["prompts"], Conversation)}
    by_prompt: dict[str, list[RatedCompletion]] = defaultdict(list)
    for row in read_rows(inputs["ratings"], RatedCompletion):
        by_prompt[row.completion.prompt_id].append(row)
    if unknown := sorted(by_prompt.keys() - prompts.keys()):
        raise DataError(f"ratings of prompts that are not there: {unknown[0]!r} and others")

    aspects = max((len(r.ratings) for rows in by_prompt.values() for r in rows), default=0)
    pairs: list[Pair] = []
    counts: Counter[str] = Counter()
    for prompt_id in (name for name in prompts if name in by_prompt):
        complete = [row for row in by_prompt[prompt_id] if len(row.ratings) == aspects]
        counts["refused_completions"] += len(by_prompt[prompt_id]) - len(complete)
        if len(complete) < 2:
            counts["prompts_with_one_completion"] += 1
            continue
        pair = make_pair(prompts[prompt_id], complete, config, context.seed)
        if pair is None:
            counts["ties_excluded"] += 1
        else:
            pairs.append(pair)
    pairs = at_most(pairs, config.max_pairs, context.seed)
    if not pairs:
        raise DataError(
            "no prompt has a better and a worse completion: look at the ratings, at min_margin, "
            "and at whether the pool has more than one model"
        )
    write_rows(context.output("pairs", "pairs") / "rows.jsonl", pairs)
    names = ("ties_excluded", "prompts_with_one_completion", "refused_completions")
    return StageResult(metrics={n: counts[n] for n in names} | summary(pairs))


def make_pair(
    prompt: Conversation, rated: Sequence[RatedCompletion], config: PairConfig, seed: int
) -> Pair | None:
    """The pair of one prompt, or None where no completion is clearly worse than the best.

    A completion with the text of the best one cannot be worse than it.
    """
    rng = random.Random(f"{seed}/{prompt.id}")
    top = max(row.mean_rating for row in rated)
    chosen = rng.choice([row for row in rated if row.mean_rating > top - _EPSILON])
    margin = max(config.min_margin, 2 * _EPSILON)
    worse = [
        row
        for row in rated
        if top - row.mean_rating > margin - _EPSILON
        and row.completion.text.strip() != chosen.completion.text.strip()
    ]
    if not worse:
        return None
    if config.rejected == "worst":
        bottom = min(row.mean_rating for row in worse)
        worse = [row for row in worse if row.mean_rating < bottom + _EPSILON]
    rejected = rng.choice(worse)
    return Pair(
        id=prompt.id,
        prompt=prompt.prompt,
        chosen=chosen.completion.text,
        rejected=rejected.completion.text,
        chosen_model=chosen.completion.model,
        rejected_model=rejected.completion.model,
        chosen_rating=chosen.mean_rating,
        rejected_rating=rejected.mean_rating,
        source=prompt.source,
        skill=prompt.skill,
    )


def at_most(pairs: list[Pair], count: int | None, seed: int) -> list[Pair]:
    """`count` of the pairs, drawn at random and in their order; None takes all."""
    if count is None or len(pairs) <= count:
        return pairs
    return [pairs[i] for i in sorted(random.Random(seed).sample(range(len(pairs)), count))]


def summary(pairs: Sequence[Pair]) -> dict[str, float]:
    """How many pairs, how far apart, how much longer the chosen side is, and which models win,
    where the pairs say so."""
    lengths = [len(pair.chosen.split()) - len(pair.rejected.split()) for pair in pairs]
    margins = [pair.margin for pair in pairs if pair.chosen_rating is not None]
    wins = Counter(pair.chosen_model for pair in pairs if pair.chosen_model)
    losses = Counter(pair.rejected_model for pair in pairs if pair.rejected_model)
    shares = {
        f"win_share/{model}": wins[model] / (wins[model] + losses[model])
        for model in sorted(wins | losses)
    }
    return {
        "pairs": len(pairs),
        **({"mean_margin": sum(margins) / len(margins)} if margins else {}),
        "length_bias_words": sum(lengths) / len(pairs),
        "chosen_is_longer": sum(length > 0 for length in lengths) / len(pairs),
        **shares,
    }
