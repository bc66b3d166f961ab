"""The prompts of reinforcement learning: rows of a dataset that a verifier can check, or all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from caravan.data.records import Conversation
from caravan.data.template import encode_prompt
from caravan.errors import DataError
from caravan.recipe import RLVRConfig
from caravan.recipe.checks import suggest
from caravan.training.rl.rollout import RLPrompt
from caravan.verifiers import Verifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RLPrompts:
    rows: list[RLPrompt]
    too_long: int
    """Prompts left out because no whole completion fits behind them."""


def select_prompts(
    rows: Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    config: RLVRConfig,
    verifiers: Mapping[str, Verifier],
    *,
    positions: int,
) -> RLPrompts:
    """The rows that are asked for, of the skills that are trained, as tokens.

    Args:
        positions: Tokens that fit the model.

    Raises:
        DataError: a row names an unknown verifier, or no row is left; says why.
    """
    room = min(config.max_length, positions) - config.sampling.max_completion_length
    if room < 1:
        raise DataError(
            f"max_completion_length={config.sampling.max_completion_length} leaves no room for a "
            f"prompt in max_length={config.max_length} or the model's {positions} positions"
        )
    kept: list[RLPrompt] = []
    too_long = 0
    skills: set[str] = set()
    for row in rows:
        if row.verifier is None and config.prompts == "verifiable":
            continue
        if row.verifier is not None and row.verifier not in verifiers:
            raise DataError(
                f"row {row.id!r}: unknown verifier {row.verifier!r}"
                f"{suggest(row.verifier, verifiers)}"
            )
        skills.add(row.skill)
        if config.skills and row.skill not in config.skills:
            continue
        ids = encode_prompt(tokenizer, row.prompt)
        if len(ids) <= room:
            kept.append(RLPrompt(row, tuple(ids)))
        else:
            too_long += 1
    if too_long:
        logger.warning("%d prompts of more than %d tokens are left out", too_long, room)
    if not kept:
        found = ", ".join(sorted(skills)) or "none"
        of = "verifiable rows" if config.prompts == "verifiable" else "rows"
        raise DataError(
            f"no prompt to train on: {too_long} are longer than {room} tokens; skills with "
            f"{of}: {found}; skills asked for: {', '.join(config.skills) or 'all'}"
        )
    return RLPrompts(kept, too_long)
