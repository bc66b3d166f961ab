"""Whether the questions of a suite and the replies to them fit the model that is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from caravan.data.records import EvalInstance
from caravan.inference.engine import naming, positions_in
from caravan.inference.prompt_format import prompt_format
from caravan.recipe import EvalTask

logger = logging.getLogger(__name__)


def tokens_needed(loaded: Iterable[tuple[EvalTask, list[EvalInstance]]], model: Path) -> int:
    """Of the longest prompt with the longest reply to it, whether the model has as many or not.

    Warns of each task whose replies may end at the model's last position, before their
    `max_completion_length`.

    Raises:
        EngineError: the model's chat template has no room for a question's roles; names it.
    """
    from transformers import AutoTokenizer

    asked, positions = prompt_format(AutoTokenizer.from_pretrained(str(model))), positions_in(model)
    needed = 0
    for task, instances in loaded:
        limit = task.sampling.max_completion_length
        with naming([f"{task.name}: {instance.id}" for instance in instances]):
            encoded = asked.encode_all([instance.messages for instance in instances])
        lengths = [len(ids) for ids in encoded]
        if cramped := without_room(lengths, limit, positions):
            logger.warning(
                "%s: behind %d of %d prompts the model's %d positions have no room for "
                "max_completion_length=%d tokens: replies to them end earlier; lower it, or take "
                "a model with more positions",
                task.name, cramped, len(instances), positions, limit,
            )  # fmt: skip
        needed = max(needed, limit + max(lengths))
    return needed


def without_room(lengths: Sequence[int], limit: int, positions: int) -> int:
    """How many of the prompts of these `lengths`, in tokens, leave a model room for a reply, but
    not for one of `limit` tokens."""
    return sum(positions - limit < length < positions for length in lengths)
