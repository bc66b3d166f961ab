"""Rows as others write them, made into conversations. docs/data-formats.md lists the formats.

{"messages": [{"role": "user", "content": "..."}, ...]}                chat
{"conversations": [{"from": "human", "value": "..."}, ...]}            ShareGPT
{"instruction": "...", "input": "...", "output": "..."}                Alpaca
{"instruction": "...", "context": "...", "response": "..."}            Dolly
{"prompt": "...", "completion": "..."}                                 prompt and completion
{"question": "...", "answer": "..."}                                   GSM8K
{"prompt": "...", "completion": "...", "label": false}                 KTO: a reply good or bad
{"text": "### Human: ...### Assistant: ..."}                           one text with turns
{"messages": [...], "ground_truth": "19", "dataset": "gsm8k"}          open-instruct RLVR
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from pydantic import ValidationError

from caravan.data.io import describe
from caravan.data.readers import RawRow
from caravan.data.records import Conversation, Message, Role
from caravan.errors import DataError

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
"""Names of roles in the wild, and ours."""

PROMPTS = ("instruction", "prompt", "question")
CONTEXTS = ("input", "context")
REPLIES = ("completion", "response", "output", "answer")
"""Columns of a question, of what it is about, and of its reply. The first that a row has is taken;
rows with an instruction and a prompt have the instruction once more in the prompt."""

FIELDS_OF_MESSAGES = frozenset({"role", "content", "from", "value"})
"""What is read of a message."""

VERIFIER_NAMES: Mapping[str, str] = {"gsm": "gsm8k", "MATH": "math", "IFEval": "ifeval"}
"""Spellings of verifiers in the wild, and ours; other names stay as they are."""

_SPEAKERS = re.compile(
    r"(?:^|(?<=\n)|(?<=[^\n#])(?=###\s))"
    r"(?:<\|(?P<tulu>system|user|assistant)\|>\n"
    r"|###\s?(?P<guanaco>Human|Assistant):\s?"
    r"|(?P<plain>Human|Assistant):\s?)"
)

MAX_NESTING = 50
"""Of lists and objects in a ground truth; constraints of ifeval take three."""


@dataclass(frozen=True)
class Labels:
    """What a source says about all of its rows."""

    source: str
    skill: str
    license: str
    verifier: str | None = None
    """Of rows that name none themselves."""


class AskedRow(Mapping[str, Any]):
    """A row that remembers which of its columns were asked for."""

    def __init__(self, row: RawRow) -> None:
        self._row = row
        self._asked: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self._asked.add(column)
        return self._row[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def unread(self) -> Iterator[str]:
        """What holds something and was not asked for: columns, and fields of messages, such as
        `messages[].weight`."""
        for column, value in self._row.items():
            if column not in self._asked or (column == "label" and not _is_label(value)):
                if _holds(value):
                    yield column
            elif isinstance(value, list | tuple):
                for turn in value:
                    if isinstance(turn, Mapping) and turn.keys() & {"role", "from"}:
                        others = turn.keys() - FIELDS_OF_MESSAGES
                        yield from (f"{column}[].{name}" for name in others if _holds(turn[name]))


def _holds(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


def to_conversation(row: RawRow, id: str, labels: Labels) -> Conversation:
    """One row of any known format as a conversation.

    Raises:
        DataError: says which column or message is wrong; the caller knows file and row.
    """
    try:
        messages = _messages(row)
        if not any(message.role == "user" for message in messages):
            raise DataError("no user's turn among the messages; correct or remove the row")
        ground_truth, verifier = _ground_truth(row)
        return Conversation(
            id=id,
            messages=tuple(messages),
            source=labels.source,
            skill=labels.skill,
            license=labels.license,
            verifier=(verifier or labels.verifier) if ground_truth is not None else None,
            ground_truth=ground_truth,
            label=False if str(row.get("label")).lower() == "false" else None,
            persona=row.get("persona"),
        )
    except ValidationError as error:
        raise DataError(f"{describe(error)}; correct or remove the row") from error
    except (TypeError, ValueError, KeyError, IndexError) as error:
        # Rows come from anyone: a shape that no check below knows must still name file and row.
        raise DataError(
            f"a column has an unexpected shape ({error!r:.200}); correct or remove the row"
        ) from error


def _messages(row: RawRow) -> list[Message]:
    if row.get("messages") is not None:
        return _turns(row["messages"], "messages", role="role", content="content")
    if row.get("conversations") is not None:
        turns = row["conversations"]
        first = turns[0] if isinstance(turns, Sequence) and turns else None
        sharegpt = isinstance(first, Mapping) and "from" in first
        keys = ("from", "value") if sharegpt else ("role", "content")
        return [*_system(row), *_turns(turns, "conversations", *keys)]
    for column in PROMPTS:
        if row.get(column) is not None:
            return _exchange(row, column)
    if row.get("text") is not None:
        return split_turns(_text(row, "text"))
    raise DataError(
        f"none of the columns messages, conversations, {', '.join(PROMPTS)}, text (the row has "
        f"{', '.join(row) or 'none'}); rename a column"
    )


def _turns(turns: Any, column: str, role: str, content: str) -> list[Message]:
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise DataError(f"column {column!r} is not a list of messages; correct the row")
    if not turns:
        raise DataError(f"column {column!r} holds no message; remove the row")
    messages = []
    for index, turn in enumerate(turns):
        where = f"{column}[{index}]"
        if not isinstance(turn, Mapping) or role not in turn or content not in turn:
            raise DataError(f"{where} has no {role!r} and {content!r}; correct the row")
        if not isinstance(turn[role], str) or turn[role] not in ROLES:
            raise DataError(
                f"{where}: unknown role {turn[role]!r} (known: {', '.join(ROLES)}); "
                "correct or remove the row"
            )
        text = turn[content]
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: {content!r} is not text; correct the row")
        messages.append(Message(role=ROLES[turn[role]], content=text or ""))
    return messages


def _exchange(row: RawRow, column: str) -> list[Message]:
    """A question and its reply in columns of their own; the reply may be missing.

    What a question of text is about follows it after a blank line; `system` and `history`, earlier
    turns, come before it.
    """
    asked = _side(row, column, "user")
    if isinstance(row[column], str):
        parts = [row[column], *(_optional_text(row, context) for context in CONTEXTS)]
        text = "\n\n".join(part for part in parts if part)
        asked = [*_system(row), *_history(row), Message(role="user", content=text)]
    reply = next((name for name in REPLIES if row.get(name) not in (None, "")), None)
    return [*asked, *_side(row, reply, "assistant")] if reply else asked


def _side(row: RawRow, column: str, role: Role) -> list[Message]:
    """A prompt or a reply: text, or messages."""
    value = row[column]
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if not isinstance(value, Sequence):
        raise DataError(f"column {column!r} is not text, and not a list of messages; correct it")
    return _turns(value, column, role="role", content="content")


def _history(row: RawRow) -> list[Message]:
    pairs = row.get("history") or ()
    if not isinstance(pairs, list | tuple):
        raise DataError("column 'history' is not a list of [question, answer]; correct the row")
    for index, pair in enumerate(pairs):
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise DataError(f"history[{index}] is not [question, answer], two texts; correct it")
    roles: tuple[Role, Role] = ("user", "assistant")
    return [
        Message(role=role, content=text)
        for pair in pairs
        for role, text in zip(roles, pair, strict=True)
    ]


def _system(row: RawRow) -> list[Message]:
    text = _optional_text(row, "system")
    return [Message(role="system", content=text)] if text else []


def split_turns(text: str) -> list[Message]:
    """The turns of one text: marked `<|user|>`, `### Human:` or `Human:`, each marker first on
    its line (`###` also within one).

    Raises:
        DataError: the text marks no turns.
    """
    marks = list(_SPEAKERS.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise DataError(
            "column 'text' marks no turns (<|user|>, ### Human:, Human:); use messages or prompt"
        )
    messages = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        end = following.start() if following else len(text)
        speaker = cast(str, mark["tulu"] or mark["guanaco"] or mark["plain"])
        messages.append(
            Message(role=ROLES[speaker.lower()], content=text[mark.end() : end].strip())
        )
    return messages


def _ground_truth(row: RawRow) -> tuple[Any, str | None]:
    """(ground truth, verifier's name) of our own rows, open-instruct's and verl's."""
    truth, verifier = row.get("ground_truth"), row.get("verifier")
    if verifier is None and truth is not None:
        verifier = row.get("dataset")
    if truth is None and isinstance(row.get("reward_model"), Mapping):
        truth, verifier = row["reward_model"].get("ground_truth"), row.get("data_source")
    if isinstance(verifier, list):
        if len(verifier) != 1:
            raise DataError(
                f"column 'dataset' names {len(verifier)} verifiers, one is supported; split the row"
            )
        verifier = verifier[0]
        truth = truth[0] if isinstance(truth, list) and len(truth) == 1 else truth
    if truth is None or (isinstance(truth, str) and not truth.strip()):  # an empty cell of a CSV
        return None, None
    _check_truth(truth, "ground_truth", 0)
    if verifier is not None and not isinstance(verifier, str):
        raise DataError(
            f"the verifier's name (column 'verifier', 'dataset' or 'data_source') is not text "
            f"but {verifier!r:.80}; correct the row"
        )
    return truth, VERIFIER_NAMES.get(verifier, verifier) if verifier else None


def _is_label(value: Any) -> bool:
    """Whether this is KTO's label, also as a CSV has it, and not the name or number of a class."""
    return str(value).lower() in ("true", "false")


def _check_truth(value: Any, where: str, depth: int) -> None:
    """Refuse what JSON in UTF-8 cannot hold: a run would lose it, or learn of it at the end."""
    if depth > MAX_NESTING:
        raise DataError(f"column {where:.60} is too deeply nested; correct or remove the row")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_truth(inner, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_truth(inner, f"{where}[{index}]", depth + 1)
    elif isinstance(value, float | Decimal) and not math.isfinite(value):
        raise DataError(
            f"column {where} is {value}, which is no number; correct it, or write null where the "
            "row has none"
        )
    elif isinstance(value, str | bytes):
        try:
            value.encode() if isinstance(value, str) else value.decode()
        except (UnicodeEncodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"column {where} is not text in UTF-8 ({error.reason}); correct or remove the row"
            ) from error


def _text(row: RawRow, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"column {column!r} is not text; correct the row")
    return value


def _optional_text(row: RawRow, column: str) -> str:
    return "" if row.get(column) is None else _text(row, column)
