"""Preference pairs as others write them, read into ours. docs/data-formats.md lists the formats.

{"prompt": "...", "chosen": "...", "rejected": "..."}                      text
{"instruction": "...", "input": "...", "chosen": "...", "rejected": "..."} text, as Alpaca has it
{"prompt": [...], "chosen": [{"role": "assistant", ...}], "rejected": ...} messages
{"chosen": [{"role": "user", ...}, ...], "rejected": [...]}                whole conversations
{"chosen": "Human: ...\n\nAssistant: ...", "rejected": "..."}              the same as one text each
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from caravan.data.formats import CONTEXTS, PROMPTS, Labels, to_conversation
from caravan.data.readers import RawRow
from caravan.data.records import Message, Pair
from caravan.errors import DataError

ASKED = ("prompt", *(name for name in PROMPTS if name != "prompt"))
"""Columns of a prompt; the first that a row has is taken."""

RATINGS = (
    ("chosen_rating", "rejected_rating"),
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
)
"""Columns of the two ratings; the first that a row has are taken."""

Side = Literal["chosen", "rejected"]


def to_pair(row: RawRow, id: str, labels: Labels) -> Pair:
    """One row of any known format as a preference pair.

    Raises:
        DataError: says which column or message is wrong; the caller knows file and row.
    """
    chosen, rejected = _conversation(row, "chosen", labels), _conversation(row, "rejected", labels)
    prompt = chosen[:-1]
    if rejected[:-1] != prompt:
        raise DataError(
            "chosen and rejected differ before their last turn, so they answer different prompts; "
            "correct or remove the row"
        )
    chosen_rating, rejected_rating = _ratings(row)
    return Pair(
        id=id,
        prompt=prompt,
        chosen=chosen[-1].content,
        rejected=rejected[-1].content,
        chosen_model=_model(row, "chosen_model"),
        rejected_model=_model(row, "rejected_model"),
        chosen_rating=chosen_rating,
        rejected_rating=rejected_rating,
        source=labels.source,
        skill=labels.skill,
    )


def _conversation(row: RawRow, side: Side, labels: Labels) -> tuple[Message, ...]:
    """The prompt with the reply of one side."""
    value = row.get(side)
    asked = next((name for name in ASKED if row.get(name) is not None), None)
    if side in row and not isinstance(value, Sequence):
        raise DataError(f"column {side!r} is neither text nor messages; correct or remove the row")
    if value is None:
        raise DataError(
            f"no column {side!r} (the row has {', '.join(row) or 'none'}); a pair has chosen, "
            "rejected and, unless these are whole conversations, prompt"
        )
    if _is_whole(value):
        turns: RawRow = {"messages": value}
    elif asked is not None:
        beside = (*CONTEXTS, "history", "system") if isinstance(row[asked], str) else ()
        turns = {name: row.get(name) for name in (asked, *beside)} | {"completion": value}
    elif isinstance(value, str):
        turns = {"text": value}
    else:
        raise DataError(f"{side} has no user's turn, and there is no column 'prompt'; add it")
    try:
        messages = to_conversation(turns, "", labels).messages
    except DataError as error:
        raise DataError(f"{side}: {error}") from error
    if value == "":  # where a row is a conversation, that says that it has no reply
        messages = (*messages, Message(role="assistant", content=""))
    if len(messages) < 2 or (messages[-2].role, messages[-1].role) != ("user", "assistant"):
        raise DataError(
            f"{side} does not end with one reply of the assistant to a user's turn; correct or "
            "remove the row"
        )
    system = row.get("system")
    if isinstance(system, str) and system and messages[0].role != "system":
        messages = (Message(role="system", content=system), *messages)
    return messages


def _is_whole(value: Any) -> bool:
    """Whether messages are a conversation from its beginning, not only the reply."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return False
    first = value[0]
    return isinstance(first, Mapping) and first.get("role") != "assistant"


def _ratings(row: RawRow) -> tuple[float, float] | tuple[None, None]:
    for names in RATINGS:
        given = [name for name in names if row.get(name) not in (None, "")]
        if len(given) == 1:
            raise DataError(f"column {given[0]!r} without the other of {' and '.join(names)}")
        if given:
            chosen, rejected = (_number(row[name], name) for name in names)
            return chosen, rejected
    return None, None


def _number(value: Any, column: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"column {column!r} is {value!r:.80}, which is no number; correct the row")
    return number


def _model(row: RawRow, column: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise DataError(f"column {column!r} is not text; correct the row")
    return value or None
