"""Whether prompts and the replies to them fit the model that is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from caravan.data.records import Message
from caravan.inference.engine import naming, positions_in
from caravan.inference.likelihood import encode_questions
from caravan.inference.prompt_format import prompt_format

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """Prompts that a model will be asked, with one limit for the replies."""

    of: str
    """What they belong to, such as a task."""
    ids: Sequence[str]
    """Of each prompt."""
    prompts: Sequence[Sequence[Message]]
    limit: int
    """`max_completion_length`."""
    options: Sequence[Sequence[str]] = ()
    """Of each prompt, the replies that are weighed; where there are some, no other is asked for."""


def tokens_needed(groups: Iterable[Asked], model: Path) -> int:
    """Of the longest prompt with the longest reply to it, whether the model has as many or not.

    Warns of each group whose replies may end at the model's last position, before their
    `max_completion_length`.

    Raises:
        EngineError: the model's chat template has no room for a prompt's roles; names it.
    """
    from transformers import AutoTokenizer

    asked, positions = prompt_format(AutoTokenizer.from_pretrained(str(model))), positions_in(model)
    needed = 0
    for of, ids, prompts, limit, options in groups:
        with naming([f"{of}: {id}" for id in ids]):
            if options:
                questions = encode_questions(asked, prompts, options)
                needed = max(needed, 1 + max(question.longest for question in questions))
                continue
            lengths = [len(tokens) for tokens in asked.encode_all(prompts)]
        if cramped := without_room(lengths, limit, positions):
            logger.warning(
                "%s: behind %d of %d prompts the model's %d positions have no room for "
                "max_completion_length=%d tokens: replies to them end earlier; lower it, or take "
                "a model with more positions",
                of, cramped, len(prompts), positions, limit,
            )  # fmt: skip
        needed = max(needed, limit + max(lengths))
    return needed


def without_room(lengths: Sequence[int], limit: int, positions: int) -> int:
    """How many of the prompts of these `lengths`, in tokens, leave a model room for a reply, but
    not for one of `limit` tokens."""
    return sum(positions - limit < length < positions for length in lengths)
